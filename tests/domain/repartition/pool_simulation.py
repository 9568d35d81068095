"""A pool in memory on which rollouts are played: nodes, pods, Deployments, and what cuts GPUs.

Whoever may choose chooses by a seeded lot: which node a pod gets, which device, who starts first.
After every single write it is checked that no service lost what it has to keep, and whenever a GPU
is cut that nobody sat on what went.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

from tessera.api.mig import GpuTarget, Mig, MigPlan, MigStatus, NodeTarget
from tessera.api.node_layout import DesiredGpu, NodeLayoutSpec, PlacedSlice
from tessera.api.reasons import LayoutReady, StatusVerdict
from tessera.api.ref import Ref
from tessera.domain.mig.gpu_models import GpuModel
from tessera.domain.mig.layouts import Layout, SlicePlacement, geometry, layout_error
from tessera.domain.mig_backends.backend import (
    BackendRequest,
    BackendStatus,
    Capabilities,
    GeometryBackend,
    LayoutsByGpu,
)
from tessera.domain.mig_backends.nodes import GpuInstance, MigGpu, MigNode
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.domain.repartition.actions import PoolActions, PoolService, Replica
from tessera.domain.repartition.rollout import RolloutInputs, advance_rollout
from tests.mig_builders import A100

START = datetime(2026, 11, 20, 12, tzinfo=UTC)
TICK = timedelta(seconds=5)
# Ticks that a pod needs to be Ready, to end its requests, and to go when it is deleted.
STARTING, DRAINING, ENDING = 3, 2, 1


class HarmError(AssertionError):
    """Somebody was hurt."""


@dataclass(slots=True)
class SimPod:
    ref: Ref
    uid: str
    service: str
    profile: str
    node: str | None = None
    seat: tuple[int, SlicePlacement] | None = None
    age: int = 0
    """Ticks since it got its device."""
    told: int | None = None
    """Ticks since it was told to leave."""
    deleted: int | None = None

    @property
    def leaving(self) -> bool:
        return self.told is not None or self.deleted is not None

    @property
    def ready(self) -> bool:
        return self.seat is not None and self.age >= STARTING and not self.leaving

    @property
    def empty(self) -> bool:
        quiet = self.told is not None and self.told >= DRAINING
        return self.leaving and (quiet or self.age < STARTING)


@dataclass(slots=True)
class SimService:
    name: str
    profile: str | None
    """The planned one."""
    wanted: int
    floor: float
    capacity: Mapping[str, float]
    downtime: bool = False
    protected: bool = False
    """A PodDisruptionBudget forbids every eviction."""


@dataclass(slots=True)
class SimNode:
    name: str
    gpus: dict[int, Layout]
    ready: bool = True
    tainted: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    layout: NodeLayoutSpec | None = None
    paused: int = 0
    """Ticks for which no pod gets a device."""
    faults: dict[int, tuple[str, str]] = field(default_factory=dict)


class World:
    """What the API server and the machines hold; the operator keeps nothing."""

    def __init__(
        self,
        nodes: Mapping[str, Sequence[Layout]],
        backend: GeometryBackend,
        far_end: "FarEnd",
        *,
        seed: int = 0,
        board: GpuModel = A100,
        mig: Mig | None = None,
    ) -> None:
        self.nodes = {
            name: SimNode(name, dict(enumerate(layouts))) for name, layouts in nodes.items()
        }
        self.board, self.backend, self.far_end = board, backend, far_end
        self.mig = mig or Mig(layout={})
        self.services: dict[str, SimService] = {}
        self.pods: dict[Ref, SimPod] = {}
        self.scale: dict[tuple[str, str], int] = {}
        self.status = MigStatus()
        self.at = START
        self.lot = random.Random(seed)  # noqa: S311 - no secret
        self.made = 0
        self.written = 0
        self.evictions = 0
        self.cuts = 0

    # What it is made of

    def serve(
        self, service: SimService, seats: Sequence[tuple[str, int, SlicePlacement]] = ()
    ) -> None:
        """A service with Ready pods on these seats."""
        self.services[service.name] = service
        for node, gpu, spot in seats:
            pod = self._pod(service.name, spot.profile)
            pod.node, pod.seat, pod.age = node, (gpu, spot), STARTING
        held = Counter(spot.profile for _, _, spot in seats)
        for profile, count in held.items():
            self.scale[service.name, profile] = count
        if service.profile is not None:
            self.scale[service.name, service.profile] = service.wanted

    def foreign(self, name: str, node: str, gpu: int, spot: SlicePlacement) -> Ref:
        pod = self._pod("", spot.profile, Ref("other", name))
        pod.node, pod.seat, pod.age = node, (gpu, spot), STARTING
        return pod.ref

    def _pod(self, service: str, profile: str, ref: Ref | None = None) -> SimPod:
        self.made += 1
        name = ref or Ref("team", f"{service}-{self.made}")
        self.pods[name] = SimPod(name, f"uid-{self.made}", service, profile)
        return self.pods[name]

    def plan(self, target: Mapping[str, Sequence[Sequence[str]]], name: str = "plan-1") -> None:
        """By node, for each GPU its slices."""
        self.status = MigStatus(target=a_plan(target, name), units=self.status.units)

    # What is seen of it

    def grounds(self) -> tuple[MigNode, ...]:
        return tuple(self._ground(node) for _, node in sorted(self.nodes.items()))

    def _ground(self, node: SimNode) -> MigNode:
        knows = self.backend.capabilities.knows_pods
        at = {(pod.node, pod.seat): pod.ref for pod in self.pods.values() if pod.seat}
        cards = tuple(
            MigGpu(
                index=gpu,
                uuid=f"GPU-{node.name}-{gpu}" if knows else "",
                instances=tuple(
                    GpuInstance(
                        placement=spot,
                        holders=(at[node.name, (gpu, spot)],)
                        if knows and (node.name, (gpu, spot)) in at
                        else (),
                    )
                    for spot in layout
                ),
                fault=node.faults.get(gpu, (None, ""))[0],
                message=node.faults.get(gpu, (None, ""))[1],
            )
            for gpu, layout in sorted(node.gpus.items())
        )
        return MigNode(
            name=node.name,
            gpu_model=self.board,
            ready=node.ready,
            gpus=cards,
            reports_pods=knows,
            can_partition=knows,
            tainted=node.tainted,
            labels=dict(node.labels),
            node_layout=ObservedNodeLayout(name=node.name, generation=1, spec=node.layout)
            if node.layout is not None
            else None,
            allocatable={} if node.paused else self._allocatable(node),
        )

    def _allocatable(self, node: SimNode) -> Counter[str]:
        return Counter(spot.profile for layout in node.gpus.values() for spot in layout)

    def tenants(self) -> tuple[PoolService, ...]:
        return tuple(
            PoolService(
                ref=Ref("team", one.name),
                replicas=tuple(
                    Replica(
                        pod=pod.ref,
                        uid=pod.uid,
                        node=pod.node,
                        profile=pod.profile,
                        ready=pod.ready,
                        draining=pod.leaving,
                        drained=pod.empty,
                        terminating=pod.deleted is not None,
                    )
                    for pod in self.pods.values()
                    if pod.service == one.name
                ),
                min_capacity=one.floor,
                capacity=one.capacity,
                desired_replicas=one.wanted,
                profile=one.profile,
                allows_downtime=one.downtime,
            )
            for one in self.services.values()
        )

    def scene(self) -> RolloutInputs:
        return RolloutInputs(
            pool="mosaic",
            mig=self.mig,
            status=self.status,
            nodes=self.grounds(),
            services=self.tenants(),
            backend=self.backend,
            own_pods={pod.ref for pod in self.pods.values() if pod.service},
            at=self.at,
        )

    def served(self) -> dict[str, float]:
        found = dict.fromkeys(self.services, 0.0)
        for pod in self.pods.values():
            if pod.ready and pod.service:
                found[pod.service] += self.services[pod.service].capacity[pod.profile]
        return found

    # What happens to it

    def turn(
        self, until: int | None = None, seen: RolloutInputs | None = None
    ) -> tuple[PoolActions, int]:
        """One turn of an operator that was just started, killed before its write `until`.

        What it sees may be older than what there is.
        """
        orders = advance_rollout(seen or self.scene())
        writes = list(self._writes(orders))
        for write in writes[:until]:
            with self.nobody_hurt("a write"):
                write()
            self.written += 1
        return orders, len(writes)

    def nobody_hurt(self, by: str) -> "_Watch":
        return _Watch(self, by)

    def _writes(self, orders: PoolActions) -> Iterator[Callable[[], object]]:
        """In the order in which they have to be made; what is so already is not written."""
        if orders.status is not None and orders.status != self.status:
            yield partial(setattr, self, "status", orders.status)
        for name, node in self.nodes.items():
            if node.tainted != (name in orders.tainted_nodes):
                yield partial(setattr, node, "tainted", name in orders.tainted_nodes)
        for key, count in sorted(self._scales(orders).items()):
            if self.scale.get(key) != count:
                yield partial(self.scale.__setitem__, key, count)
        for ref in sorted(orders.draining):
            if ref in self.pods and self.pods[ref].told is None:
                yield partial(setattr, self.pods[ref], "told", 0)
        for ref, uid in sorted(orders.evictions.items()):
            if ref in self.pods and self.pods[ref].deleted is None:
                yield partial(self._evict, ref, uid)
        yield from self._asked(orders)

    def _asked(self, orders: PoolActions) -> Iterator[Callable[[], object]]:
        for name, ask in sorted(orders.requests.items()):
            node = self.nodes[name]
            if any(node.labels.get(key) != value for key, value in ask.labels.items()):
                yield partial(self._label, node, ask)
            if ask.layout_spec is not None and ask.layout_spec != node.layout:
                yield partial(setattr, node, "layout", ask.layout_spec)

    @staticmethod
    def _label(node: SimNode, ask: BackendRequest) -> None:
        for key, value in ask.labels.items():
            if value is None:
                node.labels.pop(key, None)
            else:
                node.labels[key] = value

    def _scales(self, orders: PoolActions) -> dict[tuple[str, str], int]:
        """Every Deployment has what is wanted, and one more for each pod that is to go."""
        found = {}
        going = Counter(
            (self.pods[ref].service, self.pods[ref].profile) for ref in orders.displaced
        )
        for service, profile in {*self.scale, *going}:
            one = self.services[service]
            kept = one.profile is None or one.profile == profile
            found[service, profile] = (one.wanted if kept else 0) + going[service, profile]
        return found

    def _evict(self, ref: Ref, uid: str) -> None:
        pod = self.pods[ref]
        assert pod.uid == uid
        self.evictions += 1
        if not self.services[pod.service].protected:
            pod.deleted = 0

    def tick(self) -> None:
        """What the cluster does in five seconds."""
        self.at += TICK
        with self.nobody_hurt("the cluster"):
            self._ends()
            self._replicas()
            self._schedules()
            self._runs()
        for name in sorted(self.nodes):
            self.far_end(self, self.nodes[name])

    def _ends(self) -> None:
        for pod in list(self.pods.values()):
            if pod.told is not None:
                pod.told += 1
            if pod.deleted is not None:
                pod.deleted += 1
                if pod.deleted > ENDING:
                    del self.pods[pod.ref]

    def _replicas(self) -> None:
        for (service, profile), count in sorted(self.scale.items()):
            alive = [
                pod
                for pod in self.pods.values()
                if (pod.service, pod.profile, pod.deleted) == (service, profile, None)
            ]
            for _ in range(count - len(alive)):
                self._pod(service, profile)
            self.lot.shuffle(alive)
            alive.sort(key=lambda pod: (pod.node is not None, pod.seat is not None, pod.ready))
            for pod in alive[: max(0, len(alive) - count)]:
                pod.deleted = 0

    def _schedules(self) -> None:
        waiting = [pod for pod in self.pods.values() if pod.node is None]
        self.lot.shuffle(waiting)
        for pod in waiting:
            if pod.deleted is not None:
                continue
            fits = [
                node.name
                for node in self.nodes.values()
                if node.ready
                and not node.tainted
                and not node.paused
                and self._allocatable(node)[pod.profile]
                > sum(
                    one.node == node.name and one.profile == pod.profile
                    for one in self.pods.values()
                )
            ]
            if fits:
                pod.node = self.lot.choice(sorted(fits))

    def _runs(self) -> None:
        for pod in self.pods.values():
            if pod.node is None:
                continue
            node = self.nodes[pod.node]
            if pod.seat is None and not node.paused and pod.deleted is None:
                taken = {one.seat for one in self.pods.values() if one.node == pod.node}
                free = [
                    (gpu, spot)
                    for gpu, layout in sorted(node.gpus.items())
                    for spot in layout
                    if spot.profile == pod.profile and (gpu, spot) not in taken
                ]
                pod.seat = self.lot.choice(free) if free else None
            elif pod.seat is not None:
                pod.age += 1

    def cut(self, node: SimNode, gpu: int, layout: Layout) -> None:
        """Slices that stay at their places are left alone."""
        assert layout_error(self.board, layout) is None
        gone = set(node.gpus[gpu]) - set(layout)
        for pod in self.pods.values():
            if pod.node == node.name and pod.seat and pod.seat[0] == gpu and pod.seat[1] in gone:
                raise HarmError(f"{pod.ref} sat on {pod.seat}")
        node.gpus[gpu] = tuple(sorted(layout))
        self.cuts += 1

    def rebuild(self, node: SimNode, gpu: int, layout: Layout) -> None:
        """The whole GPU is cleared first."""
        self.cut(node, gpu, ())
        self.cut(node, gpu, layout)

    # Until it is quiet

    def play(self, ticks: int = 400, killed: int | None = None) -> PoolActions:
        """Until nothing changes any more; the last orders.

        The operator is killed before its write number `killed`, and is away for a tick then.
        """
        quiet = 0
        for _ in range(ticks):
            until = None if killed is None else max(0, killed - self.written)
            orders, writes = self.turn(until)
            died = until is not None and until < writes
            killed = None if died else killed
            before = self._state()
            self.tick()
            quiet = 0 if writes or died or before != self._state() else quiet + 1
            if quiet > 5 and orders.status is not None and not orders.status.units:
                return orders
        raise HarmError(f"no rest after {ticks} ticks: {orders.verdict}")

    def _state(self) -> object:
        pods = sorted(
            (pod.ref, pod.node, pod.seat, pod.ready, pod.deleted) for pod in self.pods.values()
        )
        return repr((pods, [(node.gpus, node.labels) for node in self.nodes.values()]))

    def layouts(self) -> dict[str, list[list[str]]]:
        return {
            name: [shown(layout) for _, layout in sorted(node.gpus.items())]
            for name, node in sorted(self.nodes.items())
        }

    def counts(self) -> dict[str, list[object]]:
        return {
            name: [geometry(layout) for _, layout in sorted(node.gpus.items())]
            for name, node in sorted(self.nodes.items())
        }


class _Watch:
    """Before and after: nobody may have lost what he has to keep."""

    def __init__(self, world: World, by: str) -> None:
        self._world, self._by = world, by

    def __enter__(self) -> None:
        self._before = self._world.served()

    def __exit__(self, *_: object) -> None:
        after = self._world.served()
        for name, service in self._world.services.items():
            least = 0.0 if service.downtime else min(self._before[name], service.floor)
            if after[name] < least - 1e-6:
                raise HarmError(
                    f"{self._by} left {name} with {after[name]} of {self._before[name]}, "
                    f"its floor is {service.floor}"
                )


FarEnd = Callable[[World, SimNode], None]


def shown(layout: Layout) -> list[str]:
    return [f"{spot.profile}@{spot.start}" for spot in layout]


def spots(*tiles: str) -> Layout:
    parts = [tile.partition("@") for tile in tiles]
    return tuple(sorted(SlicePlacement(int(start), profile) for profile, _, start in parts))


def a_plan(target: Mapping[str, Sequence[Sequence[str]]], name: str = "plan-1") -> MigPlan:
    return MigPlan(
        name=name,
        at=START,
        gpus_before=0,
        gpus_after=0,
        per_hour_before="0",
        per_hour_after="0",
        lower_bound="0",
        gap="0",
        nodes=tuple(
            NodeTarget(
                node=node,
                gpus=tuple(
                    GpuTarget(gpu=gpu, slices=tuple(slices)) for gpu, slices in enumerate(gpus)
                ),
            )
            for node, gpus in target.items()
        ),
    )


class Whole:
    """Rebuilds GPUs that nobody uses, by counts, while its node starts nothing."""

    def __init__(self, *, knows_pods: bool = False, fails: int = 0) -> None:
        self.capabilities = Capabilities(
            pinned_starts=False, sibling_safe=False, knows_pods=knows_pods
        )
        self.fails = fails
        """Attempts that fail before one succeeds."""

    def request(self, node: MigNode, desired: LayoutsByGpu, attempt: int) -> BackendRequest:  # noqa: ARG002
        cut = ";".join(f"{gpu}:{'+'.join(shown(one))}" for gpu, one in sorted(desired.items()))
        return BackendRequest(labels={"want": cut, "attempt": str(attempt)})

    def status(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, since: datetime, at: datetime
    ) -> BackendStatus:
        asked = self.request(node, desired, attempt).labels["want"]
        there = {card.index: geometry(card.layout) for card in node.gpus}
        if node.labels.get("want", asked) == asked and all(
            there.get(gpu) == geometry(one) for gpu, one in desired.items()
        ):
            return BackendStatus(done=bool(node.allocatable) or not any(desired.values()))
        if node.labels.get("failed") == str(attempt):
            return BackendStatus(retry=True)
        if at - since > timedelta(minutes=20):
            return BackendStatus(
                problem=StatusVerdict(LayoutReady.BACKEND_TIMEOUT, "nothing happens")
            )
        return BackendStatus()

    def __call__(self, world: World, node: SimNode) -> None:
        """The far end: a tick of notice, then all at once."""
        if not (want := node.labels.get("want")):
            return
        if node.paused:
            node.paused -= 1
            return
        if int(node.labels["attempt"]) <= self.fails:
            node.labels["failed"] = node.labels["attempt"]
            return
        for part in want.split(";"):
            gpu, _, tiles = part.partition(":")
            layout = spots(*tiles.split("+")) if tiles else ()
            if geometry(layout) != geometry(node.gpus[int(gpu)]):
                world.rebuild(node, int(gpu), layout)
                node.paused = 2


class Pinned:
    """Cuts slice by slice, at exact places, beside neighbours that run."""

    capabilities = Capabilities(pinned_starts=True, sibling_safe=True, knows_pods=True)

    def request(self, node: MigNode, desired: LayoutsByGpu, attempt: int) -> BackendRequest:  # noqa: ARG002
        uuids = {card.index: card.uuid for card in node.gpus}
        return BackendRequest(
            layout_spec=NodeLayoutSpec(
                gpus=tuple(
                    DesiredGpu(
                        uuid=uuids[gpu],
                        slices=tuple(
                            PlacedSlice(profile=spot.profile, start=spot.start) for spot in layout
                        ),
                    )
                    for gpu, layout in sorted(desired.items())
                )
            )
        )

    def status(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, since: datetime, at: datetime
    ) -> BackendStatus:
        del since, at
        asked = self.request(node, desired, attempt).layout_spec or NodeLayoutSpec()
        there = {card.index: card.layout for card in node.gpus}
        named = {one.uuid: one for one in node.node_layout.spec.gpus} if node.node_layout else {}
        still = all(named.get(one.uuid, one) == one for one in asked.gpus)
        return BackendStatus(
            done=still and all(there.get(gpu) == one for gpu, one in desired.items())
        )

    def __call__(self, world: World, node: SimNode) -> None:
        """The far end: one slice of each GPU in a tick."""
        for wanted in node.layout.gpus if node.layout else ():
            gpu = int(wanted.uuid.rpartition("-")[2])
            want = {SlicePlacement(one.start, one.profile) for one in wanted.slices}
            have = set(node.gpus[gpu])
            if gone := sorted(have - want):
                world.cut(node, gpu, tuple(have - {gone[0]}))
            elif new := sorted(want - have):
                world.cut(node, gpu, tuple(sorted(have | {new[0]})))
