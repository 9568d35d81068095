"""Nodes, a pool and services of one scene in a world, and what users and faults do to them."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from demo.cluster import NAMESPACE, InstalledCluster, Json, condition
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES
from tessera.domain.mig_backends.devices import DEVICE_PLUGIN_LABEL
from tessera.domain.observed.node_layout import TAINT
from tessera.resources.api_resources import DISRUPTION_BUDGETS, PODS
from world.api import NODES
from world.testing import eventually

SCENE = "scene"
FLOORS: Mapping[str, int] = {"a": 2, "b": 1}
# Nodes of a scene, each with two GPUs of one slice.
NODE_COUNT = 2
_MODEL = "hf://meta-llama/Llama-3.2-1B-Instruct"
_API_SECONDS = 60
_ENGINES = "app.kubernetes.io/component=engine"
_SLICE = "nvidia.com/mig-"
T = TypeVar("T")


def nodes_of(scene: str) -> Json:
    """Return the entry of a scene's nodes in a fleet file."""
    return {
        "name": f"{scene}.node",
        "count": NODE_COUNT,
        "product": "NVIDIA-A100-SXM4-80GB",
        "tier": "Reserved",
        "cloud": "aws",
        "gpus": [["7g.80gb"], ["7g.80gb"]],
        "labels": {SCENE: scene},
    }


