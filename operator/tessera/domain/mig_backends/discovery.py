"""Discover the MIG nodes of a pool from agents' reports, else from node labels and resources."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tessera.api.accelerator_pool import COUNT_LABEL, PRODUCT_LABEL
from tessera.api.mig import NodeTarget
from tessera.api.node_layout import MAX_GPUS, NodeLayoutStatus, ObservedGpu
from tessera.api.ref import Ref
from tessera.api.text import counted, parse_decimal
from tessera.domain.hardware.device import GPU
from tessera.domain.hardware.gpu_layouts import Layout, SlicePlacement, layout_error
from tessera.domain.hardware.gpu_models import GpuModel, find_gpu_model
from tessera.domain.hardware.pools import PoolView
from tessera.domain.incremental import reused_per_object
from tessera.domain.mig_backends import devices
from tessera.domain.mig_backends.format import parse_layout
from tessera.domain.mig_backends.layout_search import layouts_for_counts
from tessera.domain.mig_backends.nodes import GpuInstance, MigGpu, MigNode
from tessera.domain.observed.node_layout import TAINT, ObservedNodeLayout
from tessera.domain.observed.snapshot import Node
from tessera.domain.steps import Step, error_text

_REPLICAS_LABEL = "nvidia.com/gpu.replicas"
_MIG_MODES = ("Enabled", "Disabling")


def mig_nodes(
    view: PoolView, nodes: Sequence[Node], layouts: Sequence[ObservedNodeLayout]
) -> tuple[MigNode, ...]:
    """Return every node of the pool whose GPU product is known, by name.

    Without an agent only slice counts are known: layouts are the planned ones as far as those
    counts allow.
    """
    layouts_by_node = {layout.name: layout for layout in layouts}
    pool = view.pool
    status = pool.status.mig
    plan = status.target if status else None
    targets = {target.node: target for target in plan.nodes} if plan else {}
    return tuple(
        mig_node
        for node in sorted(nodes, key=lambda node: node.name)
        if node.name in view.node_names
        for layout in (layouts_by_node.get(node.name),)
        for target in (None if _agent_status(layout) else targets.get(node.name),)
        if (mig_node := mig_node_of(node.name, view.product, node, layout, target))
    )


def _agent_status(layout: ObservedNodeLayout | None) -> NodeLayoutStatus | None:
    """Return the last report of a node's agent, None where it never read the GPUs."""
    status = layout.status if layout else None
    return status if status is not None and (status.gpus or not status.problem) else None


def _agent_problem(layout: ObservedNodeLayout | None) -> str | None:
    """Return why the report of the agent cannot be relied on."""
    if layout is None or layout.status is None:
        return None
    if layout.silent_since is not None:
        return (
            f"its tessera-node is silent since {layout.silent_since:%Y-%m-%d %H:%M:%S}, so the "
            "pods on its slices are not known; check the agent's pod, or delete "
            f"NodeLayout/{layout.name} where none runs any more"
        )
    return f"its tessera-node reports: {layout.status.problem}" if layout.status.problem else None


@reused_per_object
def _read_node(
    _name: str,
    pool_product: str | None,
    node: Node,
    layout: ObservedNodeLayout | None,
    target: NodeTarget | None,
) -> MigNode | None:
    """Return the node; `pool_product` is the GPU product of the pool's other nodes."""
    agent_status = _agent_status(layout)
    names = [gpu.product for gpu in agent_status.gpus] if agent_status else []
    product = node.labels.get(PRODUCT_LABEL) or next(iter(names), None)
    if product is None:
        return None
    unread = _unread_node(node, product)
    base = replace(unread, node_layout=layout, unavailable=_agent_problem(layout))
    if problem := _inconsistency(pool_product, node, agent_status) or _unknown_product(product):
        return replace(base, inconsistency=problem)
    node_or_problem = (
        _from_agent(base, agent_status) if agent_status else _from_counts(base, target)
    )
    if isinstance(node_or_problem, str):
        return replace(base, inconsistency=node_or_problem)
    return node_or_problem


