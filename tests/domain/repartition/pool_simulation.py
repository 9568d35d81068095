"""A pool in memory for rollouts: nodes, pods, Deployments, and what partitions GPUs.

Free choices are made by a seeded generator: the node of a pod, its device, which pod starts first.
After every single write it is checked that no service went below its minimum, and whenever a GPU is
partitioned that no pod used a slice that was removed.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

from tessera.api.mig import GpuTarget, Mig, MigPlan, MigStatus, NodeTarget
from tessera.api.node_layout import DesiredGpu, NodeLayoutSpec, PlacedSlice
from tessera.api.pool_reasons import LayoutReady
from tessera.api.reasons import StatusVerdict
from tessera.api.ref import Ref
from tessera.domain.hardware.gpu_layouts import Layout, SlicePlacement, geometry, layout_error
from tessera.domain.hardware.gpu_models import GpuModel
from tessera.domain.mig_backends.backend import (
    BackendRequest,
    BackendStatus,
    Capabilities,
    GeometryBackend,
    LayoutsByGpu,
)
from tessera.domain.mig_backends.nodes import GpuInstance, MigGpu, MigNode
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.domain.observed.snapshot import Pod
from tessera.domain.repartition.actions import PoolActions, PoolService, Replica
from tessera.domain.repartition.rollout import RolloutInputs, advance_rollout
from tests.mig_builders import A100

START = datetime(2026, 11, 20, 12, tzinfo=UTC)
TICK = timedelta(seconds=5)
# Ticks that a pod needs to be Ready, to end its requests, and to go when it is deleted.
STARTING, DRAINING, ENDING = 3, 2, 1


class PoolInvariantError(AssertionError):
    """A service went below its minimum, or a slice in use was removed."""


@dataclass(slots=True)
class SimPod:
    ref: Ref
    uid: str
    service: str
    profile: str
    node: str | None = None
    slice: tuple[int, SlicePlacement] | None = None
    age: int = 0
    """Ticks since it got its device."""
    drain_ticks: int | None = None
    """Ticks since it drains."""
    deleted: int | None = None

    @property
    def leaving(self) -> bool:
        return self.drain_ticks is not None or self.deleted is not None

    @property
    def ready(self) -> bool:
        return self.slice is not None and self.age >= STARTING and not self.leaving

    @property
    def empty(self) -> bool:
        quiet = self.drain_ticks is not None and self.drain_ticks >= DRAINING
        return self.leaving and (quiet or self.age < STARTING)


@dataclass(slots=True)
class SimService:
    name: str
    profile: str | None
    """The planned one."""
    wanted: int
    min_capacity: float
    capacity: Mapping[str, float]
    downtime: bool = False
    protected: bool = False
    """A PodDisruptionBudget forbids every eviction."""
    busy: bool = False
    """Its engines always report requests."""
    broken: bool = False
    """New replicas never become Ready."""
    others: Mapping[str, int] = field(default_factory=dict)
    """Replicas of further planned profiles."""

    @property
    def planned(self) -> dict[str, int]:
        return {} if self.profile is None else {self.profile: self.wanted, **self.others}


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


class PoolSimulation:
    """State of the API server and the nodes; the operator has none of its own."""

    def __init__(
        self,
        nodes: Mapping[str, Sequence[Layout]],
        backend: GeometryBackend,
        executor: "LayoutExecutor",
        *,
        seed: int = 0,
        gpu_model: GpuModel = A100,
        mig: Mig | None = None,
    ) -> None:
        self.nodes = {
            name: SimNode(name, dict(enumerate(layouts))) for name, layouts in nodes.items()
        }
        self.gpu_model, self.backend, self.executor = gpu_model, backend, executor
        self.mig = mig or Mig(layout={})
        self.services: dict[str, SimService] = {}
        self.pods: dict[Ref, SimPod] = {}
        self.scale: dict[tuple[str, str], int] = {}
        self.status = MigStatus()
        self.at = START
        self.rng = random.Random(seed)  # noqa: S311 - no secret
        self.created_pods = 0
        self.writes = 0
        self.evictions = 0
        self.layout_changes = 0
        self.tolerant = False
        """Pods tolerate the taint of a repartition."""

    # Services and pods

    def serve(
        self, service: SimService, slices: Sequence[tuple[str, int, SlicePlacement]] = ()
    ) -> None:
        """Add a service with Ready pods on these slices."""
        self.services[service.name] = service
        for node, gpu, placement in slices:
            pod = self._pod(service.name, placement.profile)
            pod.node, pod.slice, pod.age = node, (gpu, placement), STARTING
        counts = Counter(placement.profile for _, _, placement in slices)
        for profile, count in counts.items():
            self.scale[service.name, profile] = count
        for profile, wanted in service.planned.items():
            # Those beyond the planned ones stay until the first cycle decides.
            current = counts[profile] if service.others else 0
            self.scale[service.name, profile] = max(wanted, current)

    def foreign(self, name: str, node: str, gpu: int, placement: SlicePlacement) -> Ref:
        pod = self._pod("", placement.profile, Ref("other", name))
        pod.node, pod.slice, pod.age = node, (gpu, placement), STARTING
        return pod.ref

    def _pod(self, service: str, profile: str, ref: Ref | None = None) -> SimPod:
        self.created_pods += 1
        name = ref or Ref("team", f"{service}-{self.created_pods}")
        self.pods[name] = SimPod(name, f"uid-{self.created_pods}", service, profile)
        return self.pods[name]

    def plan(self, target: Mapping[str, Sequence[Sequence[str]]], name: str = "plan-1") -> None:
        """Set the target: the slices of each GPU, by node."""
        self.status = MigStatus(target=a_plan(target, name), units=self.status.units)

    # What the operator observes

    def mig_nodes(self) -> tuple[MigNode, ...]:
        return tuple(self._mig_node(node) for _, node in sorted(self.nodes.items()))

    def _mig_node(self, node: SimNode) -> MigNode:
        knows = self.backend.capabilities.knows_pods
        at = {(pod.node, pod.slice): pod.ref for pod in self.pods.values() if pod.slice}
        gpus = tuple(
            MigGpu(
                index=gpu,
                uuid=f"GPU-{node.name}-{gpu}" if knows else "",
                instances=tuple(
                    GpuInstance(
                        placement=placement,
                        holders=(at[node.name, (gpu, placement)],)
                        if knows and (node.name, (gpu, placement)) in at
                        else (),
                    )
                    for placement in layout
                ),
                fault=node.faults.get(gpu, (None, ""))[0],
                message=node.faults.get(gpu, (None, ""))[1],
            )
            for gpu, layout in sorted(node.gpus.items())
        )
        return MigNode(
            name=node.name,
            gpu_model=self.gpu_model,
            ready=node.ready,
            gpus=gpus,
            reports_pods=knows,
            can_partition=knows,
            tainted=node.tainted,
            labels=dict(node.labels),
            node_layout=ObservedNodeLayout(name=node.name, generation=1, spec=node.layout)
            if node.layout is not None
            else None,
            allocatable={}
            if node.paused
            else {
                f"nvidia.com/mig-{profile.replace('+', '.')}": count
                for profile, count in self._allocatable(node).items()
            },
        )

    def _allocatable(self, node: SimNode) -> Counter[str]:
        return Counter(placement.profile for layout in node.gpus.values() for placement in layout)

    def pool_services(self) -> tuple[PoolService, ...]:
        return tuple(
            PoolService(
                ref=Ref("team", service.name),
                replicas=tuple(
                    Replica(
                        pod=pod.ref,
                        uid=pod.uid,
                        node=pod.node,
                        profile=pod.profile,
                        ready=pod.ready,
                        draining=pod.leaving,
                        drained=pod.empty and not service.busy,
                        drain_expired=self.mig.on_deadline == "Evict"
                        and (pod.drain_ticks or 0) * TICK >= self.mig.drain_deadline,
                        terminating=pod.deleted is not None,
                    )
                    for pod in self.pods.values()
                    if pod.service == service.name
                ),
                min_capacity=service.min_capacity,
                capacity=service.capacity,
                planned=service.planned,
                allows_downtime=service.downtime,
            )
            for service in self.services.values()
        )

    def rollout_inputs(self) -> RolloutInputs:
        return RolloutInputs(
            pool="mosaic",
            mig=self.mig,
            status=self.status,
            nodes=self.mig_nodes(),
            services=self.pool_services(),
            backend=self.backend,
            own_pods={pod.ref for pod in self.pods.values() if pod.service},
            device_pods={name: tuple(self._device_pods(name)) for name in self.nodes},
            at=self.at,
        )

    def _device_pods(self, node: str) -> Iterator[Pod]:
        for pod in self.pods.values():
            if pod.node == node:
                yield Pod(
                    ref=pod.ref,
                    uid=pod.uid,
                    service=Ref(pod.ref.namespace, pod.service),
                    created=START,
                    node=node,
                    devices={f"nvidia.com/mig-{pod.profile.replace('+', '.')}": 1},
                    bound=START,
                )

    def ready_capacity(self) -> dict[str, float]:
        capacity = dict.fromkeys(self.services, 0.0)
        for pod in self.pods.values():
            if pod.ready and pod.service:
                capacity[pod.service] += self.services[pod.service].capacity[pod.profile]
        return capacity

    # Cycles and events

    def reconcile(
        self, until: int | None = None, inputs: RolloutInputs | None = None
    ) -> tuple[PoolActions, int]:
        """Run one cycle of a restarted operator that is killed before its write `until`.

        Its inputs may be older than the state.
        """
        actions = advance_rollout(inputs or self.rollout_inputs())
        writes = list(self._pending_writes(actions))
        for write in writes[:until]:
            with self.checked("a write"):
                write()
            self.writes += 1
        return actions, len(writes)

    def checked(self, by: str) -> "_InvariantCheck":
        return _InvariantCheck(self, by)

    def _pending_writes(self, actions: PoolActions) -> Iterator[Callable[[], object]]:
        """Yield the writes in their order; what is so already is not written."""
        if actions.status is not None and actions.status != self.status:
            yield partial(setattr, self, "status", actions.status)
        for name, node in self.nodes.items():
            if node.tainted != (name in actions.tainted_nodes):
                yield partial(setattr, node, "tainted", name in actions.tainted_nodes)
        for key, count in sorted(self._desired_scale(actions).items()):
            if self.scale.get(key) != count:
                yield partial(self.scale.__setitem__, key, count)
        for ref in sorted(actions.draining):
            if ref in self.pods and self.pods[ref].drain_ticks is None:
                yield partial(setattr, self.pods[ref], "drain_ticks", 0)
        for ref, uid in sorted({**actions.evictions, **actions.deletions}.items()):
            if ref in self.pods and self.pods[ref].deleted is None:
                yield partial(self._evict, ref, uid, forced=ref in actions.deletions)
        yield from self._request_writes(actions)

    def _request_writes(self, actions: PoolActions) -> Iterator[Callable[[], object]]:
        for name, request in sorted(actions.requests.items()):
            node = self.nodes[name]
            if any(node.labels.get(key) != value for key, value in request.labels.items()):
                yield partial(self._label, node, request)
            if request.layout_spec is not None and request.layout_spec != node.layout:
                yield partial(setattr, node, "layout", request.layout_spec)

    @staticmethod
    def _label(node: SimNode, request: BackendRequest) -> None:
        for key, value in request.labels.items():
            if value is None:
                node.labels.pop(key, None)
            else:
                node.labels[key] = value

    def _desired_scale(self, actions: PoolActions) -> dict[tuple[str, str], int]:
        """Return the desired replicas, and one more for each displaced pod."""
        scale = {}
        going = Counter(
            (self.pods[ref].service, self.pods[ref].profile) for ref in actions.displaced
        )
        for service, profile in {*self.scale, *going}:
            sim_service = self.services[service]
            desired = sim_service.planned.get(profile, 0)
            if sim_service.profile is None:
                desired = sim_service.wanted
            elif sim_service.others:
                desired = self._bridged(sim_service, profile, going, actions)
            scale[service, profile] = desired + going[service, profile]
        return scale

    def _bridged(
        self,
        service: SimService,
        profile: str,
        going: Mapping[tuple[str, str], int],
        actions: PoolActions,
    ) -> int:
        """Return the replicas of one profile, with those that stay until others are Ready."""
        pods = [pod for pod in self.pods.values() if pod.service == service.name]
        ready = Counter(pod.profile for pod in pods if pod.ready)
        speeds, planned = service.capacity, service.planned
        missing = min(
            sum(speeds[name] * count for name, count in planned.items()),
            sum(speeds[name] * count for name, count in ready.items() if name in planned),
        ) - sum(speeds[name] * min(ready[name], count) for name, count in planned.items())
        bridging = 0
        for name, count in sorted(planned.items()):
            bridging = 0
            while missing > 1e-6 and bridging < ready[name] - count:
                bridging += 1
                missing -= speeds[name]
            if name == profile:
                break
        desired = planned.get(profile, 0) + bridging * (profile in planned)
        desired -= min(bridging * (profile in planned), going[service.name, profile])
        # While replicas that lose their slices drain, no other is given up.
        if any(pod.ref in actions.draining for pod in pods) and profile in planned:
            serving = [pod for pod in pods if pod.ready and pod.ref not in actions.displaced]
            desired = max(desired, sum(pod.profile == profile for pod in serving))
        return desired

    def _evict(self, ref: Ref, uid: str, *, forced: bool) -> None:
        pod = self.pods[ref]
        assert pod.uid == uid
        self.evictions += 1
        if forced or not self.services[pod.service].protected:
            pod.deleted = 0

    def tick(self) -> None:
        """Do what a cluster does in five seconds."""
        self.at += TICK
        with self.checked("the cluster"):
            self._end_pods()
            self._scale_deployments()
            self._schedule_pods()
            self._start_pods()
        for name in sorted(self.nodes):
            self.executor(self, self.nodes[name])

    def _end_pods(self) -> None:
        for pod in list(self.pods.values()):
            if pod.drain_ticks is not None:
                pod.drain_ticks += 1
            if pod.deleted is not None:
                pod.deleted += 1
                if pod.deleted > ENDING:
                    del self.pods[pod.ref]

    def _scale_deployments(self) -> None:
        for (service, profile), count in sorted(self.scale.items()):
            alive = [
                pod
                for pod in self.pods.values()
                if (pod.service, pod.profile, pod.deleted) == (service, profile, None)
            ]
            for _ in range(count - len(alive)):
                self._pod(service, profile)
            self.rng.shuffle(alive)
            alive.sort(key=lambda pod: (pod.node is not None, pod.slice is not None, pod.ready))
            for pod in alive[: max(0, len(alive) - count)]:
                pod.deleted = 0

    def _schedule_pods(self) -> None:
        waiting = [pod for pod in self.pods.values() if pod.node is None]
        self.rng.shuffle(waiting)
        for pod in waiting:
            if pod.deleted is not None:
                continue
            fits = [
                node.name
                for node in self.nodes.values()
                if node.ready
                and (self.tolerant or not node.tainted)
                and not node.paused
                and self._allocatable(node)[pod.profile]
                > sum(
                    other.node == node.name and other.profile == pod.profile
                    for other in self.pods.values()
                )
            ]
            if fits:
                pod.node = self.rng.choice(sorted(fits))

    def _start_pods(self) -> None:
        for pod in self.pods.values():
            if pod.node is None:
                continue
            node = self.nodes[pod.node]
            if pod.slice is None and not node.paused and pod.deleted is None:
                taken = {other.slice for other in self.pods.values() if other.node == pod.node}
                free = [
                    (gpu, placement)
                    for gpu, layout in sorted(node.gpus.items())
                    for placement in layout
                    if placement.profile == pod.profile and (gpu, placement) not in taken
                ]
                pod.slice = self.rng.choice(free) if free else None
            elif pod.slice is not None and not (pod.service and self.services[pod.service].broken):
                pod.age += 1

    def set_layout(self, node: SimNode, gpu: int, layout: Layout) -> None:
        """Set a GPU's layout; slices that keep their placement are left alone."""
        assert layout_error(self.gpu_model, layout) is None
        removed = set(node.gpus[gpu]) - set(layout)
        for pod in self.pods.values():
            if (
                pod.node == node.name
                and pod.slice
                and pod.slice[0] == gpu
                and pod.slice[1] in removed
            ):
                raise PoolInvariantError(f"{pod.ref} sat on {pod.slice}")
        node.gpus[gpu] = tuple(sorted(layout))
        self.layout_changes += 1

    def rebuild(self, node: SimNode, gpu: int, layout: Layout) -> None:
        """Set a GPU's layout after removing all of its slices."""
        self.set_layout(node, gpu, ())
        self.set_layout(node, gpu, layout)

    # Runs to the end

    def play(self, ticks: int = 400, killed_at: int | None = None) -> PoolActions:
        """Run until nothing changes any more, and return the last actions.

        The operator is killed before its write number `killed_at`, and is away for a tick then.
        """
        quiet = 0
        for _ in range(ticks):
            until = None if killed_at is None else max(0, killed_at - self.writes)
            actions, writes = self.reconcile(until)
            died = until is not None and until < writes
            killed_at = None if died else killed_at
            before = self._state()
            self.tick()
            quiet = 0 if writes or died or before != self._state() else quiet + 1
            if quiet > 5 and actions.status is not None and not actions.status.units:
                return actions
        raise PoolInvariantError(f"no rest after {ticks} ticks: {actions.verdict}")

    def _state(self) -> object:
        pods = sorted(
            (pod.ref, pod.node, pod.slice, pod.ready, pod.deleted) for pod in self.pods.values()
        )
        return repr((pods, [(node.gpus, node.labels) for node in self.nodes.values()]))

    def layouts(self) -> dict[str, list[list[str]]]:
        return {
            name: [slice_names(layout) for _, layout in sorted(node.gpus.items())]
            for name, node in sorted(self.nodes.items())
        }

    def counts(self) -> dict[str, list[object]]:
        return {
            name: [geometry(layout) for _, layout in sorted(node.gpus.items())]
            for name, node in sorted(self.nodes.items())
        }


