"""Which MIG profiles a GPU has, as its driver tells; the tables only add other spellings."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from ctypes import byref, c_uint
from dataclasses import dataclass
from functools import cache
from typing import Any

from tessera.domain.mig.boards import Board, Cut, board_of

_ERROR = "NVML_ERROR_"
_PREFIX = "NVML_GPU_INSTANCE_PROFILE_"
_NAME = re.compile(r"(?:MIG )?([1-9]g\.[0-9]+gb(?:[+-][a-z.]+)?)")
_SUFFIXES = {"_REV1": "+me", "_GFX": "+gfx", "_NO_ME": "-me", "_ALL_ME": "+me.all"}
_MEDIA = ("_REV1", "_ALL_ME")
_MISREPORTED = ("A30-24GB",)
"""Boards whose driver tells wrong profiles: what the table says goes first."""
_EIGHTHS = 8
_GIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One profile under the numbers of a GPU's driver."""

    constant: str
    """NVML's name without its beginning."""
    id: int
    name: str
    slices: int
    most: int
    memory_mib: int
    starts: tuple[int, ...]
    size: int


def word(nvml: Any, error: Exception) -> str:
    """The name of an error's code, such as IN_USE."""
    return _words(nvml).get(getattr(error, "value", 0), "UNKNOWN")


@cache
def _words(nvml: Any) -> Mapping[int, str]:
    found = {name: code for name, code in vars(nvml).items() if name.startswith(_ERROR)}
    return {code: name.removeprefix(_ERROR) for name, code in found.items()}


def kinds(nvml: Any, handle: Any, product: str, gpu_mib: int) -> tuple[Kind, ...]:
    """Profiles that the GPU has, by NVML's numbers."""
    return tuple(_kinds(nvml, handle, board_of(product), gpu_mib))


def board(product: str, found: Sequence[Kind]) -> Board:
    """What may be cut, as the driver says; profiles are known by the names of the tables too."""
    table = board_of(product)
    if table is not None and table.name in _MISREPORTED:
        return table
    cuts = tuple(_cut(kind) for kind in found)
    return Board(
        name=product,
        products=(product,),
        pci_devices=(),
        compute_slices=max((cut.compute_slices for cut in cuts), default=0),
        memory_slices=max((kind.starts[-1] + kind.size for kind in found), default=0),
        cuts=cuts,
        spellings=tuple(
            (name, cut.profile)
            for cut in cuts
            for name in _names(table, cut.constant)
            if name != cut.profile
        ),
    )


def _kinds(nvml: Any, handle: Any, table: Board | None, gpu_mib: int) -> Iterator[Kind]:
    for constant, value in _constants(nvml):
        try:
            info = _info(nvml, handle, value)
            starts, size = _places(nvml, handle, info.id)
        except nvml.NVMLError as error:
            if word(nvml, error) in ("NOT_SUPPORTED", "INVALID_ARGUMENT"):
                continue
            raise
        yield Kind(
            constant=constant,
            id=info.id,
            name=_name(info, constant, table, gpu_mib),
            slices=info.sliceCount,
            most=info.instanceCount,
            memory_mib=info.memorySizeMB,
            starts=starts,
            size=size,
        )


@cache
def _constants(nvml: Any) -> list[tuple[str, int]]:
    named = ((name, value) for name, value in vars(nvml).items() if name.startswith(_PREFIX))
    found = [(name.removeprefix(_PREFIX), value) for name, value in named if "SLICE" in name]
    return sorted(found, key=lambda pair: pair[1])


def _info(nvml: Any, handle: Any, value: int) -> Any:
    try:
        return nvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, value)
    except nvml.NVMLError as error:
        if word(nvml, error) != "FUNCTION_NOT_FOUND":
            raise
        return nvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, value, version=1)


def _places(nvml: Any, handle: Any, profile: int) -> tuple[tuple[int, ...], int]:
    """Where instances may begin, and their size; on the axis of memory slices."""
    count = c_uint(0)
    nvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, profile, None, byref(count))
    found = (nvml.c_nvmlGpuInstancePlacement_t * count.value)()
    nvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, profile, found, byref(count))
    places = sorted((place.start, place.size) for place in found[: count.value])
    return tuple(start for start, _ in places), places[0][1] if places else 0


def _name(info: Any, constant: str, table: Board | None, gpu_mib: int) -> str:
    """The driver's own, that of the table, or derived as the device plugin does it."""
    told = getattr(info, "name", "")
    if found := _NAME.fullmatch(told):
        return found[1]
    if names := _names(table, constant):
        return names[0]
    share = math.floor(info.memorySizeMB / gpu_mib * _EIGHTHS + 0.5) / _EIGHTHS
    gigabytes = math.floor(share * math.ceil(gpu_mib / _GIB) + 0.5)
    suffix = next((told for end, told in _SUFFIXES.items() if constant.endswith(end)), "")
    return f"{info.sliceCount}g.{gigabytes}gb{suffix}"


def _names(table: Board | None, constant: str) -> list[str]:
    """All spellings of a profile, the usual one first."""
    if table is None:
        return []
    usual = [cut.profile for cut in table.cuts if cut.constant == constant]
    return usual + [name for name, known in table.spellings if known in usual]


def _cut(kind: Kind) -> Cut:
    return Cut(
        profile=kind.name,
        constant=kind.constant,
        compute_slices=kind.slices,
        memory_slices=kind.size,
        starts=kind.starts,
        most=kind.most,
        media=kind.constant.endswith(_MEDIA),
    )
