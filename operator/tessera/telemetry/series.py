"""Series whose values each scrape reads off the state of the fleet."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from tessera.domain.reporting.series import Sample, Series

Family: TypeAlias = GaugeMetricFamily | CounterMetricFamily


class SeriesCollector(Collector):
    """Collects what `read` returns, in another thread; an unknown value has no series."""

    def __init__(self, series: Sequence[Series], read: Callable[[], Iterable[Sample]]) -> None:
        self._series, self._read = series, read

    @override
    def collect(self) -> Iterator[Family]:
        families = {series: _family(series) for series in self._series}
        for series, labels, value in self._read():
            if value is not None:
                families[series].add_metric(labels, value)
        yield from families.values()


def _family(series: Series) -> Family:
    """Return the metric of one scrape, without a value."""
    kind = CounterMetricFamily if series.kind == "counter" else GaugeMetricFamily
    return kind(series.name, series.text, labels=series.labels)
