"""GPUs with their slices and the services that run on them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tessera.domain.hardware.gpu_layouts import Layout, SlicePlacement
from tessera.domain.mig.demand import InstanceType


class FleetSlice(NamedTuple):
    """A slice of a GPU; without a service it is idle."""

    start: int
    profile: str
    service: str | None

    @property
    def placement(self) -> SlicePlacement:
        return SlicePlacement(self.start, self.profile)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetGpu:
    """A GPU with its slices by start."""

    name: str
    gpu_model: str
    node: str = ""
    slices: tuple[FleetSlice, ...] = ()
    foreign_slices: Layout = ()
    """Slices that pods outside of the plan use: they stay and are not assigned."""
    locked: bool = False
    """Whether the GPU keeps its layout."""

    @property
    def layout(self) -> Layout:
        """Return the placements of all slices, used or idle."""
        return tuple(mig_slice.placement for mig_slice in self.slices)

    @property
    def used(self) -> bool:
        """Return whether a service runs on the GPU."""
        return any(mig_slice.service is not None for mig_slice in self.slices)

    @property
    def sunk(self) -> bool:
        """Return whether the GPU is paid in any case, so that the plan does not count it."""
        return bool(self.foreign_slices) or self.locked

    @property
    def paid(self) -> bool:
        """Return whether the GPU counts towards the plan's cost."""
        return self.used and not self.sunk

    def instance_type(self, mig_slice: FleetSlice) -> InstanceType:
        """Return the instance type of one of its slices."""
        return InstanceType(self.gpu_model, mig_slice.profile)


def replicas_by_service(gpus: Iterable[FleetGpu]) -> dict[str, Counter[InstanceType]]:
    """Return the replicas of every service by instance type."""
    replicas: dict[str, Counter[InstanceType]] = {}
    for gpu in gpus:
        for mig_slice in gpu.slices:
            if mig_slice.service is not None:
                replicas.setdefault(mig_slice.service, Counter())[gpu.instance_type(mig_slice)] += 1
    return replicas
