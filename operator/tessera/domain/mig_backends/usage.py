"""Who sits on the slices of a pool, and which part of its GPUs is paid for nothing."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import cache

from tessera.api.ref import Ref
from tessera.domain.hardware.weights import slice_weight
from tessera.domain.mig.gpu_models import WHOLE_GPU, GpuModel
from tessera.domain.mig.layouts import SlicePlacement
from tessera.domain.mig_backends.devices import profile_of
from tessera.domain.mig_backends.nodes import GpuInstance, MigGpu, MigNode
from tessera.domain.observed.snapshot import Pod


class SliceState(StrEnum):
    """What is to be said of a slice."""

    USED = "used"
    IDLE = "idle"
    DISPLACED = "doomed"
    """Who holds it has to leave it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceUsage:
    """A slice that exists, with who holds it."""

    node: str
    gpu: int
    placement: SlicePlacement
    share: Decimal
    """Of the price of its GPU."""
    state: SliceState
    holders: tuple[Ref, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUsage:
    """Of the GPUs of a pool that are in MIG mode; shares are in prices of one GPU."""

    gpus: int = 0
    slices: Mapping[tuple[str, SliceState], int]
    idle: Decimal
    """Slices that nobody holds."""
    stranded: Decimal
    """What no slice covers."""


@cache
def share(gpu_model: GpuModel, profile: str) -> Decimal:
    """What a slice is billed, as a share of its GPU."""
    gi_profile = gpu_model.find_profile(profile)
    if gi_profile is None:
        return Decimal(profile == WHOLE_GPU)
    compute = gi_profile.compute_slices, gpu_model.compute_slices
    return slice_weight(compute, (gi_profile.memory_slices, gpu_model.memory_slices))


def slice_usages(
    nodes: Sequence[MigNode], pods: Sequence[Pod], displaced: Collection[Ref] = ()
) -> tuple[SliceUsage, ...]:
    """All slices by node, GPU and start.

    Where no agent tells who holds which, the engines of a node are taken to hold the first slices
    of their profile, so that counts are right and places are not.
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
        for node in sorted(nodes, key=_node_name)
        for gpu, instance, holders in _instance_holders(node, pods_by_node.get(node.name, ()))
    )


def pool_usage(nodes: Sequence[MigNode], usages: Sequence[SliceUsage]) -> PoolUsage:
    """The sums over the seats of these grounds."""
    gpus = sum(len(node.gpus) for node in nodes)
    return PoolUsage(
        gpus=gpus,
        slices=Counter((usage.placement.profile, usage.state) for usage in usages),
        idle=sum((usage.share for usage in usages if usage.state is SliceState.IDLE), Decimal(0)),
        stranded=gpus - sum((usage.share for usage in usages), Decimal(0)),
    )


def _node_name(node: MigNode) -> str:
    return node.name


def _state(
    instance: GpuInstance, holders: tuple[Ref, ...], displaced: Collection[Ref]
) -> SliceState:
    if any(holder in displaced for holder in holders):
        return SliceState.DISPLACED
    return SliceState.USED if holders or instance.processes else SliceState.IDLE


def _instance_holders(
    node: MigNode, pods: Sequence[Pod]
) -> Iterator[tuple[MigGpu, GpuInstance, tuple[Ref, ...]]]:
    pending: dict[str, list[Ref]] = defaultdict(list)
    for pod in sorted(pods, key=_pod_ref, reverse=True):
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


def _pod_ref(pod: Pod) -> Ref:
    return pod.ref
