"""Temporary layouts, which break a deadlock between units that wait for each other's slices.

A unit can only begin while free slices elsewhere can take its pods. Where no unit can, unused GPUs
are partitioned other than planned for a while, with the slices that one unit needs. No slice in use
is touched: only GPUs without users count, and with a sibling-safe backend the unused part of GPUs.
Where that helps no unit, the unused part of a GPU gets the planned slices that fit there already.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tessera.api.mig import GpuTarget
from tessera.domain.hardware.gpu_layouts import (
    Layout,
    format_placement,
    layout_error,
    place_geometry,
)
from tessera.domain.mig_backends.backend import Capabilities
from tessera.domain.mig_backends.nodes import MigGpu
from tessera.domain.repartition.capacity import PoolCapacity, SliceShortage, replacement_profile
from tessera.domain.repartition.goals import NodeGoal
from tessera.domain.repartition.units import NodeRepartition

# Blocked units that are compared, those with the fewest pods first: bounds the time of a cycle.
_MAX_COMPARED = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockedUnit:
    """A unit that could begin if slices were free for its pods."""

    repartition: NodeRepartition
    shortages: Sequence[SliceShortage]


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporaryLayout:
    """New layouts for some GPUs of one node until a blocked unit is complete."""

    goal: NodeGoal
    gpus: tuple[int, ...]
    """GPUs that are repartitioned; all of the node where no agent reports which slice is where."""
    targets: tuple[GpuTarget, ...]


def find_temporary_layout(
    blocked: Sequence[BlockedUnit],
    goals: Sequence[NodeGoal],
    capacity: PoolCapacity,
    capabilities: Capabilities,
) -> TemporaryLayout | None:
    """Return the first temporary layout with which one of the blocked units can begin."""
    candidates = [(goal, tuple(_spare_gpus(goal, capacity, capabilities))) for goal in goals]
    # Many blocked units need the same slices.
    known_layouts: dict[object, Mapping[int, Layout] | None] = {}
    ordered = sorted(
        blocked,
        key=lambda blocked_unit: (
            len(blocked_unit.repartition.pods),
            blocked_unit.repartition.node.name,
        ),
    )
    for unit in ordered[:_MAX_COMPARED]:
        # `missing` includes slices that other services wait for: the largest covers all of them.
        needs = Counter[str]()
        for shortage in unit.shortages:
            needs[shortage.profile] = max(needs[shortage.profile], shortage.missing)
        closed_nodes = {unit.repartition.node.name}
        for index, (goal, _) in enumerate(candidates):
            if goal.node.name in closed_nodes:
                continue
            question = index, frozenset(needs.items())
            if question not in known_layouts:
                known_layouts[question] = _free_layouts(
                    *candidates[index], dict(sorted(needs.items()))
                )
            layouts = known_layouts[question]
            # Undoing a planned layout is only worth it when it can be restored afterwards.
            if layouts is None or not (
                all(gpu in goal.mismatched for gpu in layouts)
                or _can_revert(unit.repartition, capacity, capabilities)
            ):
                continue
            supply = capacity.supply(closed_nodes)
            for mig_gpu in goal.node.gpus:
                if mig_gpu.index in layouts:
                    supply.subtract(placement.profile for placement in mig_gpu.layout)
                    supply.update(placement.profile for placement in layouts[mig_gpu.index])
            if not capacity.shortages(unit.repartition.pods, supply):
                gpus = sorted(layouts) if goal.node.reports_pods else sorted(goal.desired)
                targets = tuple(_gpu_target(gpu, layouts[gpu]) for gpu in sorted(layouts))
                return TemporaryLayout(goal=goal, gpus=tuple(gpus), targets=targets)
    return _first_planned_slices(goals, capacity, capabilities)


def _first_planned_slices(
    goals: Sequence[NodeGoal], capacity: PoolCapacity, capabilities: Capabilities
) -> TemporaryLayout | None:
    """Return the planned slices of one GPU that fit beside those in use, if replicas wait for them.

    The replicas that move there free slices of their previous profiles, which others wait for.
    """
    waiting = capacity.waiting_pods()
    for goal in goals if capabilities.sibling_safe else ():
        # The last layout of each GPU is the one without unused slices.
        spare = {gpu.index: (gpu, used) for gpu, used in _spare_gpus(goal, capacity, capabilities)}
        for index in sorted(spare.keys() & set(goal.mismatched)):
            gpu, layout = spare[index]
            for placement in goal.desired[index]:
                grown = tuple(sorted({*layout, placement}))
                layout = grown if layout_error(goal.node.gpu_model, grown) is None else layout
            added = Counter(part.profile for part in layout if part not in gpu.layout)
            removed = Counter(part.profile for part in gpu.layout if part not in layout)
            if added & waiting and capacity.waiting_pods(removed) == waiting:
                targets = (_gpu_target(index, layout),)
                return TemporaryLayout(goal=goal, gpus=(index,), targets=targets)
    return None


def _can_revert(
    repartition: NodeRepartition, capacity: PoolCapacity, capabilities: Capabilities
) -> bool:
    """Return whether all displaced pods have slices once the unit has its planned layout.

    Otherwise two GPUs could get temporary layouts in turns and never end.
    """
    after = capacity.supply(())
    desired = repartition.desired
    for gpu in repartition.node.gpus:
        if gpu.index in desired:
            after.subtract(
                instance.placement.profile for instance in gpu.instances if not instance.holders
            )
            retained = {
                instance.placement
                for instance in gpu.instances
                if instance.holders and capabilities.sibling_safe
            }
            after.update(
                placement.profile for placement in desired[gpu.index] if placement not in retained
            )
    for service in capacity.affected_services(repartition.pods):
        lost = [replica for replica in service.replicas if replica.pod in repartition.pods]
        after[replacement_profile(service, lost)] -= len(lost)
    return all(count >= 0 for count in after.values())


def _gpu_target(gpu: int, layout: Layout) -> GpuTarget:
    return GpuTarget(gpu=gpu, slices=tuple(map(format_placement, layout)))


def _free_layouts(
    goal: NodeGoal, spare: Sequence[tuple[MigGpu, Layout]], needs: Mapping[str, int]
) -> dict[int, Layout] | None:
    """Return new layouts of spare GPUs that add all needed slices, None where they do not fit."""
    remaining, layouts, gpu_model = Counter(needs), dict[int, Layout](), goal.node.gpu_model
    for gpu, retained in spare:
        if gpu.index in layouts:
            continue
        layout = retained
        for profile in sorted(
            remaining.elements(), key=lambda name: (-gpu_model.memory_slices_of(name), name)
        ):
            grown = place_geometry(gpu_model, ((profile, 1),), layout)
            if grown is not None:
                layout = grown
                remaining[profile] -= 1
        if layout != retained:
            layouts[gpu.index] = layout
        if not +remaining:
            return layouts
    return None


def _spare_gpus(
    goal: NodeGoal, capacity: PoolCapacity, capabilities: Capabilities
) -> Iterator[tuple[MigGpu, Layout]]:
    """Yield the GPUs that can take slices, each with the slices that have to stay on it.

    GPUs come first with all their slices, then without the unused ones.
    """
    node = goal.node
    pods = capacity.replicas_by_node.get(node.name, ())
    keeps_used = capabilities.knows_pods and node.reports_pods and capabilities.sibling_safe
    # A pod whose slice is not reported may hold any of them.
    if not {replica.pod for replica in pods} <= node.located_pods:
        return
    free: list[tuple[MigGpu, Layout]] = []
    for gpu in node.gpus:
        if gpu.fault is not None or gpu.index not in goal.desired:
            continue
        used = tuple(
            instance.placement
            for instance in gpu.instances
            if instance.holders or instance.processes
        )
        if keeps_used:
            yield gpu, gpu.layout
        if keeps_used or not used:
            free.append((gpu, used))
    yield from free
