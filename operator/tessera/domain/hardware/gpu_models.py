"""All facts about MIG of the known GPU models, from `data/mig.json`.

Placements are counted in memory slices. What a GPU's driver reports takes precedence.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Annotated

from pydantic import Field, TypeAdapter

from tessera.api.meta import Wire
from tessera.domain.incremental import constant

# Takes the place of a profile's name for a GPU without MIG mode.
WHOLE_GPU = "whole"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuInstanceProfile:
    """A GPU instance profile of one GPU model."""

    name: str
    constant: str
    """NVML's name without `NVML_GPU_INSTANCE_PROFILE_`; nvidia-smi's ids differ by GPU model."""
    compute_slices: int
    memory_slices: int
    starts: tuple[int, ...]
    """Memory slices at which an instance may start."""
    max_instances: int
    """Instances that one GPU can have at the same time."""
    has_media_engines: bool
    """Whether an instance owns the GPU's only set of media engines, so that no other may."""
    multiprocessors: int | None = None
    """None where no GPU of the model was asked; they are not proportional to compute slices."""
    memory_mib: int | None = None
    """None where no GPU of the model was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuModel:
    """A GPU model with its MIG geometry."""

    # Models are keys of caches; hashing the name alone keeps lookups cheap.
    name: str
    products: tuple[str, ...] = field(hash=False)
    """Values of the label `nvidia.com/gpu.product` by GPU feature discovery."""
    compute_slices: int
    memory_slices: int
    profiles: tuple[GpuInstanceProfile, ...] = field(hash=False)
    aliases: tuple[tuple[str, str], ...] = field(hash=False)
    """Other names of profiles (by model or driver version), each with the name used here."""
    _profile_by_name: Mapping[str, GpuInstanceProfile] = field(
        init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        by_name = {gi_profile.name: gi_profile for gi_profile in reversed(self.profiles)}
        by_name |= {
            name: by_name[usual_name] for name, usual_name in self.aliases if usual_name in by_name
        }
        # Kubernetes allows no `+` in names: 1g.10gb+me is 1g.10gb.me there.
        by_name |= {name.replace("+", "."): gi_profile for name, gi_profile in by_name.items()}
        object.__setattr__(self, "_profile_by_name", by_name)

    def find_profile(self, profile: str) -> GpuInstanceProfile | None:
        """Return the profile by its name, an alias or the end of its resource; None without one."""
        return self._profile_by_name.get(profile)

    def memory_slices_of(self, profile: str) -> int:
        """Return the memory slices of the profile with this name or alias; 0 without one."""
        gi_profile = self.find_profile(profile)
        return gi_profile.memory_slices if gi_profile else 0


class _ProfileFamily(Wire):
    class ProfileEntry(Wire):
        constant: str
        compute_slices: int
        memory_slices: int
        starts: tuple[int, ...]
        max_instances: int
        has_media_engines: bool

    family: str
    compute_slices: int
    memory_slices: int
    profiles: tuple[ProfileEntry, ...]


class _GpuModelEntry(Wire):
    class NamedProfile(Wire):
        names: tuple[str, ...]
        multiprocessors: int | None = None
        memory_mib: Annotated[int | None, Field(alias="memoryMiB")] = None

    gpu_model: str
    products: tuple[str, ...]
    family: str
    profiles: dict[str, NamedProfile]


class _ProfileFile(Wire):
    source: str
    families: tuple[_ProfileFamily, ...]
    gpu_models: tuple[_GpuModelEntry, ...]


@constant
def gpu_models() -> Mapping[str, GpuModel]:
    """Return all known GPU models by name."""
    text = resources.files("tessera.domain").joinpath("data", "mig.json").read_text("utf-8")
    file = TypeAdapter(_ProfileFile).validate_python(json.loads(text))
    families = {family.family: family for family in file.families}
    return {
        entry.gpu_model: _build_gpu_model(entry, families[entry.family])
        for entry in file.gpu_models
    }


def find_gpu_model(name: str) -> GpuModel | None:
    """Return the GPU model with this name or product label; None if it is unknown."""
    models_by_name = gpu_models()
    return models_by_name.get(name) or next(
        (gpu_model for gpu_model in models_by_name.values() if name in gpu_model.products), None
    )


def _build_gpu_model(entry: _GpuModelEntry, family: _ProfileFamily) -> GpuModel:
    gi_profiles = tuple(
        GpuInstanceProfile(
            name=named.names[0], **profile.model_dump(), **named.model_dump(exclude={"names"})
        )
        for profile in family.profiles
        for named in (entry.profiles[profile.constant],)
    )
    return GpuModel(
        name=entry.gpu_model,
        products=entry.products,
        compute_slices=family.compute_slices,
        memory_slices=family.memory_slices,
        profiles=gi_profiles,
        aliases=tuple(
            (name, profile.names[0])
            for profile in entry.profiles.values()
            for name in profile.names[1:]
        ),
    )
