"""Histograms that count at the target of each service, beside edges that all have."""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from tessera.domain.slo.measurement import edge_label


class TargetHistogram:
    """A histogram with an edge at a target; another target begins it again, as a restart does."""

    __slots__ = ("_base", "_counts", "_edges", "_since_ns", "_target", "sum")

    def __init__(self, base: Sequence[float]) -> None:
        self._base = base
        self._target: float | None = None
        self._since_ns = 0
        self._begin(None)

    def follow(self, target: float, started_at_ns: int) -> bool:
        """Take over the target of a request; False for one of an earlier target."""
        if target == self._target:
            return True
        if self._target is not None and started_at_ns < self._since_ns:
            return False
        self._since_ns = started_at_ns
        self._begin(target)
        return True

    def observe(self, seconds: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._edges, seconds)] += 1
        self.sum += seconds

    def add(self, within: int, beyond: int, seconds: float) -> None:
        """Count values of which only their side of the target is known, and their sum."""
        self._counts[bisect_left(self._edges, self._target or 0.0)] += within
        self._counts[-1] += beyond
        self.sum += seconds

    def buckets(self) -> Sequence[tuple[str, float]]:
        """Return the cumulative counts by their edges."""
        edges = [*map(edge_label, self._edges), edge_label(math.inf)]
        return list(zip(edges, map(float, accumulate(self._counts)), strict=True))

    def _begin(self, target: float | None) -> None:
        self._target = target
        self._edges = sorted({*self._base, *(() if target is None else (target,))})
        self._counts = [0] * (len(self._edges) + 1)
        self.sum = 0.0


class TargetHistograms(Collector):
    """One metric of such histograms, by tenant and service."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], base: Sequence[float] = ()
    ) -> None:
        self._name, self._documentation = name, documentation
        self._labels, self._base = labels, base
        self._histograms: dict[tuple[str, ...], TargetHistogram] = {}

    def labels(self, *values: str) -> TargetHistogram:
        """Return the histogram with these labels."""
        return self._histograms.setdefault(values, TargetHistogram(self._base))

    def remove(self, *values: str) -> None:
        """Remove the histogram with these labels."""
        del self._histograms[values]

    @override
    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, histogram in list(self._histograms.items()):
            family.add_metric(values, buckets=histogram.buckets(), sum_value=histogram.sum)
        yield family
