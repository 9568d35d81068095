"""GPUs with the slices that are cut on them, and who sits where."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tessera.domain.mig.demand import Kind
from tessera.domain.mig.layouts import Layout, Spot


class Slice(NamedTuple):
    """One instance of a profile; without a service it is idle."""

    start: int
    profile: str
    service: str | None

    @property
    def spot(self) -> Spot:
        return Spot(self.start, self.profile)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU; its slices by start."""

    name: str
    board: str
    node: str = ""
    slices: tuple[Slice, ...] = ()
    fixed: Layout = ()
    """Of its slices, those in other hands: they stay, and nobody gets them."""
    locked: bool = False
    """Nothing is cut here."""

    @property
    def layout(self) -> Layout:
        """What is cut, whoever sits on it."""
        return tuple(one.spot for one in self.slices)

    @property
    def used(self) -> bool:
        """Somebody sits on it."""
        return any(one.service is not None for one in self.slices)

    @property
    def sunk(self) -> bool:
        """It is paid whatever is planned."""
        return bool(self.fixed) or self.locked

    @property
    def paid(self) -> bool:
        """It has to be paid for the sake of those who sit on it."""
        return self.used and not self.sunk

    def kind(self, one: Slice) -> Kind:
        """What the slice is to a service."""
        return Kind(self.board, one.profile)


def instances(gpus: Iterable[Gpu]) -> dict[str, Counter[Kind]]:
    """How many instances of each kind every service has."""
    found: dict[str, Counter[Kind]] = {}
    for gpu in gpus:
        for one in gpu.slices:
            if one.service is not None:
                found.setdefault(one.service, Counter())[gpu.kind(one)] += 1
    return found
