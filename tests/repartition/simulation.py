"""The whole operator over a cluster in memory, and the invariants that hold despite kills."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any, Self

from tessera.api.mig import MigStatus
from tessera.api.model_files import PoolingTask
from tessera.api.ref import Ref
from tessera.domain.config import Config
from tessera.domain.hardware.gpu_layouts import geometry
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES, NODE_LAYOUTS
from tessera.domain.layout.pool_layout import profiles_by_service
from tessera.domain.layout.problem import LayoutProblem, LayoutSolution
from tessera.domain.layout.solution import solve
from tessera.domain.mig_backends.devices import profile_of
from tessera.domain.names import PORT
from tessera.domain.observed.model_reports import FetchProgress
from tessera.domain.observed.node_layout import TAINT
from tessera.domain.observed.runner_reports import RunnerProgress
from tessera.domain.observed.snapshot import EngineReading, Pod, PodReading, Readings
from tessera.reconcile.apply import Applier
from tessera.reconcile.cycle import FleetReconciler
from tessera.reconcile.layout_solving import BackgroundPlanner
from tessera.reconcile.observe import Observations
from tessera.reconcile.prober import Prober
from tessera.reconcile.reflector import Reflector
from tessera.reconcile.store import Store
from tessera.reconcile.writing.shared_objects import Installation
from tessera.resources.api_resources import DEPLOYMENTS, KINDS, PODS, WATCHED
from tessera.resources.manifest import ObjectKey
from tessera.resources.runner import RunnerImage
from tests.cases import full
from tests.memory_operator import reconcile_and_write
from tests.mig_builders import A100
from tests.repartition.crashes import CrashInjector, KillableCluster, KillableProcess, KilledError
from tests.repartition.kube import Kube
from tests.repartition.machine import InvariantError, RecordingGpuDriver, SimulatedNode
from world.mig_manager import MigManager

TICK = 5.0
# Ticks without a write after which a fleet counts as quiet.
QUIET = 8
_POOL = ObjectKey(ACCELERATOR_POOLS.plural, "", "a100")
_solutions: list[LayoutSolution] = []


class CachedSolver:
    """Answers at once, and equal problems with the same solution."""

    async def solve(self, problem: LayoutProblem) -> LayoutSolution:
        for solution in _solutions:
            if solution.problem == problem:
                return solution
        _solutions.append(solve(problem))
        return _solutions[-1]


# How long the last requests of a draining replica take.
DRAINED = timedelta(seconds=12)


@dataclass(frozen=True, slots=True)
class AnsweringEngines:
    """Engines that answer every probe."""

    kube: Kube

    async def probe(self, base: str, model: str, task: PoolingTask | None = None) -> str | None:
        del base, model, task
        return None

    async def in_flight(self, address: str) -> int | None:
        """Return 1 request until the replica is drained, which a stalled engine never is."""
        key, pod = next(
            (key, pod) for key, pod in self.kube.pods() if f"{pod.address}:{PORT}" == address
        )
        if key in self.kube.stalled:
            return 1
        drained = pod.draining_since is not None and self.kube.at - pod.draining_since >= DRAINED
        return 0 if drained or not pod.containers_ready else 1

    async def fetch_progress(self, address: str) -> FetchProgress | None:
        del address
        return None

    async def progress(self, address: str) -> RunnerProgress | None:
        del address
        return None


class KillableOperator:
    """One process of the operator; its memory is lost with it."""

    def __init__(
        self, kube: Kube, injector: CrashInjector, *, node_agents: bool, gateways: bool
    ) -> None:
        cluster = KillableCluster(kube, KillableProcess("operator", injector))
        store, observations = Store(KINDS), Observations()
        self.observations = observations

        def now() -> datetime:
            return kube.at

        def wake() -> None:
            """Do nothing: a cycle runs in every tick."""

        self._prober = Prober(
            AnsweringEngines(kube), observations.answers, now, wake, cluster=cluster
        )
        self._background_planner = BackgroundPlanner(CachedSolver(), observations, now, wake)
        self._reflector = Reflector(cluster, store, observations, lambda _: wake())
        self._listed = False
        config = Config(
            mig_backends=frozenset({"Agent", "MigManager"}),
            node_agents=node_agents,
            gateways=gateways,
        )
        self._applier = Applier(
            config,
            cluster,
            store,
            Installation(
                namespace="tessera-system",
                ingress_namespaces=("tessera-system",),
                batch_image=RunnerImage("tessera/batch:test"),
                mig_namespace="gpu-operator",
            ),
            lambda: True,
        )
        self._reconciler = FleetReconciler(
            config,
            store,
            observations,
            self._applier,
            self._prober,
            now,
            background_planner=self._background_planner,
        )

    async def reconcile(self) -> int:
        """Run a cycle, and return its writes."""
        await self._observe()
        outcome = await reconcile_and_write(self._reconciler, self._applier)
        for defect in outcome.defects:
            raise defect
        assert not outcome.problems, outcome.problems
        await self._hear_answers()
        return outcome.writes

    async def _observe(self) -> None:
        """Read what changed, or everything at first."""
        if not self._listed:
            await self._reflector.list_all()
            self._listed = True
        for kind in WATCHED:
            await self._reflector.watch(kind)

    async def _hear_answers(self) -> None:
        """Let probes of engines and the planner be answered."""
        for _ in range(3):
            await asyncio.sleep(0)

    async def stop(self) -> None:
        await self._prober.stop()
        await self._background_planner.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionBackend:
    """The process that partitions GPUs, and whether an agent reports."""

    name: str
    has_agent: bool = False
    agent_partitions: bool = False


BACKENDS = {
    backend.name: backend
    for backend in (
        PartitionBackend(name="mig-manager"),
        PartitionBackend(name="mig-manager, with agents that look", has_agent=True),
        PartitionBackend(name="agent", has_agent=True, agent_partitions=True),
    )
}
# For tests that differ little with an agent that only looks.
EACH_BACKEND = ["mig-manager", "agent", *full("mig-manager, with agents that look")]


@dataclass(slots=True, kw_only=True)
class RepartitionSimulation:
    """The cluster, its nodes, and the running operator."""

    kube: Kube
    machines: list[SimulatedNode]
    injector: CrashInjector
    backend: PartitionBackend
    operator: KillableOperator | None = None
    ticks: int = 0
    node_agents: bool = True
    """The chart value node.enabled, as the next operator has it."""
    gateways: bool = False
    """The chart value gateway.enabled."""
    restart_ticks: int = 0
    """Ticks between the end of an operator and the start of the next."""
    _operator_kills: int = 0
    _next_start: int = 0
    min_replicas: dict[Ref, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        backend: PartitionBackend,
        nodes: Sequence[Sequence[list[tuple[str, int]] | None]],
        seed: int = 0,
        names: Mapping[str, str] | None = None,
        *,
        kube_type: type[Kube] = Kube,
        node_type: type[SimulatedNode] = SimulatedNode,
    ) -> Self:
        kube = kube_type(seed)
        injector = CrashInjector(state=lambda: ())
        machines = [
            node_type(
                name=f"a100-{at}",
                kube=kube,
                gpu_driver=RecordingGpuDriver(f"a100-{at}", layouts),
                injector=injector,
                manager=None if backend.agent_partitions else MigManager(),
                has_agent=backend.has_agent,
                agent_partitions=backend.agent_partitions,
                names=names or {},
            )
            for at, layouts in enumerate(nodes)
        ]
        simulation = cls(kube=kube, machines=machines, injector=injector, backend=backend)
        injector.state = simulation.state
        simulation.pool()
        return simulation

    def state(self) -> tuple[object, ...]:
        """Return a value that changes with everything outside of processes."""
        return (
            self.ticks,
            self.kube.version,
            *(machine.gpu_driver.version for machine in self.machines),
        )

    # Users

    def pool(self, **mig: Any) -> None:
        mig_field = {
            "mig": {"backend": "Agent" if self.backend.agent_partitions else "MigManager", **mig}
        }
        spec = {
            "nodeSelector": {"pool": "a100"},
            "tier": "Reserved",
            "prices": [{"from": "2026-01-01", "perGPUHour": "2.00"}],
            **(mig_field if mig else {}),
        }
        self.kube.put(ACCELERATOR_POOLS, {"metadata": {"name": "a100"}, "spec": spec}, "kubectl")

    def serve(
        self, name: str, uri: str, min_replicas: int, namespace: str = "team-a", **spec: Any
    ) -> None:
        """Apply a service with this number of replicas and almost no load."""
        body = {
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "model": {"uri": uri},
                "placement": {"mig": "Auto"},
                "scaling": {"minReplicas": min_replicas, "maxReplicas": min_replicas},
                **spec,
            },
        }
        self.min_replicas[Ref(namespace, name)] = min_replicas
        self.kube.put(INFERENCE_SERVICES, body, "kubectl")

    async def remove(self, name: str, namespace: str = "team-a") -> None:
        """Delete a service; the garbage collector deletes its Deployments."""
        del self.min_replicas[Ref(namespace, name)]
        for key in [*self.kube.objects]:
            if key.plural == INFERENCE_SERVICES.plural and key.name == name:
                await self.kube.delete(INFERENCE_SERVICES, key)
            elif key.plural == DEPLOYMENTS.plural and key.name.startswith(f"{name}-"):
                await self.kube.delete(DEPLOYMENTS, key)

    # Time

    async def tick(self) -> int:
        """Step every process once; return the operator's writes plus the kills."""
        self.ticks += 1
        deaths = self.deaths
        writes = await self._operate()
        for machine in self.machines:
            await machine.run_agent()
        self.kube.at += timedelta(seconds=TICK)
        await self.kube.step()
        for machine in self.machines:
            await machine.step(TICK)
        return writes + self.deaths - deaths

    async def _operate(self) -> int:
        if self.ticks < self._next_start:
            return 1
        self.operator = self.operator or KillableOperator(
            self.kube, self.injector, node_agents=self.node_agents, gateways=self.gateways
        )
        try:
            writes = await self.operator.reconcile()
            self.operator.observations.readings = self._readings()
            return writes
        except BaseExceptionGroup as group:
            if group.split(KilledError)[1] is not None:
                raise
        except KilledError:
            pass
        await self.operator.stop()
        self.operator = None
        self._operator_kills, self._next_start = (
            self._operator_kills + 1,
            self.ticks + self.restart_ticks + 1,
        )
        return 1

    @property
    def deaths(self) -> int:
        return self._operator_kills + sum(machine.deaths for machine in self.machines)

    def _readings(self) -> Readings:
        """Return the readings for the next cycle; the first cycle of a new operator has none."""
        serving = {key: pod for key, pod in self.kube.pods() if pod.takes_requests}
        reading = PodReading(waiting=0.0, running=0.5, activity=0.5)
        engines = {
            pod.ref: EngineReading(
                steps=1.0 if key in self.kube.stalled else 1.0 + self.ticks,
                scraped_at=self.kube.at,
            )
            for key, pod in serving.items()
            if self.kube.stalled
        }
        pods = {pod.ref: reading for pod in serving.values()}
        return Readings(at=self.kube.at, pods=pods, engines=engines)

    async def run_until_quiet(self, ticks: int = 500) -> None:
        """Step until nothing changes; fail after this number of ticks with an operator."""
        quiet, end = 0, self.ticks + ticks
        while self.ticks < end + self._operator_kills * self.restart_ticks:
            before = self.kube.version
            writes = await self.tick()
            busy = writes or self._changed_since(before) or self.mig.units or self.mig.proposed
            quiet = 0 if busy else quiet + 1
            if quiet >= QUIET:
                return
        raise InvariantError(f"not quiet after {ticks} ticks: {self.describe()}")

    def _changed_since(self, version: int) -> bool:
        """Return whether more than the heartbeat of an agent changed."""
        changes = takewhile(lambda change: change[0] > version, reversed(self.kube.history))
        return any(key.plural != NODE_LAYOUTS.plural for _, key, _ in changes)

    async def close(self) -> None:
        if self.operator is not None:
            await self.operator.stop()

    # Observations

    @property
    def mig(self) -> MigStatus:
        status = self.kube.objects.get(_POOL, {}).get("status", {}).get("mig")
        return MigStatus.model_validate(status) if status else MigStatus()

    @property
    def reason(self) -> str:
        """The reason of the condition LayoutReady."""
        conditions = self.kube.objects.get(_POOL, {}).get("status", {}).get("conditions", ())
        return next(
            (condition["reason"] for condition in conditions if condition["type"] == "LayoutReady"),
            "",
        )

    def describe(self) -> list[str]:
        """Describe the pool, its units and its pods."""
        conditions = self.kube.objects.get(_POOL, {}).get("status", {}).get("conditions", ())
        pods = [
            f"{key.name} on {pod.node}, {'ready' if pod.takes_requests else 'not ready'}"
            for key, pod in self.kube.pods()
        ]
        units = [f"{unit.node} {unit.phase}: {unit.message}" for unit in self.mig.units]
        return [
            *(
                f"{condition['type']} {condition['reason']}: {condition['message']}"
                for condition in conditions
            ),
            *units,
            *pods,
        ]

    # Invariants

    def check(self, reason: str) -> None:
        """Check the final reason, and that no invariant was broken on the way."""
        assert self.reason == reason, self.describe()
        assert not self.mig.units, self.describe()
        if reason == "AsPlanned":
            self._check_layouts()
            self._check_services()
        for machine in self.machines:
            taints = self.kube.objects[machine.key]["spec"].get("taints", [])
            assert TAINT not in [taint["key"] for taint in taints], machine.name
            assert not machine.gpu_driver.refused_destructions, (
                machine.gpu_driver.refused_destructions
            )
        self.replay()

    def _check_layouts(self) -> None:
        target = self.mig.target
        assert target is not None, self.describe()
        planned = {(node.node, gpu.gpu): gpu.slices for node in target.nodes for gpu in node.gpus}
        for machine in self.machines:
            for index, layout in machine.layouts().items():
                wanted = planned[machine.name, index]
                if self.backend.agent_partitions:
                    actual = Counter(
                        f"{placement.profile}@{placement.start}" for placement in layout
                    )
                else:
                    actual = Counter(dict(geometry(layout)))
                assert actual == Counter(wanted), (machine.name, index, self.describe())

    def _check_services(self) -> None:
        target = self.mig.target
        assert target is not None
        planned = profiles_by_service(target.services)
        for service, min_replicas in self.min_replicas.items():
            pods = [pod for _, pod in self.kube.pods() if pod.service == service]
            profiles = {profile_of(A100, device) for pod in pods for device in pod.devices}
            assert profiles == planned[str(service)], (service, self.describe())
            assert len(pods) >= min_replicas, (service, self.describe())
            assert all(pod.takes_requests for pod in pods), (service, self.describe())

    def replay(self) -> None:
        """Check every version of the cluster: a service that once had its minimum keeps it."""
        pods: dict[ObjectKey, Pod] = {}
        had: Counter[Ref] = Counter()
        for version, key, seen in self.kube.history:
            if key.plural != PODS.plural:
                continue
            if seen is None or not isinstance(seen.plan_input, Pod):
                pods.pop(key, None)
            else:
                pods[key] = seen.plan_input
            ready = Counter(pod.service for pod in pods.values() if pod.takes_requests)
            for service, min_replicas in self.min_replicas.items():
                had[service] = max(had[service], min(min_replicas, ready[service]))
                if ready[service] < had[service]:
                    raise InvariantError(
                        f"at version {version} {service} has {ready[service]} of {had[service]}"
                    )
