"""The difference between a load test and an earlier one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# Figures of one load by their names; what is not known is absent.
Measures = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricChange:
    """One metric of a load in both tests."""

    load: str
    metric: str
    before: float
    now: float

    @property
    def share(self) -> float | None:
        """Return the relative growth; None from zero."""
        return self.now / self.before - 1 if self.before else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineComparison:
    """A test compared with an earlier one."""

    at: str
    """Time of the earlier test, as its report has it."""
    changes: tuple[MetricChange, ...]
    caveats: tuple[str, ...]
    """Sentences on what makes the two hard to compare."""


def compare_loads(
    before: Mapping[str, Measures], now: Mapping[str, Measures]
) -> Iterator[MetricChange]:
    """Yield the changes of loads and metrics that both tests have, in the present order."""
    for load, figures in now.items():
        earlier = before.get(load, {})
        for figure, value in figures.items():
            if figure in earlier:
                yield MetricChange(load=load, metric=figure, before=earlier[figure], now=value)