@dataclass(slots=True)
class LayoutFleet:
    """One scene's part of a world. Faults act in a thread, and read what was sampled last."""

    cluster: InstalledCluster
    scene: str
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    nodes: Sequence[Json] = ()
    pods: Sequence[Json] = ()
    gpus: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    pool: Json | None = None
    """As they were sampled last; the pool is None while it does not exist."""
    pool_spec: Json = field(default_factory=dict)
    _edits: int = 0

    @property
    def namespace(self) -> str:
        return self.scene.replace(".", "-")

    @property
    def pool_path(self) -> str:
        return ACCELERATOR_POOLS.path("", self.namespace)

    async def begin(self) -> None:
        """Serve every service on slices that fill a GPU."""
        api = self.cluster.api
        await api.create("/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        self.pool_spec = {
            "nodeSelector": {SCENE: self.scene},
            "tier": "Reserved",
            "prices": [{"from": "2026-01-01", "perGPUHour": "3.40"}],
        }
        await self._apply_pool()
        for name, floor in FLOORS.items():
            await api.apply(
                INFERENCE_SERVICES.path(self.namespace, name), self._service(name, floor), "kubectl"
            )
        await eventually(self._services_are_ready)

    def _service(self, name: str, floor: int) -> Json:
        return {
            "apiVersion": INFERENCE_SERVICES.api_version,
            "kind": INFERENCE_SERVICES.kind,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "model": {"uri": _MODEL},
                "context": {"maxModelLen": 4096},
                "placement": {"pools": [self.namespace], "mig": "Auto"},
                "scaling": {"minReplicas": floor, "maxReplicas": floor},
                "drain": {"timeout": "30s"},
            },
        }

    async def repartition(self) -> None:
        """Approve a plan that needs fewer GPUs; `Auto` would wait five minutes with it."""
        await asyncio.to_thread(self.patch_pool, mig={"mode": "Propose", "backend": "Agent"})
        await eventually(self._saving_plan_is_approved)

    async def _saving_plan_is_approved(self) -> None:
        """Approve what is proposed now: a plan that changes has a new name, and waits again."""
        mig = (await self.cluster.api.get(self.pool_path))["status"].get("mig", {})
        if _saves_gpus(proposed := mig.get("proposed") or {}):
            annotations = {"tessera.dev/approve-layout": proposed["name"]}
            await self.cluster.api.patch(self.pool_path, {"metadata": {"annotations": annotations}})
        assert _saves_gpus(mig.get("target") or {}), mig

    async def _services_are_ready(self) -> None:
        services = await self.cluster.api.get(INFERENCE_SERVICES.path(self.namespace))
        for service in services["items"]:
            status = service.get("status", {})
            assert condition(service, "Ready").get("status") == "True", status
            assert status.get("readyReplicas") == service["spec"]["scaling"]["minReplicas"], status

    async def look(self) -> None:
        """Sample everything that faults and observers read."""
        api, world = self.cluster.api, self.cluster.world
        self.pods = (await api.get(PODS.path(self.namespace), labelSelector=_ENGINES))["items"]
        nodes = await api.get(NODES.path())
        self.nodes = [
            node
            for node in nodes["items"]
            if node["metadata"]["name"].rpartition("-")[0] == f"{self.scene}.node"
        ]
        pools = (await api.get(ACCELERATOR_POOLS.path("")))["items"]
        self.pool = next(
            (pool for pool in pools if pool["metadata"]["name"] == self.namespace), None
        )
        names = [node["metadata"]["name"] for node in self.nodes]
        gpus = await asyncio.gather(*(asyncio.to_thread(world.gpus, name) for name in names))
        self.gpus = dict(zip(names, gpus, strict=True))

    @property
    def layout_ready(self) -> Json:
        return condition(self.pool or {}, "LayoutReady")

    def node_names(self) -> list[str]:
        return [node["metadata"]["name"] for node in self.nodes]

    def nodes_in_work(self) -> list[str]:
        """Return nodes that are tainted for a repartition."""
        return [
            node["metadata"]["name"]
            for node in self.nodes
            if TAINT in [taint["key"] for taint in node["spec"].get("taints", ())]
        ]

    def stopped_plugins(self) -> list[str]:
        """Return nodes whose device plugin is away."""
        return [
            node["metadata"]["name"]
            for node in self.nodes
            if node["metadata"]["labels"].get(DEVICE_PLUGIN_LABEL) != "true"
        ]

    def agents(self) -> list[str]:
        """Return the pods of the node agents of the scene that run."""
        return [
            container.pod
            for container in self.cluster.world.containers()
            if container.namespace == NAMESPACE
            and container.pod.startswith("tessera-node")
            and container.container == "node"
            and container.node in self.node_names()
        ]

    # What faults do; in a thread of their own.

    def run(self, request: Coroutine[Any, Any, T]) -> T:
        """Send a request of the API, and wait for its answer."""
        return asyncio.run_coroutine_threadsafe(request, self.loop).result(_API_SECONDS)

    def patch_pool(self, **spec: Any) -> None:
        self.pool_spec = {**self.pool_spec, **spec}
        self.run(self.cluster.api.patch(self.pool_path, {"spec": spec}))

    def roll(self, service: str) -> None:
        """Edit the environment of a service's engines, as CI does."""
        self._edits += 1
        env = [{"name": "EDIT", "value": str(self._edits)}]
        path = INFERENCE_SERVICES.path(self.namespace, service)
        self.run(self.cluster.api.patch(path, {"spec": {"podTemplate": {"env": env}}}))

    def label(self, node: str, **labels: str | None) -> None:
        body = {"metadata": {"labels": labels}}
        self.run(self.cluster.api.patch(NODES.path(name=node), body))

    def delete_pool(self) -> None:
        self.run(self.cluster.api.delete(self.pool_path))

    def make_pool(self) -> None:
        self.run(self._apply_pool())

    async def _apply_pool(self) -> None:
        body = {
            "apiVersion": ACCELERATOR_POOLS.api_version,
            "kind": ACCELERATOR_POOLS.kind,
            "metadata": {"name": self.namespace},
            "spec": self.pool_spec,
        }
        await self.cluster.api.apply(self.pool_path, body, "kubectl")

    def offer(self, node: str, resource: str, count: int) -> None:
        """Let another device plugin offer something on a node."""
        amounts = {resource: str(count)}
        body = {"status": {"capacity": amounts, "allocatable": amounts}}
        self.run(self.cluster.api.patch(NODES.path(name=node, sub="status"), body))

    def add_budget(self) -> None:
        """Add a company's PodDisruptionBudget, which allows everything."""
        body = {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "company", "namespace": self.namespace},
            "spec": {
                "maxUnavailable": "100%",
                "selector": {"matchLabels": {"app.kubernetes.io/component": "engine"}},
            },
        }
        path = DISRUPTION_BUDGETS.path(self.namespace, "company")
        self.run(self.cluster.api.apply(path, body, "kubectl"))

    def remove_budget(self) -> None:
        path = DISRUPTION_BUDGETS.path(self.namespace, "company")
        self.run(self.cluster.api.delete(path))

    def offered_slices(self, node: Json) -> dict[str, int]:
        """Return the allocatable slices of a node by profile, without those at zero."""
        allocatable = node["status"]["allocatable"].items()
        return {
            name.removeprefix(_SLICE): int(count)
            for name, count in allocatable
            if name.startswith(_SLICE) and count != "0"
        }


def _saves_gpus(plan: Json) -> bool:
    return bool(plan.get("gpusAfter", 9) < plan.get("gpusBefore", 0))
