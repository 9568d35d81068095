"""How a load test differs from an earlier one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Measures = Mapping[str, float]
"""Figures of one load by their names; what is not known is absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure, then and now."""

    load: str
    figure: str
    before: float
    now: float

    @property
    def share(self) -> float | None:
        """By which part of what it was it grew; None from nothing."""
        return self.now / self.before - 1 if self.before else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """A test held against an earlier one."""

    at: str
    """When that was, as its report says it."""
    changes: tuple[Change, ...]
    doubts: tuple[str, ...]
    """Sentences on what makes the two hard to compare."""


def changes(before: Mapping[str, Measures], now: Mapping[str, Measures]) -> Iterator[Change]:
    """Of the loads and figures that both have, in the order of the present ones."""
    for load, figures in now.items():
        known = before.get(load, {})
        for figure, value in figures.items():
            if figure in known:
                yield Change(load=load, figure=figure, before=known[figure], now=value)


def unmatched(before: Mapping[str, Measures], now: Mapping[str, Measures]) -> Sequence[str]:
    """Present loads that the earlier test did not have."""
    return [load for load in now if load not in before]
