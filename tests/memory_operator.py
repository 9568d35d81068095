"""An operator over an in-memory cluster, and objects for it."""

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any

from tessera.api.model_files import PoolingTask
from tessera.api.template_version import Platform
from tessera.domain.config import Config
from tessera.domain.cost.bill import Bill
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, BATCH_INFERENCES, INFERENCE_SERVICES
from tessera.domain.names import SERVICE_LABEL, deployment_name
from tessera.domain.observed.model_reports import FetchProgress
from tessera.domain.observed.runner_reports import RunnerProgress
from tessera.domain.observed.snapshot import Resolution, RevisionQuery
from tessera.domain.planning.plan import PlanMemory
from tessera.ports import Engines, ModelHub
from tessera.reconcile.apply import Applier
from tessera.reconcile.cycle import FleetReconciler, ReconcileOutcome
from tessera.reconcile.event_recorder import EventRecorder
from tessera.reconcile.observe import Observations, ProbeAnswers
from tessera.reconcile.prober import Prober
from tessera.reconcile.reflector import Reflector
from tessera.reconcile.store import Store
from tessera.reconcile.writing.shared_objects import Installation
from tessera.resources.api_resources import CLAIMS, DEPLOYMENTS, KINDS, NODES
from tessera.resources.manifest import ObjectKey
from tessera.resources.runner import RunnerImage
from tests.builders import NOW, SMALL
from tests.memory_cluster import MemoryCluster

VARIANT = "a100-1g-10gb"
DEPLOYMENT = ObjectKey("deployments", "team-a", deployment_name("chat", VARIANT))
SERVICE = ObjectKey("services", "team-a", "chat")
CHAT = ObjectKey("inferenceservices", "team-a", "chat")


def replica_of(deployment: ObjectKey, name: str, service: str = "chat") -> dict[str, Any]:
    """Return metadata and spec of a replica as the ReplicaSet of a Deployment creates it."""
    variant = deployment.name.removeprefix(f"{service}-")
    replica_set = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": f"{deployment.name}-one",
        "uid": f"uid-{deployment.name}-one",
        "controller": True,
    }
    meta = {
        "name": name,
        "namespace": deployment.namespace,
        "labels": {
            "app.kubernetes.io/component": "engine",
            "tessera.dev/service": service,
            "tessera.dev/variant": variant,
            "pod-template-hash": "one",
        },
        "ownerReferences": [replica_set],
        "creationTimestamp": "2026-11-20T11:59:00Z",
    }
    limits = {"nvidia.com/mig-1g.10gb": "1"}
    return {
        "metadata": meta,
        "spec": {"containers": [{"name": "engine", "resources": {"limits": limits}}]},
    }


async def reconcile_and_write(fleet: FleetReconciler, applier: Applier) -> ReconcileOutcome:
    """Run a cycle, and write all that it decided; return what was refused and written."""
    before = applier.writes
    outcome = await fleet.reconcile()
    withheld = [ref for ref, each in outcome.plan.service_plans.items() if each.withheld]
    assert not withheld, "a plan took healthy replicas within a floor"
    await applier.queue.drain()
    async with applier.queue.paused():
        """Raises what stopped the writing."""
    return replace(
        outcome,
        problems=dict(applier.services.problems),
        writes=applier.writes - before,
        defects=(*outcome.defects, *applier.queue.defects.take()),
    )


class SilentEngines:
    """Engines that refuse every connection."""

    async def probe(self, base: str, model: str, task: PoolingTask | None = None) -> str | None:
        return f"POST {base} for {model} ({task or 'Generate'}): connection refused"

    async def in_flight(self, address: str) -> int | None:
        del address
        return 0

    async def fetch_progress(self, address: str) -> FetchProgress | None:
        del address
        return None

    async def progress(self, address: str) -> RunnerProgress | None:
        del address
        return None


