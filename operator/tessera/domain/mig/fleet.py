"""GPUs with the slices that are cut on them, and who sits where."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tessera.domain.mig.demand import InstanceType
from tessera.domain.mig.layouts import Layout, SlicePlacement


class FleetSlice(NamedTuple):
    """One instance of a profile; without a service it is idle."""

    start: int
    profile: str
    service: str | None

    @property
    def placement(self) -> SlicePlacement:
        return SlicePlacement(self.start, self.profile)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetGpu:
    """One GPU; its slices by start."""

    name: str
    gpu_model: str
    node: str = ""
    slices: tuple[FleetSlice, ...] = ()
    foreign_slices: Layout = ()
    """Of its slices, those in other hands: they stay, and nobody gets them."""
    locked: bool = False
    """Nothing is cut here."""

    @property
    def layout(self) -> Layout:
        """What is cut, whoever sits on it."""
        return tuple(mig_slice.placement for mig_slice in self.slices)

    @property
    def used(self) -> bool:
        """Somebody sits on it."""
        return any(mig_slice.service is not None for mig_slice in self.slices)

    @property
    def sunk(self) -> bool:
        """It is paid whatever is planned."""
        return bool(self.foreign_slices) or self.locked

    @property
    def paid(self) -> bool:
        """It has to be paid for the sake of those who sit on it."""
        return self.used and not self.sunk

    def instance_type(self, mig_slice: FleetSlice) -> InstanceType:
        """What the slice is to a service."""
        return InstanceType(self.gpu_model, mig_slice.profile)


def replicas_by_service(gpus: Iterable[FleetGpu]) -> dict[str, Counter[InstanceType]]:
    """How many instances of each kind every service has."""
    replicas: dict[str, Counter[InstanceType]] = {}
    for gpu in gpus:
        for mig_slice in gpu.slices:
            if mig_slice.service is not None:
                replicas.setdefault(mig_slice.service, Counter())[gpu.instance_type(mig_slice)] += 1
    return replicas
