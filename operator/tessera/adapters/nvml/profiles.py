"""The MIG profiles of a GPU as its driver reports them; `mig.json` only adds aliases."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from ctypes import byref, c_uint
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tessera.domain.hardware.gpu_models import GpuInstanceProfile, GpuModel, find_gpu_model

_ERROR = "NVML_ERROR_"
_PREFIX = "NVML_GPU_INSTANCE_PROFILE_"
_NAME_PATTERN = re.compile(r"(?:MIG )?([1-9]g\.[0-9]+gb(?:[+-][a-z.]+)?)")
_NAME_SUFFIXES = {"_REV1": "+me", "_GFX": "+gfx", "_NO_ME": "-me", "_ALL_ME": "+me.all"}
_MEDIA_SUFFIXES = ("_REV1", "_ALL_ME")
# GPU models whose driver reports wrong placements; `mig.json` takes precedence for them.
_MISREPORTED_MODELS = ("A30-24GB",)
# The device plugin rounds a profile's share of the memory to eighths.
_EIGHTHS = 8
_GIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlProfile(GpuInstanceProfile):
    """A GPU instance profile with the driver's numbers."""

    id: int


def error_name(nvml: Any, error: Exception) -> str:
    """Return the name of an error's code without prefix, such as IN_USE."""
    return _error_names(nvml).get(getattr(error, "value", 0), "UNKNOWN")


@lru_cache(maxsize=1)
def _error_names(nvml: Any) -> Mapping[int, str]:
    code_by_name = {name: code for name, code in vars(nvml).items() if name.startswith(_ERROR)}
    return {code: name.removeprefix(_ERROR) for name, code in code_by_name.items()}


def read_profiles(nvml: Any, handle: Any, product: str, gpu_mib: int) -> tuple[NvmlProfile, ...]:
    """Return the profiles of the GPU, by NVML's constants."""
    return tuple(_iterate_profiles(nvml, handle, find_gpu_model(product), gpu_mib))


def build_gpu_model(product: str, profiles: Sequence[NvmlProfile]) -> GpuModel:
    """Return the GPU model with the driver's profiles, and the names in `mig.json` as aliases."""
    table_model = find_gpu_model(product)
    if table_model is not None and table_model.name in _MISREPORTED_MODELS:
        return table_model
    return GpuModel(
        name=product,
        products=(product,),
        compute_slices=max((profile.compute_slices for profile in profiles), default=0),
        memory_slices=max(
            (profile.starts[-1] + profile.memory_slices for profile in profiles), default=0
        ),
        profiles=tuple(profiles),
        aliases=tuple(
            (name, profile.name)
            for profile in profiles
            for name in _table_names(table_model, profile.constant)
            if name != profile.name
        ),
    )


def _iterate_profiles(
    nvml: Any, handle: Any, table_model: GpuModel | None, gpu_mib: int
) -> Iterator[NvmlProfile]:
    for constant, profile_constant in _profile_constants(nvml):
        try:
            # A GPU answers for every constant whether it has such a profile.
            info = _read_profile(nvml, handle, profile_constant)
            starts, size = _read_placements(nvml, handle, info.id)
        except nvml.NVMLError as error:
            if error_name(nvml, error) in ("NOT_SUPPORTED", "INVALID_ARGUMENT"):
                continue
            raise
        yield NvmlProfile(
            constant=constant,
            id=info.id,
            name=_profile_name(info, constant, table_model, gpu_mib),
            compute_slices=info.sliceCount,
            memory_slices=size,
            starts=starts,
            max_instances=info.instanceCount,
            has_media_engines=constant.endswith(_MEDIA_SUFFIXES),
            memory_mib=info.memorySizeMB,
        )


@lru_cache(maxsize=1)
def _profile_constants(nvml: Any) -> list[tuple[str, int]]:
    ids = ((name, value) for name, value in vars(nvml).items() if name.startswith(_PREFIX))
    constants = [(name.removeprefix(_PREFIX), value) for name, value in ids if "SLICE" in name]
    return sorted(constants, key=lambda pair: pair[1])


def _read_profile(nvml: Any, handle: Any, profile_constant: int) -> Any:
    try:
        return nvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, profile_constant)
    except nvml.NVMLError as error:
        if error_name(nvml, error) != "FUNCTION_NOT_FOUND":
            raise
        # Older drivers have the first version of the call only.
        return nvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, profile_constant, version=1)


def _read_placements(nvml: Any, handle: Any, profile: int) -> tuple[tuple[int, ...], int]:
    """Return the starts and the size of a profile's instances, in memory slices."""
    count = c_uint(0)
    nvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, profile, None, byref(count))
    buffer = (nvml.c_nvmlGpuInstancePlacement_t * count.value)()
    nvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, profile, buffer, byref(count))
    placements = sorted((placement.start, placement.size) for placement in buffer[: count.value])
    return tuple(start for start, _ in placements), placements[0][1] if placements else 0


def _profile_name(info: Any, constant: str, table_model: GpuModel | None, gpu_mib: int) -> str:
    """Return the driver's name, else that of the table, else one as the device plugin derives."""
    driver_name = getattr(info, "name", "")
    if match := _NAME_PATTERN.fullmatch(driver_name):
        return match[1]
    if names := _table_names(table_model, constant):
        return names[0]
    share = math.floor(info.memorySizeMB / gpu_mib * _EIGHTHS + 0.5) / _EIGHTHS
    gigabytes = math.floor(share * math.ceil(gpu_mib / _GIB) + 0.5)
    suffix = next(
        (suffix_text for end, suffix_text in _NAME_SUFFIXES.items() if constant.endswith(end)), ""
    )
    return f"{info.sliceCount}g.{gigabytes}gb{suffix}"


def _table_names(table_model: GpuModel | None, constant: str) -> list[str]:
    """Return all names of a profile in the table, the usual one first."""
    if table_model is None:
        return []
    usual = [profile.name for profile in table_model.profiles if profile.constant == constant]
    return usual + [name for name, usual_name in table_model.aliases if usual_name in usual]