class _InvariantCheck:
    """Compares before and after: no service may go below its minimum."""

    def __init__(self, simulation: PoolSimulation, by: str) -> None:
        self._world, self._by = simulation, by

    def __enter__(self) -> None:
        self._before = self._world.ready_capacity()

    def __exit__(self, *_: object) -> None:
        after = self._world.ready_capacity()
        for name, service in self._world.services.items():
            keeps_none = service.downtime or service.broken
            minimum = 0.0 if keeps_none else min(self._before[name], service.min_capacity)
            if after[name] < minimum - 1e-6:
                raise PoolInvariantError(
                    f"{self._by} left {name} with {after[name]} of {self._before[name]}, "
                    f"its floor is {service.min_capacity}"
                )


LayoutExecutor = Callable[[PoolSimulation, SimNode], None]


def slice_names(layout: Layout) -> list[str]:
    return [f"{placement.profile}@{placement.start}" for placement in layout]


def placements(*names: str) -> Layout:
    parts = [name.partition("@") for name in names]
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


class WholeGpuBackend:
    """Rebuilds unused GPUs, by counts of slices, while no pod starts on the node."""

    def __init__(self, *, knows_pods: bool = False, fails: int = 0) -> None:
        self.capabilities = Capabilities(
            pinned_starts=False, sibling_safe=False, knows_pods=knows_pods
        )
        self.fails = fails
        """Attempts that fail before one succeeds."""

    def request(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, at: datetime
    ) -> BackendRequest:
        del node, at
        wanted_layout = ";".join(
            f"{gpu}:{'+'.join(slice_names(layout))}" for gpu, layout in sorted(desired.items())
        )
        return BackendRequest(labels={"want": wanted_layout, "attempt": str(attempt)})

    def status(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, since: datetime, at: datetime
    ) -> BackendStatus:
        wanted_layout = self.request(node, desired, attempt, at).labels["want"]
        current = {gpu.index: geometry(gpu.layout) for gpu in node.gpus}
        if node.labels.get("want", wanted_layout) == wanted_layout and all(
            current.get(gpu) == geometry(layout) for gpu, layout in desired.items()
        ):
            return BackendStatus(done=bool(node.allocatable) or not any(desired.values()))
        if node.labels.get("failed") == str(attempt):
            return BackendStatus(retry=True)
        if at - since > timedelta(minutes=20):
            return BackendStatus(
                problem=StatusVerdict(LayoutReady.BACKEND_TIMEOUT, "nothing happens")
            )
        return BackendStatus()

    def __call__(self, simulation: PoolSimulation, node: SimNode) -> None:
        """Notice the request in one tick, then rebuild everything at once."""
        if not (wanted_layout := node.labels.get("want")):
            return
        if node.paused:
            node.paused -= 1
            return
        if int(node.labels["attempt"]) <= self.fails:
            node.labels["failed"] = node.labels["attempt"]
            return
        for part in wanted_layout.split(";"):
            gpu, _, names = part.partition(":")
            layout = placements(*names.split("+")) if names else ()
            if geometry(layout) != geometry(node.gpus[int(gpu)]):
                simulation.rebuild(node, int(gpu), layout)
                node.paused = 2


