"""Series whose values each scrape reads off the state of the fleet."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

Family: TypeAlias = GaugeMetricFamily | CounterMetricFamily


class Series:
    """What there is to know of a metric besides its values; a gauge if nothing else is said."""

    def __init__(
        self, name: str, text: str, *labels: str, kind: type[Family] = GaugeMetricFamily
    ) -> None:
        self._name, self._text, self._labels, self._kind = name, text, labels, kind

    def family(self) -> Family:
        """Return the metric of one scrape, without a value."""
        return self._kind(self._name, self._text, labels=self._labels)


# The series, the values of its labels, and its own value.
Sample: TypeAlias = tuple[Series, Sequence[str], float | None]


class SeriesCollector(Collector):
    """Collects what `read` returns, in another thread; an unknown value has no series."""

    def __init__(self, series: Sequence[Series], read: Callable[[], Iterable[Sample]]) -> None:
        self._series, self._read = series, read

    @override
    def collect(self) -> Iterator[Family]:
        families = {series: series.family() for series in self._series}
        for series, labels, value in self._read():
            if value is not None:
                families[series].add_metric(labels, value)
        yield from families.values()
