"""What a node offers of its slices, in the names of the table of boards."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache

from tessera.domain.hardware.pools import MIG_PREFIX
from tessera.domain.mig.gpu_models import GpuModel
from tessera.domain.mig.layouts import Layout, geometry
from tessera.domain.mig_backends.nodes import MigNode

DEVICE_PLUGIN_LABEL = "nvidia.com/gpu.deploy.device-plugin"
FEATURE_DISCOVERY_LABEL = "nvidia.com/gpu.deploy.gpu-feature-discovery"
# What such a label says while the GPU operator shall keep a part of itself off a node.
PAUSED = "paused-for-mig-change"

_COUNT = re.compile(r"nvidia\.com/mig-(.+)\.count")


def canonical_profile(gpu_model: GpuModel, profile: str) -> str:
    """A profile by the name used here, whichever a driver gave it."""
    gi_profile = gpu_model.find_profile(profile)
    return gi_profile.name if gi_profile else profile


def allocatable_slices(node: MigNode) -> Counter[str]:
    """Slices that pods may have, by profile; keys with a zero, which kubelets keep, are none."""
    counts: Counter[str] = Counter()
    for name, count in node.allocatable.items():
        profile = profile_of(node.gpu_model, name)
        if profile is not None and count:
            counts[profile] += count
    return counts


def labeled_slices(node: MigNode) -> Counter[str]:
    """The same by the labels of GPU feature discovery."""
    counts: Counter[str] = Counter()
    for label, text in node.labels.items():
        match = _COUNT.fullmatch(label)
        if match and text.isdecimal() and text.isascii() and int(text):
            counts[_profile_from_label(node.gpu_model, match[1])] += int(text)
    return counts


def offers_layouts(node: MigNode, desired: Mapping[int, Layout]) -> bool:
    """Do pods get just what there should be, with these GPUs as wanted and the others as they are?

    Feature discovery has to agree where it says anything: memory of slices is read from it.
    """
    layouts = {gpu.index: gpu.layout for gpu in node.gpus} | dict(desired)
    expected = count_slices(layouts.values())
    return allocatable_slices(node) == expected and labeled_slices(node) in (expected, Counter())


def count_slices(layouts: Iterable[Layout]) -> Counter[str]:
    """Slices by profile."""
    counts: Counter[str] = Counter()
    for layout in layouts:
        counts.update(dict(geometry(layout)))
    return counts


def profile_of(gpu_model: GpuModel, resource: str) -> str | None:
    """Of the slices of a board that a resource stands for; None of a resource of no slices."""
    return (
        _profile_from_label(gpu_model, resource.removeprefix(MIG_PREFIX))
        if resource.startswith(MIG_PREFIX)
        else None
    )


@lru_cache(maxsize=1024)
def _profile_from_label(gpu_model: GpuModel, text: str) -> str:
    """Labels and resources have no `+`."""
    names = (
        *(gi_profile.name for gi_profile in gpu_model.profiles),
        *(name for name, _ in gpu_model.aliases),
    )
    return canonical_profile(
        gpu_model, next((name for name in names if name.replace("+", ".") == text), text)
    )