class PinnedBackend:
    """Creates slice by slice, at exact placements, beside slices in use."""

    capabilities = Capabilities(pinned_starts=True, sibling_safe=True, knows_pods=True)

    def request(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, at: datetime
    ) -> BackendRequest:
        del attempt, at
        uuids = {gpu.index: gpu.uuid for gpu in node.gpus}
        return BackendRequest(
            layout_spec=NodeLayoutSpec(
                gpus=tuple(
                    DesiredGpu(
                        uuid=uuids[gpu],
                        slices=tuple(
                            PlacedSlice(profile=placement.profile, start=placement.start)
                            for placement in layout
                        ),
                    )
                    for gpu, layout in sorted(desired.items())
                )
            )
        )

    def status(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, since: datetime, at: datetime
    ) -> BackendStatus:
        del since
        layout_spec = self.request(node, desired, attempt, at).layout_spec or NodeLayoutSpec()
        current = {gpu.index: gpu.layout for gpu in node.gpus}
        named = (
            {desired_gpu.uuid: desired_gpu for desired_gpu in node.node_layout.spec.gpus}
            if node.node_layout
            else {}
        )
        unchanged = all(
            named.get(desired_gpu.uuid, desired_gpu) == desired_gpu
            for desired_gpu in layout_spec.gpus
        )
        return BackendStatus(
            done=unchanged and all(current.get(gpu) == layout for gpu, layout in desired.items())
        )

    def __call__(self, simulation: PoolSimulation, node: SimNode) -> None:
        """Change one slice of each GPU in a tick."""
        for desired_gpu in node.layout.gpus if node.layout else ():
            gpu = int(desired_gpu.uuid.rpartition("-")[2])
            wanted_slices = {
                SlicePlacement(placed_slice.start, placed_slice.profile)
                for placed_slice in desired_gpu.slices
            }
            current_slices = set(node.gpus[gpu])
            if removed := sorted(current_slices - wanted_slices):
                simulation.set_layout(node, gpu, tuple(current_slices - {removed[0]}))
            elif added := sorted(wanted_slices - current_slices):
                simulation.set_layout(node, gpu, tuple(sorted(current_slices | {added[0]})))
