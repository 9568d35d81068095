"""The MIG devices that a node offers to pods, by the profile names of the GPU model table."""

import re
from collections import Counter
from collections.abc import Mapping

from tessera.api.node_layout import MAX_GPUS
from tessera.api.text import parse_decimal
from tessera.domain.hardware.device import MIG_PREFIX
from tessera.domain.hardware.gpu_catalog import COMPUTE_SLICES
from tessera.domain.hardware.gpu_layouts import Layout
from tessera.domain.hardware.gpu_models import GpuModel
from tessera.domain.mig_backends.nodes import MigNode

DEVICE_PLUGIN_LABEL = "nvidia.com/gpu.deploy.device-plugin"
FEATURE_DISCOVERY_LABEL = "nvidia.com/gpu.deploy.gpu-feature-discovery"
# Value of such a label while the GPU operator keeps that component off the node.
PAUSED = "paused-for-mig-change"

# A node has at most so many of one profile.
_MAX_SLICES = MAX_GPUS * COMPUTE_SLICES
_COUNT = re.compile(r"nvidia\.com/mig-(.+)\.count")


def canonical_profile(gpu_model: GpuModel, profile: str) -> str:
    """Return the table's name of a profile; drivers use several."""
    gi_profile = gpu_model.find_profile(profile)
    return gi_profile.name if gi_profile else profile


def allocatable_slices(node: MigNode) -> Counter[str]:
    """Return the allocatable slices of a node by profile."""
    counts: Counter[str] = Counter()
    for name, count in node.allocatable.items():
        profile = profile_of(node.gpu_model, name)
        # Kubelets keep the resources of removed slices with a count of 0.
        if profile is not None and count:
            counts[profile] += count
    return counts


def labeled_slices(node: MigNode) -> Counter[str]:
    """Return the slices of a node by profile, from the labels of GPU feature discovery."""
    counts: Counter[str] = Counter()
    for label, text in node.labels.items():
        match = _COUNT.fullmatch(label)
        if match and (count := parse_decimal(text, _MAX_SLICES)):
            counts[canonical_profile(node.gpu_model, match[1])] += count
    return counts


def offers_layouts(node: MigNode, desired: Mapping[int, Layout]) -> bool:
    """Return whether the node offers exactly the slices of these layouts and of its other GPUs."""
    expected = planned_slices(node, desired)
    # Feature discovery, where it runs, has to agree: the memory of slices is read from its labels.
    return allocatable_slices(node) == expected and labeled_slices(node) in (expected, Counter())


def planned_slices(node: MigNode, desired: Mapping[int, Layout]) -> Counter[str]:
    """Return the slices of these layouts and of the node's other GPUs, by profile."""
    layouts = {gpu.index: gpu.layout for gpu in node.gpus} | dict(desired)
    return Counter(placement.profile for layout in layouts.values() for placement in layout)


def profile_of(gpu_model: GpuModel, resource: str) -> str | None:
    """Return the profile of an extended resource, None if the resource is not a MIG slice."""
    return (
        canonical_profile(gpu_model, resource.removeprefix(MIG_PREFIX))
        if resource.startswith(MIG_PREFIX)
        else None
    )
