"""The whole operator over a cluster in memory, and what has to hold whatever was killed."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tessera.api.mig import MigStatus
from tessera.api.ref import Ref
from tessera.domain.config import Config
from tessera.domain.layout.problem import LayoutProblem, LayoutSolution
from tessera.domain.layout.solution import solve
from tessera.domain.mig.layouts import geometry
from tessera.domain.mig_backends.devices import profile_of
from tessera.domain.names import PORT
from tessera.domain.observed.model_reports import FetchProgress
from tessera.domain.observed.node_layout import TAINT
from tessera.domain.observed.runner_reports import RunnerProgress
from tessera.domain.observed.snapshot import Pod, PodReading, Readings
from tessera.reconcile.apply import Applier
from tessera.reconcile.cycle import FleetReconciler
from tessera.reconcile.layout_solving import BackgroundPlanner
from tessera.reconcile.observe import Observations
from tessera.reconcile.prober import Prober
from tessera.reconcile.reflector import Reflector
from tessera.reconcile.store import Store
from tessera.resources.api_resources import (
    ACCELERATOR_POOLS,
    INFERENCE_SERVICES,
    KINDS,
    PODS,
    WATCHED,
)
from tessera.resources.batch_job import RunnerImage
from tessera.resources.manifest import ObjectKey
from tests.mig_builders import A100
from tests.repartition.fuse import Fuse, KilledError, Life, MortalCluster
from tests.repartition.kube import Kube
from tests.repartition.machine import HarmError, Machine, WatchedSilicon
from world.mig_manager import MigManager

TICK = 5.0
# Ticks without a write after which a fleet has come to rest.
QUIET = 8
_POOL = ObjectKey(ACCELERATOR_POOLS.plural, "", "a100")
_known: list[LayoutSolution] = []


class Planner:
    """Answers at once, and equal questions with the same answer."""

    async def solve(self, question: LayoutProblem) -> LayoutSolution:
        for known in _known:
            if known.problem == question:
                return known
        _known.append(solve(question))
        return _known[-1]


# So long the last requests of a replica take that gets no new ones.
DRAINED = timedelta(seconds=12)


@dataclass(frozen=True, slots=True)
class Engines:
    """Engines that answer."""

    kube: Kube

    async def probe(self, base: str, model: str) -> str | None:
        del base, model
        return None

    async def in_flight(self, address: str) -> int | None:
        """One request until it has ended."""
        pod = next(pod for _, pod in self.kube.pods() if f"{pod.address}:{PORT}" == address)
        over = pod.draining_since is not None and self.kube.at - pod.draining_since >= DRAINED
        return 0 if over or not pod.containers_ready else 1

    async def fetch_progress(self, address: str) -> FetchProgress | None:
        del address
        return None

    async def progress(self, address: str) -> RunnerProgress | None:
        del address
        return None


class Operator:
    """One process; what it knows goes with it."""

    def __init__(self, kube: Kube, fuse: Fuse) -> None:
        cluster = MortalCluster(kube, Life("operator", fuse))
        store, senses = Store(KINDS), Observations()
        self.senses = senses

        def now() -> datetime:
            return kube.at

        def wake() -> None:
            """It takes a turn in every tick."""

        self._asker = Prober(Engines(kube), senses, now, wake)
        self._planning = BackgroundPlanner(Planner(), senses, now, wake)
        self._mirror = Reflector(cluster, store, senses, wake)
        self._seeded = False
        config = Config(mig_backends=frozenset({"Agent", "MigManager"}))
        self._fleet = FleetReconciler(
            config,
            store,
            senses,
            Applier(
                config,
                cluster,
                store,
                ingress_namespaces=("tessera-system",),
                batch_image=RunnerImage("tessera/batch:test"),
                mig_namespace="gpu-operator",
                is_leader=lambda: True,
            ),
            self._asker,
            now,
            background_planner=self._planning,
        )

    async def turn(self) -> int:
        """Its writes."""
        if not self._seeded:
            await self._mirror.list_all()
            self._seeded = True
        for kind in WATCHED:
            await self._mirror.watch(kind)
        outcome = await self._fleet.reconcile()
        assert not outcome.problems, outcome.problems
        for _ in range(3):  # questions to engines and to the planner are answered
            await asyncio.sleep(0)
        return outcome.writes

    async def stop(self) -> None:
        await self._asker.stop()
        await self._planning.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Who cuts, and who tells of it."""

    name: str
    looks: bool = False
    cuts: bool = False