class MemoryOperator:
    """An operator over an in-memory cluster; tests start each cycle."""

    def __init__(
        self,
        *,
        monitored: bool = False,
        hub: ModelHub | None = None,
        engines: Engines | None = None,
    ) -> None:
        self.engines = engines or SilentEngines()
        self.cluster = MemoryCluster(monitored=monitored)
        self.leading = True
        self.raises_defects = True
        """Whether a cycle raises what the operator itself counts as a defect."""
        self.defects = list[Exception]()
        self.hub = hub
        self.answered = asyncio.Event()
        self.builder = 1
        self.platform = Platform()
        self.require_budget = False
        self.gated_namespaces = frozenset[str]()
        self.at = NOW
        self.observations = Observations()
        self.restart()

    def restart(self) -> None:
        """Start a new process, which has lost all memory."""
        resolutions: dict[RevisionQuery, Resolution] | None = None if self.hub is None else {}
        self.observations = Observations(answers=ProbeAnswers(resolutions=resolutions))
        config = Config(
            builder_version=self.builder,
            platform=self.platform,
            require_budget=self.require_budget,
            gated_namespaces=self.gated_namespaces,
        )
        self.store = Store(KINDS)
        self.events = EventRecorder(
            self.cluster,
            instance="tessera-operator-0",
            clock=self._now,
            monotonic=self._read_monotonic,
            count=lambda _: None,
        )
        self.applier = Applier(
            config,
            self.cluster,
            self.store,
            Installation(
                namespace="tessera-system",
                ingress_namespaces=("tessera-system", "monitoring"),
                batch_image=RunnerImage("tessera/batch:test"),
            ),
            lambda: self.leading,
            record_events=self.events.record,
        )
        self.prober = Prober(
            self.engines,
            self.observations.answers,
            self._now,
            self.answered.set,
            self.hub,
            self.cluster,
        )
        self.fleet = FleetReconciler(
            config, self.store, self.observations, self.applier, self.prober, self._now
        )
        self.reflector = Reflector(self.cluster, self.store, self.observations, lambda _: None)

    @property
    def memory(self) -> PlanMemory:
        """What the next plan needs to know of earlier ones."""
        return self.fleet.memory

    @memory.setter
    def memory(self, memory: PlanMemory) -> None:
        self.fleet.memory = memory

    @property
    def bill(self) -> Bill:
        """What the nodes have cost until now."""
        return self.fleet.bill

    def _now(self) -> datetime:
        return self.at

    def _read_monotonic(self) -> float:
        return self.at.timestamp()

    async def reconcile(self) -> ReconcileOutcome:
        """List everything, as after any event, run a cycle, and write what it decided."""
        await self.reflector.list_all()
        outcome = await reconcile_and_write(self.fleet, self.applier)
        self.defects += outcome.defects
        if self.raises_defects and outcome.defects:
            raise outcome.defects[0]
        await self.events.write_pending()
        return outcome

    async def decide(self) -> ReconcileOutcome:
        """List everything, and run a cycle beside which something else writes."""
        await self.reflector.list_all()
        return await self.fleet.reconcile()

    def serve(self, name: str = "chat", namespace: str = "team-a", **spec: Any) -> ObjectKey:
        body = {
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"model": {"uri": SMALL}, **spec},
        }
        return self.cluster.put(INFERENCE_SERVICES, body)

    def body(self, key: ObjectKey) -> dict[str, Any]:
        return self.cluster.objects[key]

    def newest_deployment(self, service: str = "chat", namespace: str = "team-a") -> dict[str, Any]:
        """Return the Deployment of a service that was created last."""
        own = [
            body
            for key, body in self.cluster.objects.items()
            if (key.plural, key.namespace) == (DEPLOYMENTS.plural, namespace)
            and body["metadata"]["labels"][SERVICE_LABEL] == service
        ]
        return own[-1]

    def kinds(self) -> set[str]:
        return {key.plural for key in self.cluster.objects}


def add_pool_and_node(operator: MemoryOperator) -> None:
    """Add one A100 in seven slices, and its pool."""
    prices = [{"from": "2026-01-01", "perGPUHour": "2"}]
    pool = {"nodeSelector": {"pool": "a100"}, "tier": "Reserved", "prices": prices}
    operator.cluster.put(ACCELERATOR_POOLS, {"metadata": {"name": "a100"}, "spec": pool})
    labels = {
        "pool": "a100",
        "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
        "nvidia.com/gpu.count": "1",
    }
    status = {
        "allocatable": {"nvidia.com/mig-1g.10gb": "7"},
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    operator.cluster.put(
        NODES, {"metadata": {"name": "a100-0", "labels": labels}, "status": status}
    )


def add_batch(
    operator: MemoryOperator, name: str = "night", model: dict[str, Any] | None = None
) -> ObjectKey:
    """Add a batch and the claim that it names."""
    claim = {
        "metadata": {"name": "data", "namespace": "team-a"},
        "spec": {"accessModes": ["ReadWriteMany"]},
    }
    operator.cluster.put(CLAIMS, claim)
    meta = {
        "name": name,
        "namespace": "team-a",
        "creationTimestamp": "2026-11-20T11:59:00Z",
    }
    spec = {
        "claimName": "data",
        "input": "in.jsonl",
        "output": f"{name}.jsonl",
        "model": model or {"uri": SMALL},
    }
    return operator.cluster.put(BATCH_INFERENCES, {"metadata": meta, "spec": spec})