def _set_aside(
    error: Exception, _name: str, pool_product: str | None, node: Node, *_: object
) -> MigNode:
    problem = f"reading its labels and NodeLayout raised {error_text(error)}"
    return replace(_unread_node(node, pool_product or ""), inconsistency=problem)


mig_node_of = Step(_read_node, _set_aside)


def _unread_node(node: Node, product: str) -> MigNode:
    """Return the node without its GPUs; a product that is not known has no profiles."""
    unknown = GpuModel(
        name=product,
        products=(product,),
        compute_slices=0,
        memory_slices=0,
        profiles=(),
        aliases=(),
    )
    return MigNode(
        name=node.name,
        gpu_model=find_gpu_model(product) or unknown,
        ready=node.schedulable,
        tainted=TAINT in node.taints,
        labels=node.labels,
        allocatable=node.allocatable,
    )


def _unknown_product(product: str) -> str | None:
    if find_gpu_model(product) is not None:
        return None
    hint = "; slices are planned under mig.strategy=mixed" if "-MIG-" in product else ""
    return f"no MIG profiles are known for {product}{hint}"


def _inconsistency(
    pool_product: str | None, node: Node, agent_status: NodeLayoutStatus | None
) -> str | None:
    """Return how the driver's report contradicts the node's labels, None if it does not."""
    label = node.labels.get(PRODUCT_LABEL)
    if agent_status is None or agent_status.problem:
        return None
    gpus = agent_status.gpus
    for gpu in gpus:
        expected = label or pool_product
        if expected is not None and gpu.product != expected:
            source = f"its label {PRODUCT_LABEL}" if label else "the other nodes of the pool"
            return f"GPU {gpu.index} is {gpu.product} by its driver and {expected} by {source}"
    count = node.labels.get(COUNT_LABEL)
    if count is not None and count != str(len(gpus)):
        return f"the driver reports {counted(len(gpus), 'GPU')}, its label {COUNT_LABEL} is {count}"
    return None


def _from_agent(base: MigNode, agent_status: NodeLayoutStatus) -> MigNode | str:
    """Return the node with starts, pods and processes as its agent reports them, or why not."""
    mig_gpus = [gpu for gpu in agent_status.gpus if gpu.mode in _MIG_MODES]
    for gpu in mig_gpus:
        if problem := layout_error(
            base.gpu_model,
            tuple(SlicePlacement(gpu_slice.start, gpu_slice.profile) for gpu_slice in gpu.slices),
        ):
            return f"GPU {gpu.index}: {problem}"
    return replace(
        base,
        gpus=tuple(
            sorted(
                (_mig_gpu(base.gpu_model, gpu) for gpu in mig_gpus),
                key=lambda mig_gpu: mig_gpu.index,
            )
        ),
        whole_gpus=len(agent_status.gpus) - len(mig_gpus),
        reports_pods=True,
        can_partition=agent_status.partitioning_enabled,
    )


def _mig_gpu(gpu_model: GpuModel, gpu: ObservedGpu) -> MigGpu:
    instances = (
        GpuInstance(
            placement=SlicePlacement(
                gpu_slice.start, devices.canonical_profile(gpu_model, gpu_slice.profile)
            ),
            holders=tuple(Ref(*pod.split("/", 1)) for pod in gpu_slice.pods),
            processes=gpu_slice.processes,
        )
        for gpu_slice in gpu.slices
    )
    return MigGpu(
        index=gpu.index,
        uuid=gpu.uuid,
        instances=tuple(sorted(instances, key=lambda instance: instance.placement)),
        # MIG mode was switched off, which takes effect with the next reset.
        fault="ResetRequired" if gpu.mode == "Disabling" else gpu.fault,
        message=gpu.message,
    )


