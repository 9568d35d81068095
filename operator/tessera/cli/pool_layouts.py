"""The current and planned layouts of pools with their services, as commands show them."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import TypeAlias

from tessera.api.meta import Condition, find_condition
from tessera.api.mig import Mig, MigPlan, MigStatus
from tessera.api.ref import Ref
from tessera.cli.errors import CommandError, DeniedError
from tessera.cli.fleet import FleetInputs
from tessera.domain.hardware.gpu_layouts import (
    Layout,
    SlicePlacement,
    format_placement,
    geometry,
)
from tessera.domain.hardware.pools import PoolView, discover
from tessera.domain.layout.adoption import STABILIZATION_WINDOW
from tessera.domain.layout.pool_layout import profiles_by_service
from tessera.domain.mig_backends.backend import Capabilities
from tessera.domain.mig_backends.by_name import backend_of
from tessera.domain.mig_backends.discovery import mig_nodes, with_assumed_gpus
from tessera.domain.mig_backends.nodes import MigGpu, MigNode
from tessera.domain.mig_backends.usage import (
    PoolUsage,
    SliceState,
    SliceUsage,
    pool_usage,
    slice_usages,
)
from tessera.domain.observed.snapshot import Pod, Snapshot
from tessera.domain.repartition.goals import node_goals


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSlice:
    """A slice of a GPU, as it is or as a plan has it."""

    placement: SlicePlacement
    service: str | None
    """Service, batch or pod that has it; None for an idle slice."""
    state: SliceState | None = None
    """Unknown of a planned slice."""
    pods: tuple[Ref, ...] = ()
    activity: float | None = None
    """GPU activity of the pod on it; None if it is unknown."""


# Slices by node and index of the GPU.
SlicesByGpu: TypeAlias = Mapping[tuple[str, int], Sequence[PoolSlice]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSnapshot:
    """A pool with its nodes, slices and pods."""

    view: PoolView
    nodes: tuple[MigNode, ...] = ()
    slices: tuple[SliceUsage, ...] = ()
    service_of_pod: Mapping[Ref, str] = field(default_factory=dict)
    """Service or batch of every pod that Tessera manages."""
    load_of_pod: Mapping[Ref, float] = field(default_factory=dict)
    """GPU activity of pods, as far as it is known."""

    @property
    def name(self) -> str:
        return self.view.pool.name

    @property
    def mig(self) -> Mig | None:
        return self.view.pool.spec.mig if self.view.pool.spec is not None else None

    @property
    def status(self) -> MigStatus:
        return self.view.pool.status.mig or MigStatus()

    @property
    def layout_condition(self) -> Condition | None:
        """Return the pool's condition about layouts; None before the operator wrote it."""
        return find_condition(self.view.pool.status.conditions, "LayoutReady")

    @property
    def state_line(self) -> str:
        """Return the pool's layout condition in one line."""
        condition = self.layout_condition
        if condition is None:
            return f"{self.name}: the operator has not reported its layouts yet"
        return f"{self.name}: {condition.reason}: {condition.message}"

    @property
    def pending_plan(self) -> MigPlan | None:
        """Return the proposed plan, else the target if it changes a layout."""
        if self.status.proposed is not None:
            return self.status.proposed
        target = self.status.target
        return target if target is not None and layout_changes(self, target) else None

    @property
    def adoption_time(self) -> datetime | None:
        """Return when the proposed plan is adopted without approval; None if it needs one."""
        proposed = self.status.proposed
        if proposed is None or self.mig is None or self.mig.mode == "Propose":
            return None
        return proposed.at + STABILIZATION_WINDOW

    @property
    def usage(self) -> PoolUsage:
        return pool_usage(self.nodes, self.slices)

    @property
    def placements_known(self) -> bool:
        return all(mig_node.reports_pods for mig_node in self.nodes)

    @property
    def currency(self) -> str | None:
        return self.view.price.currency if self.view.price is not None else None

    def hourly_price(self, gpus: Decimal) -> Decimal | None:
        """Return the price per hour of a part of a GPU; None without a price."""
        price = self.view.price
        return gpus * price.per_gpu_hour if price is not None else None

    def owner_of(self, pod: Ref) -> str:
        """Return the service or batch of a pod, or the pod's name if Tessera does not manage it."""
        return self.service_of_pod.get(pod, f"pod {pod}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLayoutChange:
    """A GPU that a plan repartitions."""

    node: str
    gpu: int
    before: Layout
    after: Layout
    leaving_pods: tuple[Ref, ...] = ()
    """Pods that have to leave the GPU, as far as the backend reports them."""

    @property
    def descriptions(self) -> tuple[str, str]:
        """Return both layouts as text, with starts only where the counts are the same."""
        with_placements = geometry(self.before) == geometry(self.after)
        return _layout_text(self.before, with_placements), _layout_text(self.after, with_placements)


def pool_snapshots(
    fleet: FleetInputs, name: str | None, *, assume_gpus: bool = False
) -> tuple[PoolSnapshot, ...]:
    """Return all pools, or the named one.

    With `assume_gpus`, slices beside whole GPUs are on GPUs that are assumed, for pictures. Raises
    CommandError if it does not exist, and DeniedError if pools cannot be listed.
    """
    snapshot = fleet.snapshot
    views = discover(snapshot.pools, snapshot.nodes, snapshot.at.date())
    if not views and fleet.read_errors:
        raise DeniedError("; ".join(fleet.read_errors))
    if name is not None and name not in {view.pool.name for view in views}:
        known = ", ".join(view.pool.name for view in views) or "none"
        raise CommandError(f"AcceleratorPool/{name} does not exist; existing: {known}")
    return tuple(
        _pool_snapshot(view, snapshot, assume_gpus=assume_gpus)
        for view in views
        if name in (None, view.pool.name)
    )


def _pool_snapshot(view: PoolView, snapshot: Snapshot, *, assume_gpus: bool) -> PoolSnapshot:
    pool_nodes = mig_nodes(view, snapshot.nodes, snapshot.layouts)
    if assume_gpus:
        pool_nodes = tuple(map(with_assumed_gpus, pool_nodes))
    readings = snapshot.readings.pods if snapshot.readings is not None else {}
    return PoolSnapshot(
        view=view,
        nodes=pool_nodes,
        slices=slice_usages(pool_nodes, snapshot.pods),
        service_of_pod={pod.ref: _pod_owner(pod) for pod in snapshot.pods if not pod.unmanaged},
        load_of_pod={
            ref: activity
            for ref, reading in readings.items()
            if (activity := reading.measured_activity) is not None
        },
    )


def _pod_owner(pod: Pod) -> str:
    return str(pod.service) if pod.batch_run is None else f"batch {pod.batch_run.batch}"


def layout_changes(pool: PoolSnapshot, plan: MigPlan) -> tuple[GpuLayoutChange, ...]:
    """Return the GPUs whose layouts the plan changes, by node and index."""
    planned = _planned_layouts(pool, plan)
    node_slices: dict[str, list[SliceUsage]] = defaultdict(list)
    for mig_slice in pool.slices:
        node_slices[mig_slice.node].append(mig_slice)
    capabilities = backend_of(pool.mig or Mig(), pool.nodes).capabilities
    return tuple(
        GpuLayoutChange(
            node=mig_node.name,
            gpu=mig_gpu.index,
            before=mig_gpu.layout,
            after=after,
            leaving_pods=_pods_to_leave(capabilities, node_slices[mig_node.name], mig_gpu, after),
        )
        for mig_node, mig_gpu in _mig_gpus(pool)
        if (after := planned[mig_node.name, mig_gpu.index]) != mig_gpu.layout
    )


def _planned_layouts(pool: PoolSnapshot, plan: MigPlan) -> Mapping[tuple[str, int], Layout]:
    """Return the layout of every GPU by node and index; the current one where the plan has none."""
    # Slices have the starts that the plan gives them, whatever the backend can.
    goals = node_goals(plan, (), pool.nodes, pinned=True)
    desired = {(node, gpu): layout for node in goals for gpu, layout in goals[node].desired.items()}
    return {
        key: desired.get(key, mig_gpu.layout)
        for mig_node, mig_gpu in _mig_gpus(pool)
        for key in [(mig_node.name, mig_gpu.index)]
    }


def moving_pods(pool: PoolSnapshot, plan: MigPlan) -> frozenset[Ref]:
    """Return the pods whose slice is destroyed or whose service gets another profile."""
    planned = profiles_by_service(plan.services)
    pods = {pod for change in layout_changes(pool, plan) for pod in change.leaving_pods}
    for mig_slice in pool.slices:
        pods |= {
            pod
            for pod in mig_slice.holders
            if (profiles := planned.get(pool.owner_of(pod))) is not None
            and mig_slice.placement.profile not in profiles
        }
    return frozenset(pods)


def _mig_gpus(pool: PoolSnapshot) -> Iterator[tuple[MigNode, MigGpu]]:
    for mig_node in pool.nodes:
        for mig_gpu in mig_node.gpus:
            yield mig_node, mig_gpu


def _pods_to_leave(
    capabilities: Capabilities, node_slices: Sequence[SliceUsage], mig_gpu: MigGpu, wanted: Layout
) -> tuple[Ref, ...]:
    """Return the pods on slices that are destroyed, or on all slices of the GPU or of the node.

    Which of them depends on the backend's capabilities.
    """
    holders = {
        pod
        for mig_slice in node_slices
        if mig_slice.gpu == mig_gpu.index or not capabilities.knows_pods
        for pod in mig_slice.holders
        if not (capabilities.sibling_safe and mig_slice.placement in wanted)
    }
    return tuple(sorted(holders))


def current_slices(pool: PoolSnapshot) -> SlicesByGpu:
    """Return the current slices of every GPU with their services."""
    slices_by_gpu: dict[tuple[str, int], list[PoolSlice]] = defaultdict(list)
    for mig_slice in pool.slices:
        pods = mig_slice.holders
        # A slice has one pod at a time.
        loads = (pool.load_of_pod[pod] for pod in pods if pod in pool.load_of_pod)
        slices_by_gpu[mig_slice.node, mig_slice.gpu].append(
            PoolSlice(
                placement=mig_slice.placement,
                service=pool.owner_of(pods[0]) if pods else None,
                state=mig_slice.state,
                pods=pods,
                activity=next(loads, None),
            )
        )
    return slices_by_gpu


def planned_slices(pool: PoolSnapshot, plan: MigPlan) -> SlicesByGpu:
    """Return the planned slices of every GPU with their services.

    A service keeps its slices that stay, up to the number that the plan assigns to it. The others
    are assigned by name, since the scheduler chooses among equal slices.
    """
    unassigned = Counter(
        {
            (assignment.service, assignment.profile): assignment.replicas
            for assignment in plan.services
        }
    )
    layouts = _planned_layouts(pool, plan)
    staying = _take_staying_owners(pool, layouts, unassigned)
    waiting: dict[str, list[str]] = defaultdict(list)
    for (service, profile), count in sorted(unassigned.items(), reverse=True):
        waiting[profile] += [service] * count
    return {
        key: tuple(
            PoolSlice(
                placement=placement,
                service=staying.get((*key, placement))
                or (waiting[placement.profile].pop() if waiting[placement.profile] else None),
            )
            for placement in layout
        )
        for key, layout in layouts.items()
    }


def _take_staying_owners(
    pool: PoolSnapshot,
    layouts: Mapping[tuple[str, int], Layout],
    unassigned: Counter[tuple[str, str]],
) -> dict[tuple[str, int, SlicePlacement], str]:
    """Return the owners of slices that stay, and deduct them from `unassigned`."""
    planned = {service for service, _ in unassigned}
    staying = {}
    for mig_slice in pool.slices:
        if (
            not mig_slice.holders
            or mig_slice.placement not in layouts[mig_slice.node, mig_slice.gpu]
        ):
            continue
        owner = pool.owner_of(mig_slice.holders[0])
        key = owner, mig_slice.placement.profile
        if unassigned[key] > 0:
            unassigned[key] -= 1
        elif owner in planned:
            continue
        staying[mig_slice.node, mig_slice.gpu, mig_slice.placement] = owner
    return staying


def _layout_text(layout: Sequence[SlicePlacement], with_placements: bool) -> str:
    if not layout:
        return "not partitioned"
    if with_placements:
        return ", ".join(map(format_placement, layout))
    return ", ".join(f"{count}x {profile}" for profile, count in geometry(layout))
