"""The desired layouts of the GPUs of a pool, and which GPUs have another layout."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.api.mig import GpuTarget, MigPlan, NodeTarget, Unit
from tessera.domain.hardware.gpu_layouts import (
    Geometry,
    Layout,
    SlicePlacement,
    geometry,
    layout_error,
    parse_placement,
    place_geometry,
)
from tessera.domain.hardware.gpu_models import GpuModel
from tessera.domain.incremental import tabulated
from tessera.domain.mig_backends.backend import LayoutsByGpu
from tessera.domain.mig_backends.devices import canonical_profile
from tessera.domain.mig_backends.nodes import MigGpu, MigNode


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGoal:
    """The desired layouts of one node of the plan."""

    node: MigNode
    desired: LayoutsByGpu
    """Layouts of the plan that are possible on this GPU model, by GPU index."""
    mismatched: tuple[int, ...]
    """GPUs whose layout differs from the desired one."""
    missing: tuple[int, ...] = ()
    """GPUs of the plan that are absent or not in MIG mode."""
    temporary: tuple[int, ...] = ()
    """GPUs whose desired layout is a temporary one."""
    infeasible: tuple[str, ...] = ()
    """Why GPUs cannot have the layout of the plan, one sentence for each."""


def node_goals(
    plan: MigPlan, units: Sequence[Unit], nodes: Sequence[MigNode], *, pinned: bool
) -> Mapping[str, NodeGoal]:
    """Return the goals of the plan's nodes that exist, by name.

    With `pinned`, slices have the starts that the plan gives them.
    """
    nodes_by_name = {mig_node.name: mig_node for mig_node in nodes}
    # A temporary layout stands in a unit of the status and takes precedence over the plan.
    temporary = {
        unit.node: {target.gpu: target for target in unit.temporary_layout} for unit in units
    }
    return {
        node.node: _node_goal(
            node, temporary.get(node.node, {}), nodes_by_name[node.node], pinned=pinned
        )
        for node in sorted(plan.nodes, key=lambda target: target.node)
        if node.node in nodes_by_name
    }


def _node_goal(
    node: NodeTarget, temporary: Mapping[int, GpuTarget], mig_node: MigNode, *, pinned: bool
) -> NodeGoal:
    mig_gpus = {gpu.index: gpu for gpu in mig_node.gpus}
    # Without an agent the observed starts are assumed, so the planned ones cannot be compared.
    exact = pinned and mig_node.reports_pods
    desired: dict[int, Layout] = {}
    infeasible = []
    for planned in sorted(node.gpus, key=lambda gpu_target: gpu_target.gpu):
        target = temporary.get(planned.gpu, planned)
        current = mig_gpus[target.gpu].layout if target.gpu in mig_gpus else ()
        layout = _target_layout(mig_node.gpu_model, target.slices, current, exact=exact)
        if isinstance(layout, str):
            infeasible.append(f"GPU {target.gpu} of Node/{mig_node.name}: {layout}")
        else:
            desired[target.gpu] = layout
    return NodeGoal(
        node=mig_node,
        desired=desired,
        mismatched=_mismatched_gpus(mig_node, desired, mig_gpus),
        missing=tuple(gpu_target.gpu for gpu_target in node.gpus if gpu_target.gpu not in mig_gpus),
        temporary=tuple(sorted(temporary)),
        infeasible=tuple(infeasible),
    )


def _mismatched_gpus(
    node: MigNode, desired: LayoutsByGpu, mig_gpus: Mapping[int, MigGpu]
) -> tuple[int, ...]:
    current = {gpu: mig_gpus[gpu].layout for gpu in desired if gpu in mig_gpus}
    if node.reports_pods:
        return tuple(gpu for gpu in current if current[gpu] != desired[gpu])
    # Without an agent only the node's slice counts are known: all its GPUs mismatch, or none.
    current_counts, desired_counts = (
        geometry(placement for gpu in current for placement in layouts[gpu])
        for layouts in (current, desired)
    )
    return () if current_counts == desired_counts else tuple(current)


@tabulated
def _target_layout(
    gpu_model: GpuModel, slices: tuple[str, ...], current: Layout, *, exact: bool
) -> Layout | str:
    """Return the layout for these slices, or why it is impossible on the GPU model."""
    parts = [parse_placement(text) for text in slices]
    unknown = next(
        (profile for profile, _ in parts if gpu_model.find_profile(profile) is None), None
    )
    if unknown is not None:
        names = ", ".join(gi_profile.name for gi_profile in gpu_model.profiles)
        return f"{gpu_model.name} has no profile {unknown}; it has {names}"
    placed = [(start, canonical_profile(gpu_model, profile)) for profile, start in parts]
    starts = [start for start, _ in placed if start is not None]
    if exact and len(starts) == len(placed):
        profiles = (profile for _, profile in placed)
        layout = tuple(sorted(map(SlicePlacement, starts, profiles)))
        return layout_error(gpu_model, layout) or layout
    counts = geometry(SlicePlacement(0, profile) for _, profile in placed)
    return _layout_around(gpu_model, counts, current) or (
        f"{' + '.join(slices)} does not fit on 1 {gpu_model.name}" if counts else ()
    )


def _layout_around(gpu_model: GpuModel, counts: Geometry, existing: Layout) -> Layout | None:
    """Return a layout with these counts that keeps existing slices, the lowest starts first."""
    if geometry(existing) == counts:
        return existing
    retained: Layout = ()
    layout = place_geometry(gpu_model, counts)
    for placement in existing:
        candidate = (*retained, placement)
        rest = Counter(dict(counts))
        rest.subtract(member.profile for member in candidate)
        if min(rest.values(), default=-1) >= 0 and rest.keys() == dict(counts).keys():
            extended = place_geometry(gpu_model, tuple(sorted((+rest).items())), candidate)
            retained, layout = (candidate, extended) if extended is not None else (retained, layout)
    return layout
