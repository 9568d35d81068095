"""Which MIG profiles a board has and where each may stand, from the data file beside it.

A placement lies on the axis of memory slices. What a board itself reports goes before this table.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from pydantic import TypeAdapter

from tessera.api.meta import Wire

# What stands for the unpartitioned GPU where profiles are named.
WHOLE_GPU = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuInstanceProfile:
    """One profile of a board."""

    name: str
    constant: str
    """NVML's name without `NVML_GPU_INSTANCE_PROFILE_`; the ids of nvidia-smi differ by board."""
    compute_slices: int
    memory_slices: int
    starts: tuple[int, ...]
    """Memory slices that it may begin at."""
    max_instances: int
    """So many at once on one GPU."""
    has_media_engines: bool
    """It owns media engines of which a GPU has one set: one such instance on a GPU at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuModel:
    """One kind of GPU, as far as cutting goes.

    Boards are keys of what is remembered, and a name is enough for that.
    """

    name: str
    products: tuple[str, ...] = field(hash=False)
    """Names that GPU feature discovery gives it."""
    pci_devices: tuple[str, ...] = field(hash=False)
    compute_slices: int
    memory_slices: int
    profiles: tuple[GpuInstanceProfile, ...] = field(hash=False)
    aliases: tuple[tuple[str, str], ...] = field(hash=False)
    """Other names that some board or driver gives a profile, each with the name used here."""
    _profile_by_name: Mapping[str, GpuInstanceProfile] = field(
        init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        by_name = {gi_profile.name: gi_profile for gi_profile in reversed(self.profiles)}
        by_name |= {
            name: by_name[usual_name] for name, usual_name in self.aliases if usual_name in by_name
        }
        object.__setattr__(self, "_profile_by_name", by_name)

    def find_profile(self, profile: str) -> GpuInstanceProfile | None:
        """By any of its names."""
        return self._profile_by_name.get(profile)


class _ProfileFamily(Wire):
    class ProfileEntry(Wire):
        constant: str
        value: int
        compute_slices: int
        memory_slices: int
        starts: tuple[int, ...]
        most: int
        media: bool

    family: str
    compute_slices: int
    memory_slices: int
    cuts: tuple[ProfileEntry, ...]


class _GpuModelEntry(Wire):
    board: str
    products: tuple[str, ...]
    pci_devices: tuple[str, ...]
    family: str
    names: dict[str, tuple[str, ...]]


class _ProfileFile(Wire):
    source: str
    families: tuple[_ProfileFamily, ...]
    boards: tuple[_GpuModelEntry, ...]


@cache
def gpu_models() -> Mapping[str, GpuModel]:
    """All known boards by name."""
    file = _read_profile_file()
    families = {family.family: family for family in file.families}
    return {entry.board: _build_gpu_model(entry, families[entry.family]) for entry in file.boards}


@cache
def nvml_profile_constants() -> Mapping[str, int]:
    """The values of NVML's constants."""
    return {
        gi_profile.constant: gi_profile.value
        for family in _read_profile_file().families
        for gi_profile in family.cuts
    }


def find_gpu_model(name: str) -> GpuModel | None:
    """By its own name or that of a product."""
    models_by_name = gpu_models()
    return models_by_name.get(name) or next(
        (gpu_model for gpu_model in models_by_name.values() if name in gpu_model.products), None
    )


def _read_profile_file() -> _ProfileFile:
    text = resources.files("tessera.domain").joinpath("data", "mig.json").read_text("utf-8")
    return TypeAdapter(_ProfileFile).validate_python(json.loads(text))


def _build_gpu_model(entry: _GpuModelEntry, family: _ProfileFamily) -> GpuModel:
    gi_profiles = tuple(
        GpuInstanceProfile(
            name=entry.names[gi_profile.constant][0],
            constant=gi_profile.constant,
            compute_slices=gi_profile.compute_slices,
            memory_slices=gi_profile.memory_slices,
            starts=gi_profile.starts,
            max_instances=gi_profile.most,
            has_media_engines=gi_profile.media,
        )
        for gi_profile in family.cuts
    )
    return GpuModel(
        name=entry.board,
        products=entry.products,
        pci_devices=entry.pci_devices,
        compute_slices=family.compute_slices,
        memory_slices=family.memory_slices,
        profiles=gi_profiles,
        aliases=tuple((name, names[0]) for names in entry.names.values() for name in names[1:]),
    )