def _from_counts(base: MigNode, target: NodeTarget | None) -> MigNode | str:
    """Return the node with layouts assumed from its slice counts, or with their inconsistency."""
    text = base.labels.get(COUNT_LABEL, "")
    # A search over as many GPUs as a label says could stop the process.
    gpu_count = parse_decimal(text, MAX_GPUS)
    if gpu_count is None:
        return f"its label {COUNT_LABEL} is {text[:20]!r}, not a number up to {MAX_GPUS}"
    counts, whole_gpus = _slice_counts(base, gpu_count)
    unknown = sorted(name for name in counts if base.gpu_model.find_profile(name) is None)
    if unknown:
        return f"{base.gpu_model.name} has no profile {unknown[0]}"
    if whole_gpus and not counts:
        return replace(base, whole_gpus=whole_gpus)
    if whole_gpus:
        slices = sum(counts.values())
        return (
            f"it offers {counted(whole_gpus, 'whole GPU')} beside {counted(slices, 'slice')}, "
            "and it is not known which of its GPUs are in MIG mode: install tessera-node "
            "(chart value node.enabled=true)"
        )
    geometry, preferred = tuple(sorted(counts.items())), _target_layouts(target, base.gpu_model)
    layouts = layouts_for_counts(base.gpu_model, geometry, gpu_count, preferred)
    if layouts is None:
        gpus_text = counted(gpu_count, f"{base.gpu_model.name} GPU")
        slices_text = ", ".join(f"{count}x {name}" for name, count in geometry)
        return f"{gpus_text} cannot be partitioned into {slices_text}"
    return replace(base, gpus=_gpus_of(layouts))


def with_assumed_gpus(node: MigNode) -> MigNode:
    """Return a node with slices beside whole GPUs as if its first GPUs had the slices.

    It serves pictures alone: which of its GPUs are in MIG mode is not known, so nothing may be
    planned there. A node with an agent, or whose slices fit no layout, is returned as it is.
    """
    gpu_count = parse_decimal(node.labels.get(COUNT_LABEL, ""), MAX_GPUS)
    if node.inconsistency is None or gpu_count is None or _agent_status(node.node_layout):
        return node
    counts, whole_gpus = _slice_counts(node, gpu_count)
    geometry = tuple(sorted(counts.items()))
    layouts = layouts_for_counts(node.gpu_model, geometry, gpu_count - whole_gpus)
    if not layouts or not geometry:
        return node
    return replace(node, gpus=_gpus_of(layouts), whole_gpus=whole_gpus, inconsistency=None)


def _gpus_of(layouts: Sequence[Layout]) -> tuple[MigGpu, ...]:
    return tuple(
        MigGpu(
            index=index, instances=tuple(GpuInstance(placement=placement) for placement in layout)
        )
        for index, layout in enumerate(layouts)
    )


def _slice_counts(base: MigNode, gpus: int) -> tuple[Mapping[str, int], int]:
    """Return the slices by profile, and the number of GPUs that are not in MIG mode."""
    counts, offered = devices.labeled_slices(base), devices.allocatable_slices(base)
    # While the device plugin restarts nothing is allocatable, and an unhealthy slice never is; the
    # labels usually stay.
    if any(base.allocatable.values()):
        whole_gpus = min(gpus, base.allocatable.get(GPU, 0))
        return counts if offered and offered <= counts else offered, whole_gpus
    return counts, 0 if counts or base.labels.get(_REPLICAS_LABEL) == "0" else gpus


def _target_layouts(target: NodeTarget | None, gpu_model: GpuModel) -> tuple[Layout, ...]:
    """Return the planned layouts of GPU 0, 1, ... up to the first GPU without one."""
    layouts: list[Layout] = []
    for gpu in sorted(target.gpus, key=lambda gpu: gpu.gpu) if target else ():
        if gpu.gpu != len(layouts):
            break
        layouts.append(parse_layout(gpu_model, gpu.slices))
    return tuple(layouts)
