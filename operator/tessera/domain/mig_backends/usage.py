"""Which pods hold the slices of a pool, and which share of its GPUs is paid for but unused."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from operator import attrgetter

from tessera.api.ref import Ref
from tessera.domain.hardware.gpu_layouts import SlicePlacement
from tessera.domain.hardware.gpu_models import WHOLE_GPU, GpuModel
from tessera.domain.hardware.weights import slice_weight
from tessera.domain.incremental import tabulated
from tessera.domain.mig_backends.devices import profile_of
from tessera.domain.mig_backends.nodes import GpuInstance, MigGpu, MigNode
from tessera.domain.observed.snapshot import Pod


class SliceState(StrEnum):
    """The use of a slice, as metrics and the CLI show it."""

    USED = "used"
    IDLE = "idle"
    DISPLACED = "displaced"
    """The pod that holds it must be evicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceUsage:
    """A slice with the pods that hold it."""

    node: str
    gpu: int
    placement: SlicePlacement
    share: Decimal
    """Share of the price of its GPU."""
    state: SliceState
    holders: tuple[Ref, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUsage:
    """The use of a pool's GPUs in MIG mode; shares are in units of one GPU's price."""

    gpus: int = 0
    slices: Mapping[tuple[str, SliceState], int]
    idle: Decimal
    """Share of slices that no pod holds."""
    stranded: Decimal
    """Share of the GPUs that no slice covers."""


@tabulated
def share(gpu_model: GpuModel, profile: str) -> Decimal:
    """Return the share of its GPU's price that a slice is billed."""
    gi_profile = gpu_model.find_profile(profile)
    if gi_profile is None:
        return Decimal(profile == WHOLE_GPU)
    compute = gi_profile.compute_slices, gpu_model.compute_slices
    return slice_weight(compute, (gi_profile.memory_slices, gpu_model.memory_slices))


def slice_usages(
    nodes: Sequence[MigNode], pods: Sequence[Pod], displaced: Collection[Ref] = ()
) -> tuple[SliceUsage, ...]:
    """Return the use of all slices, by node, GPU and start.

    Without an agent, pods are assumed to hold the first slices of their profile: the counts are
    right, the placements may not be.
    """
    pods_by_node: dict[str, list[Pod]] = defaultdict(list)
    for pod in pods:
        if pod.node is not None and pod.ended is None:
            pods_by_node[pod.node].append(pod)
    return tuple(
        SliceUsage(
            node=node.name,
            gpu=gpu.index,
            placement=instance.placement,
            share=share(node.gpu_model, instance.placement.profile),
            state=_state(instance, holders, displaced),
            holders=holders,
        )
        for node in sorted(nodes, key=attrgetter("name"))
        for gpu, instance, holders in instance_holders(node, pods_by_node.get(node.name, ()))
    )


def pool_usage(nodes: Sequence[MigNode], usages: Sequence[SliceUsage]) -> PoolUsage:
    """Return the sums over the slices of these nodes."""
    gpus = sum(len(node.gpus) for node in nodes)
    return PoolUsage(
        gpus=gpus,
        slices=Counter((usage.placement.profile, usage.state) for usage in usages),
        idle=sum((usage.share for usage in usages if usage.state is SliceState.IDLE), Decimal(0)),
        stranded=gpus - sum((usage.share for usage in usages), Decimal(0)),
    )


def _state(
    instance: GpuInstance, holders: tuple[Ref, ...], displaced: Collection[Ref]
) -> SliceState:
    if any(holder in displaced for holder in holders):
        return SliceState.DISPLACED
    return SliceState.USED if holders or instance.processes else SliceState.IDLE


def instance_holders(
    node: MigNode, pods: Sequence[Pod]
) -> Iterator[tuple[MigGpu, GpuInstance, tuple[Ref, ...]]]:
    """Yield the slices of a node with the pods that hold them, by GPU and start.

    Without an agent, these `pods` of the node are assumed to hold the first slices of their
    profile.
    """
    pending: dict[str, list[Ref]] = defaultdict(list)
    # Reversed, since `pop` takes from the end: the first pod gets the first slice.
    for pod in sorted(pods, key=attrgetter("ref"), reverse=True):
        for resource, count in pod.devices.items():
            if (profile := profile_of(node.gpu_model, resource)) is not None:
                pending[profile] += [pod.ref] * count
    for gpu in node.gpus:
        for instance in gpu.instances:
            if node.reports_pods:
                yield gpu, instance, instance.holders
                continue
            available = pending[instance.placement.profile]
            yield gpu, instance, (available.pop(),) if available else ()