BACKENDS = {
    one.name: one
    for one in (
        Backend(name="mig-manager"),
        Backend(name="mig-manager, with agents that look", looks=True),
        Backend(name="agent", looks=True, cuts=True),
    )
}


@dataclass(slots=True, kw_only=True)
class World:
    """The cluster, its nodes, and the operator that runs now."""

    kube: Kube
    machines: list[Machine]
    fuse: Fuse
    backend: Backend
    operator: Operator | None = None
    ticks: int = 0
    away: int = 0
    """Ticks until a new operator begins."""
    _killed: int = 0
    _due: int = 0
    floors: dict[Ref, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        backend: Backend,
        nodes: Sequence[Sequence[list[tuple[str, int]]]],
        seed: int = 0,
        names: Mapping[str, str] | None = None,
    ) -> "World":
        kube = Kube(seed)
        fuse = Fuse(state=lambda: ())
        machines = [
            Machine(
                name=f"a100-{at}",
                kube=kube,
                silicon=WatchedSilicon(f"a100-{at}", layouts),
                fuse=fuse,
                manager=None if backend.cuts else MigManager(),
                looks=backend.looks,
                cuts=backend.cuts,
                names=names or {},
            )
            for at, layouts in enumerate(nodes)
        ]
        made = cls(kube=kube, machines=machines, fuse=fuse, backend=backend)
        fuse.state = made.state
        made.pool()
        return made

    def state(self) -> tuple[object, ...]:
        """Changes with every change of anything outside of processes."""
        return (self.ticks, self.kube.version, *(one.silicon.version for one in self.machines))

    # What users do

    def pool(self, **mig: str) -> None:
        cut = {"mig": {"backend": "Agent" if self.backend.cuts else "MigManager", **mig}}
        spec = {
            "nodeSelector": {"pool": "a100"},
            "tier": "Reserved",
            "prices": [{"from": "2026-01-01", "perGPUHour": "2.00"}],
            **(cut if mig else {}),
        }
        self.kube.put(ACCELERATOR_POOLS, {"metadata": {"name": "a100"}, "spec": spec}, "kubectl")

    def serve(self, name: str, uri: str, floor: int, **spec: Any) -> None:
        """With so many replicas at every moment, and next to nothing to do."""
        body = {
            "metadata": {"name": name, "namespace": "team-a"},
            "spec": {
                "model": {"uri": uri},
                "placement": {"mig": "Auto"},
                "scaling": {"minReplicas": floor, "maxReplicas": floor},
                **spec,
            },
        }
        self.floors[Ref("team-a", name)] = floor
        self.kube.put(INFERENCE_SERVICES, body, "kubectl")

    # What happens

    async def tick(self) -> int:
        """Everybody once; the writes of the operator, with those who were killed or are away."""
        self.ticks += 1
        deaths = self.deaths
        writes = await self._operate()
        for machine in self.machines:
            await machine.look()
        self.kube.at += timedelta(seconds=TICK)
        await self.kube.step()
        for machine in self.machines:
            await machine.step(TICK)
        return writes + self.deaths - deaths

    async def _operate(self) -> int:
        if self.ticks < self._due:
            return 1
        self.operator = self.operator or Operator(self.kube, self.fuse)
        try:
            writes = await self.operator.turn()
            self.operator.senses.readings = self._readings()
            return writes
        except BaseExceptionGroup as group:
            if group.split(KilledError)[1] is not None:
                raise
        except KilledError:
            pass
        await self.operator.stop()
        self.operator = None
        self._killed, self._due = self._killed + 1, self.ticks + self.away + 1
        return 1

    @property
    def deaths(self) -> int:
        return self._killed + sum(one.deaths for one in self.machines)

    def _readings(self) -> Readings:
        """What Prometheus says until the next turn; of a new operator the first knows nothing."""
        serving = [pod for _, pod in self.kube.pods() if pod.takes_requests]
        return Readings(
            at=self.kube.at,
            pods={pod.ref: PodReading(waiting=0.0, running=0.5, activity=0.5) for pod in serving},
        )

    async def settle(self, ticks: int = 500) -> None:
        """Until nothing changes any more, in so many ticks with an operator."""
        quiet, end = 0, self.ticks + ticks
        while self.ticks < end + self._killed * self.away:
            before = self.kube.version
            writes = await self.tick()
            busy = writes or before != self.kube.version or self.mig.units or self.mig.proposed
            quiet = 0 if busy else quiet + 1
            if quiet >= QUIET:
                return
        raise HarmError(f"no rest after {ticks} ticks: {self.told()}")

    async def close(self) -> None:
        if self.operator is not None:
            await self.operator.stop()

    # What is seen

    @property
    def mig(self) -> MigStatus:
        status = self.kube.objects[_POOL].get("status", {}).get("mig")
        return MigStatus.model_validate(status) if status else MigStatus()

    @property
    def reason(self) -> str:
        """What is said of the layouts."""
        conditions = self.kube.objects[_POOL].get("status", {}).get("conditions", ())
        return next((one["reason"] for one in conditions if one["type"] == "LayoutReady"), "")

    def told(self) -> list[str]:
        """Of the pool, and what is not in order."""
        conditions = self.kube.objects[_POOL].get("status", {}).get("conditions", ())
        pods = [
            f"{key.name} on {pod.node}, {'ready' if pod.takes_requests else 'not ready'}"
            for key, pod in self.kube.pods()
        ]
        units = [f"{one.node} {one.phase}: {one.message}" for one in self.mig.units]
        return [
            *(f"{one['type']} {one['reason']}: {one['message']}" for one in conditions),
            *units,
            *pods,
        ]

    # What has to hold

    def check(self, reason: str) -> None:
        """It ended with this word, and nobody was hurt on the way."""
        assert self.reason == reason, self.told()
        assert not self.mig.units, self.told()
        if reason == "AsPlanned":
            self._check_layouts()
            self._check_services()
        for machine in self.machines:
            taints = self.kube.objects[machine.key]["spec"].get("taints", [])
            assert TAINT not in [one["key"] for one in taints], machine.name
            assert not machine.silicon.tried, machine.silicon.tried
        self.replay()

    def _check_layouts(self) -> None:
        target = self.mig.target
        assert target is not None, self.told()
        planned = {(node.node, gpu.gpu): gpu.slices for node in target.nodes for gpu in node.gpus}
        for machine in self.machines:
            for index, layout in machine.layouts().items():
                wanted = planned[machine.name, index]
                if self.backend.cuts:
                    found = Counter(f"{spot.profile}@{spot.start}" for spot in layout)
                else:
                    found = Counter(dict(geometry(layout)))
                assert found == Counter(wanted), (machine.name, index, self.told())

    def _check_services(self) -> None:
        target = self.mig.target
        assert target is not None
        given = {one.service: one for one in target.services}
        for service, floor in self.floors.items():
            pods = [pod for _, pod in self.kube.pods() if pod.service == service]
            profiles = {profile_of(A100, name) for pod in pods for name in pod.devices}
            assert profiles == {given[str(service)].profile}, (service, self.told())
            assert len(pods) >= floor, (service, self.told())
            assert all(pod.takes_requests for pod in pods), (service, self.told())

    def replay(self) -> None:
        """Every version of the cluster: who had its floor once has it ever after."""
        pods: dict[ObjectKey, Pod] = {}
        had: Counter[Ref] = Counter()
        for version, key, seen in self.kube.history:
            if key.plural != PODS.plural:
                continue
            if seen is None or not isinstance(seen.value, Pod):
                pods.pop(key, None)
            else:
                pods[key] = seen.value
            ready = Counter(pod.service for pod in pods.values() if pod.takes_requests)
            for service, floor in self.floors.items():
                had[service] = max(had[service], min(floor, ready[service]))
                if ready[service] < had[service]:
                    raise HarmError(
                        f"at version {version} {service} has {ready[service]} of {had[service]}"
                    )
