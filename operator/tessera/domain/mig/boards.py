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

WHOLE = "full"
"""What stands for the unpartitioned GPU where profiles are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One profile of a board."""

    profile: str
    constant: str
    """NVML's name without `NVML_GPU_INSTANCE_PROFILE_`; the ids of nvidia-smi differ by board."""
    compute_slices: int
    memory_slices: int
    starts: tuple[int, ...]
    """Memory slices that it may begin at."""
    most: int
    """So many at once on one GPU."""
    media: bool
    """It owns media engines of which a GPU has one set: one such instance on a GPU at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One kind of GPU, as far as cutting goes.

    Boards are keys of what is remembered, and a name is enough for that.
    """

    name: str
    products: tuple[str, ...] = field(hash=False)
    """Names that GPU feature discovery gives it."""
    pci_devices: tuple[str, ...] = field(hash=False)
    compute_slices: int
    memory_slices: int
    cuts: tuple[Cut, ...] = field(hash=False)
    spellings: tuple[tuple[str, str], ...] = field(hash=False)
    """Other names that some board or driver gives a profile, each with the name used here."""
    _named: Mapping[str, Cut] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        named = {cut.profile: cut for cut in reversed(self.cuts)}
        named |= {name: named[own] for name, own in self.spellings if own in named}
        object.__setattr__(self, "_named", named)

    def cut(self, profile: str) -> Cut | None:
        """By any of its names."""
        return self._named.get(profile)


class _Family(Wire):
    class Entry(Wire):
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
    cuts: tuple[Entry, ...]


class _Board(Wire):
    board: str
    products: tuple[str, ...]
    pci_devices: tuple[str, ...]
    family: str
    names: dict[str, tuple[str, ...]]


class _File(Wire):
    source: str
    families: tuple[_Family, ...]
    boards: tuple[_Board, ...]


@cache
def boards() -> Mapping[str, Board]:
    """All known boards by name."""
    file = _file()
    families = {family.family: family for family in file.families}
    return {entry.board: _board(entry, families[entry.family]) for entry in file.boards}


@cache
def constants() -> Mapping[str, int]:
    """The values of NVML's constants."""
    return {cut.constant: cut.value for family in _file().families for cut in family.cuts}


def board_of(name: str) -> Board | None:
    """By its own name or that of a product."""
    known = boards()
    return known.get(name) or next(
        (board for board in known.values() if name in board.products), None
    )


def _file() -> _File:
    text = resources.files("tessera.domain").joinpath("data", "mig.json").read_text("utf-8")
    return TypeAdapter(_File).validate_python(json.loads(text))


def _board(entry: _Board, family: _Family) -> Board:
    cuts = tuple(
        Cut(
            profile=entry.names[cut.constant][0],
            constant=cut.constant,
            compute_slices=cut.compute_slices,
            memory_slices=cut.memory_slices,
            starts=cut.starts,
            most=cut.most,
            media=cut.media,
        )
        for cut in family.cuts
    )
    return Board(
        name=entry.board,
        products=entry.products,
        pci_devices=entry.pci_devices,
        compute_slices=family.compute_slices,
        memory_slices=family.memory_slices,
        cuts=cuts,
        spellings=tuple((name, names[0]) for names in entry.names.values() for name in names[1:]),
    )
