"""Predicted and measured speed of the services, as metrics."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from tessera.domain.money import Money
from tessera.domain.observed.snapshot import Readings, Ref
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.speed.service_speed import ServiceSpeed
from tessera.domain.steps import Step

_SERVICE_LABELS = ("namespace", "service")
_KIND_LABELS = (*_SERVICE_LABELS, "kind")
_PREDICTED, _MEASURED = "predicted", "measured"


observed_speed = Step(ServicePlan.observed_speed, lambda *_: None)


class SpeedCollector(Collector):
    """The speeds as of the last reading; an unknown value has no series."""

    service_plans: Mapping[Ref, ServicePlan] | None = None
    readings: Readings | None = None

    @property
    def inputs(self) -> object:
        """Return the identity of the inputs; the series are rendered again only when it changes.

        The series follow the readings of speed. Without any readings they follow the plan.
        """
        if self.readings is not None and self.readings.speeds_at is not None:
            return self.readings.speeds
        return self.service_plans

    @override
    def collect(self) -> Iterator[GaugeMetricFamily]:
        metrics = _SpeedMetrics()
        readings = self.readings
        for ref, service_plan in (self.service_plans or {}).items():
            speed = observed_speed(service_plan, readings)
            if speed is not None:
                metrics.add([ref.namespace, ref.name], speed)
        yield from metrics.families


class _SpeedMetrics:
    """Every speed metric, with the series added so far."""

    def __init__(self) -> None:
        self._output_rate = _gauge(
            "output_tokens_per_second",
            "Output tokens per second of the ready replicas: predicted at full load within "
            "the latency objective, and measured.",
            _KIND_LABELS,
        )
        self._itl = _gauge(
            "itl_seconds",
            "Mean inter-token latency within 5 minutes; predicted is that for the observed load.",
            _KIND_LABELS,
        )
        self._itl_median = _gauge(
            "itl_median_seconds",
            "Median inter-token latency within 5 minutes; measured is interpolated within a "
            "wide bucket of the engine.",
            _KIND_LABELS,
        )
        self._price = _gauge(
            "cost_per_million_tokens",
            "Cost of a million output tokens: predicted at full load, measured for the tokens "
            "that were generated.",
            (*_KIND_LABELS, "currency"),
        )
        self._mfu = _gauge(
            "mfu",
            "Model FLOPs utilization (MFU): share of the peak FLOPS that the engines achieve.",
            _SERVICE_LABELS,
        )
        self._mbu = _gauge(
            "mbu",
            "Model bandwidth utilization (MBU): share of the peak "
            "memory bandwidth that the engines achieve.",
            _SERVICE_LABELS,
        )
        self._kv_usage = _gauge(
            "kv_cache_usage_ratio",
            "Share of the KV cache in use, mean over 5 minutes.",
            _SERVICE_LABELS,
        )
        self._kv_tokens = _gauge(
            "kv_cache_tokens",
            "KV cache of one replica in tokens: predicted by the plan, and measured by the engine.",
            _KIND_LABELS,
        )
        self._kv_tokens_error = _gauge(
            "kv_cache_tokens_error_ratio",
            "Difference between the engine's KV cache and the planned one, as a share of the plan.",
            _SERVICE_LABELS,
        )
        self._flops = _gauge(
            "peak_flops",
            "Dense peak FLOPS of one device of a replica; for a slice, its share.",
            (*_SERVICE_LABELS, "variant"),
        )
        self._bytes = _gauge(
            "peak_bytes_per_second",
            "Peak memory bandwidth of one device of a replica in bytes per second; for a "
            "slice, its share.",
            (*_SERVICE_LABELS, "variant"),
        )

    @property
    def families(self) -> tuple[GaugeMetricFamily, ...]:
        return (
            *(self._output_rate, self._itl, self._itl_median, self._price, self._mfu, self._mbu),
            *(self._kv_usage, self._kv_tokens, self._kv_tokens_error, self._flops, self._bytes),
        )

    def add(self, service_labels: list[str], speed: ServiceSpeed) -> None:
        itl = speed.predicted
        _add_both(self._output_rate, service_labels, speed.capacity, speed.tokens_per_second)
        _add_both(self._itl, service_labels, itl.mean if itl else None, speed.measured_mean)
        _add_both(
            self._itl_median, service_labels, itl.median if itl else None, speed.measured_median
        )
        _add_both(self._kv_tokens, service_labels, speed.kv_planned, speed.kv_reported)
        self._add_price(service_labels, _PREDICTED, speed.capacity_price)
        self._add_price(service_labels, _MEASURED, speed.price)
        for family, value in (
            (self._mfu, speed.mfu),
            (self._mbu, speed.mbu),
            (self._kv_usage, speed.kv_usage),
            (self._kv_tokens_error, speed.kv_error),
        ):
            if value is not None:
                family.add_metric(service_labels, value)
        self._flops.add_metric([*service_labels, speed.variant], speed.peaks.flops)
        self._bytes.add_metric([*service_labels, speed.variant], speed.peaks.bandwidth)

    def _add_price(self, service_labels: list[str], kind: str, price: Money | None) -> None:
        if price is not None:
            self._price.add_metric([*service_labels, kind, price.currency], float(price.rounded(6)))


def _add_both(
    family: GaugeMetricFamily,
    service_labels: list[str],
    predicted: float | None,
    measured: float | None,
) -> None:
    for kind, value in ((_PREDICTED, predicted), (_MEASURED, measured)):
        if value is not None:
            family.add_metric([*service_labels, kind], value)


def _gauge(name: str, documentation: str, labels: tuple[str, ...]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tessera_service_{name}", documentation, labels=labels)
