"""What the labels and resources of a node say of its devices, and which is believed.

Of two that contradict, the one that promises less is believed: a pod for a device that does not
exist, or that another pod uses too, never starts.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from tessera.api.accelerator_pool import COUNT_LABEL, PRODUCT_LABEL
from tessera.api.node_layout import MAX_GPUS
from tessera.api.pool_reasons import Discovered
from tessera.api.reasons import StatusVerdict
from tessera.api.text import counted, first_names, parse_decimal
from tessera.domain.hardware.device import GPU, MIG_PREFIX, sized_profiles
from tessera.domain.hardware.gpu_catalog import SHARED_PRODUCT, Product
from tessera.domain.hardware.gpu_models import GpuModel, find_gpu_model
from tessera.domain.observed.snapshot import Node

# The device plugin adds it to resources with `renameByDefault`.
_SHARED_RESOURCE = ".shared"
_MAX_REPLICAS = 10**6


@dataclass(frozen=True, slots=True)
class OfferedNodes:
    """Nodes with the devices that may be offered, and why the others are not."""

    nodes: tuple[Node, ...]
    verdicts: tuple[StatusVerdict[Discovered], ...] = ()


def product_of(node: Node) -> str | None:
    """Return the GPU product of a node, which for shared GPUs is that of the GPUs."""
    return node.labels.get(PRODUCT_LABEL, "").removesuffix(SHARED_PRODUCT) or None


def offered_nodes(product: Product | None, nodes: Sequence[Node]) -> OfferedNodes:
    """Return the nodes without devices that pods share, and whole GPUs that cannot be there."""
    gpu_model = find_gpu_model(product.product) if product is not None else None
    sharing = {node.name: shared_resources(node) for node in nodes}
    own = [_with_counts(node, dict.fromkeys(sharing[node.name], 0)) for node in nodes]
    verdicts = [
        *_sharing_verdicts({name: ways for name, ways in sharing.items() if ways}),
        *(_profile_verdicts(product, own) if product is not None else ()),
        *_contradiction_verdicts(
            [
                f"Node/{node.name}: {text}"
                for node in own
                if (text := contradiction(gpu_model, node)) is not None
            ]
        ),
    ]
    believed = [_with_counts(node, {GPU: believed_gpus(gpu_model, node)}) for node in own]
    return OfferedNodes(tuple(believed), tuple(verdicts))


def shared_resources(node: Node) -> Mapping[str, str]:
    """Return how pods share the devices of each resource that they do share.

    The labels are believed, not the number of devices: it counts the shares.
    """
    sharing = {}
    for resource in sorted({GPU, *node.allocatable}):
        base = resource.removesuffix(_SHARED_RESOURCE)
        strategy = node.labels.get(f"{base}.sharing-strategy") or "none"
        replicas = parse_decimal(node.labels.get(f"{base}.replicas", ""), _MAX_REPLICAS) or 0
        labeled = node.labels.get(PRODUCT_LABEL, "").endswith(SHARED_PRODUCT) and resource == GPU
        renamed = base != resource and node.allocatable[resource] > 0
        if labeled or renamed or (base == resource and (strategy != "none" or replicas > 1)):
            sharing[resource] = "MPS" if strategy == "mps" else "time slicing"
    return sharing


def believed_gpus(gpu_model: GpuModel | None, node: Node) -> int:
    """Return the whole GPUs that a node can offer by the number that its label says.

    Slices are believed, since the device plugin lists each of them; whole GPUs for which they leave
    no room are those of before, and of which GPUs is not known.
    """
    labeled, whole = _labeled_gpus(node), node.allocatable.get(GPU, 0)
    needed = _fewest_gpus(gpu_model, node)
    if labeled is None or whole + needed <= labeled:
        return whole
    return 0 if needed else labeled


def contradiction(gpu_model: GpuModel | None, node: Node) -> str | None:
    """Return how the label of the number of GPUs contradicts the devices; None if it does not."""
    labeled, whole = _labeled_gpus(node), node.allocatable.get(GPU, 0)
    needed = _fewest_gpus(gpu_model, node)
    if labeled is None:
        written = node.labels.get(COUNT_LABEL)
        state = "missing" if written is None else f"no count ({written[:40]!r})"
        return (
            f"{COUNT_LABEL} is {state} beside slices of {counted(needed, 'GPU')}"
            if needed
            else None
        )
    if whole + needed <= labeled:
        return None
    parts = [counted(whole, "whole GPU")] if whole else []
    parts += [f"slices of {counted(needed, 'GPU')}"] if needed else []
    return f"{COUNT_LABEL} is {labeled} beside {' and '.join(parts)}"


def gpus_in_mig_mode(gpu_model: GpuModel | None, nodes: Sequence[Node]) -> int:
    """Return the GPUs in MIG mode: those not offered whole, at least as many as slices need."""
    return sum(
        max(
            (_labeled_gpus(node) or 0) - node.allocatable.get(GPU, 0),
            _fewest_gpus(gpu_model, node),
        )
        for node in nodes
        if any(resource.startswith(MIG_PREFIX) for resource in node.allocatable)
    )


def _labeled_gpus(node: Node) -> int | None:
    return parse_decimal(node.labels.get(COUNT_LABEL, ""), MAX_GPUS)


def _fewest_gpus(gpu_model: GpuModel | None, node: Node) -> int:
    """Return the fewest GPUs that could have the slices of a node; 0 without known slices."""
    if gpu_model is None:
        return 0
    compute = memory = 0
    for resource, count in node.allocatable.items():
        profile = gpu_model.find_profile(resource.removeprefix(MIG_PREFIX))
        if profile is not None:
            compute += count * profile.compute_slices
            memory += count * profile.memory_slices
    return max(ceil(compute / gpu_model.compute_slices), ceil(memory / gpu_model.memory_slices))


def _with_counts(node: Node, counts: Mapping[str, int]) -> Node:
    """Return the node with other numbers of the devices that it has."""
    changed = {name: number for name, number in counts.items() if name in node.allocatable}
    if changed.items() <= node.allocatable.items():
        return node
    return replace(node, allocatable={**node.allocatable, **changed})


def _sharing_verdicts(
    sharing: Mapping[str, Mapping[str, str]],
) -> Iterator[StatusVerdict[Discovered]]:
    if sharing:
        ways = " and ".join(sorted({way for shared in sharing.values() for way in shared.values()}))
        resources = " and ".join(sorted({name for shared in sharing.values() for name in shared}))
        yield StatusVerdict(
            Discovered.SHARED_GPUS,
            f"{ways} is on at {first_names([f'Node/{name}' for name in sorted(sharing)])}, so each "
            f"{resources} is a share of a device, and an engine needs one of its own. Turn it off "
            "there: remove `sharing` from the configuration of the device plugin that the nodes "
            "have (ConfigMap of devicePlugin.config, label nvidia.com/device-plugin.config)",
        )


def _profile_verdicts(
    product: Product, nodes: Sequence[Node]
) -> Iterator[StatusVerdict[Discovered]]:
    """Yield which slices are not offered, since nothing is known of their size."""
    gpu_model, sized = find_gpu_model(product.product), sized_profiles(product)
    counts: Counter[str] = Counter()
    for node in nodes:
        for resource, count in node.allocatable.items():
            profile = resource.removeprefix(MIG_PREFIX)
            known = gpu_model.find_profile(profile) if gpu_model is not None else None
            if resource.startswith(MIG_PREFIX) and known not in sized and count:
                counts[profile if known is None else known.name] += count
    if not counts:
        return
    names = ", ".join(f"{count}x {name}" for name, count in sorted(counts.items()))
    offered = ", ".join(profile.name for profile in sized)
    advice = f"make slices of {offered} instead" if sized else "use these GPUs without MIG mode"
    yield StatusVerdict(
        Discovered.UNKNOWN_PROFILES,
        f"{names} not offered, since the size of such a slice of {product.product} is not known; "
        f"{advice}",
    )


def _contradiction_verdicts(texts: Sequence[str]) -> Iterator[StatusVerdict[Discovered]]:
    if texts:
        yield StatusVerdict(
            Discovered.INCONSISTENT_LABELS,
            f"{first_names(sorted(texts))}. Slices are offered, and whole GPUs as far as the label "
            "leaves room; restart GPU feature discovery and the device plugin there",
        )
