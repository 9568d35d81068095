"""How a load test differs from an earlier one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

# Figures of one load by their names; what is not known is absent.
Measures = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricChange:
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
class BaselineComparison:
    """A test held against an earlier one."""

    at: str
    """When that was, as its report says it."""
    changes: tuple[MetricChange, ...]
    caveats: tuple[str, ...]
    """Sentences on what makes the two hard to compare."""


def compare_loads(
    before: Mapping[str, Measures], now: Mapping[str, Measures]
) -> Iterator[MetricChange]:
    """Of the loads and figures that both have, in the order of the present ones."""
    for load, figures in now.items():
        earlier = before.get(load, {})
        for figure, value in figures.items():
            if figure in earlier:
                yield MetricChange(load=load, figure=figure, before=earlier[figure], now=value)


def new_loads(before: Mapping[str, Measures], now: Mapping[str, Measures]) -> Sequence[str]:
    """Present loads that the earlier test did not have."""
    return [load for load in now if load not in before]
