"""What services attain of their objectives, and the targets, as metrics."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.observed.snapshot import Readings, Ref
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.slo.measurement import (
    Objective,
    ObjectiveMeasurement,
    SloMeasurement,
    edge_label,
    judging_bounds,
)
from tessera.domain.steps import Step

measured_slo = Step(ServicePlan.measured_slo, lambda *_: None)


class SloCollector(Collector):
    """The objectives as of the last reading; what is not known has no series."""

    service_plans: Mapping[Ref, ServicePlan] | None = None
    readings: Readings | None = None

    @property
    def inputs(self) -> object:
        """Return the inputs; the series are rendered again only when they change.

        The series follow the readings. Without any readings they follow the plan.
        """
        if self.readings is not None and self.readings.latencies_at is not None:
            return self.readings.latencies, tuple(self.service_plans or ())
        return self.service_plans

    @override
    def collect(self) -> Iterator[GaugeMetricFamily]:
        metrics = _SloMetrics()
        for ref, service_plan in (self.service_plans or {}).items():
            if (spec := service_plan.service.spec) is not None:
                measurement = measured_slo(service_plan, self.readings)
                metrics.add([ref.namespace, ref.name], spec, measurement)
        yield from metrics.families


class _SloMetrics:
    """Every metric of objectives, with the series added so far."""

    def __init__(self) -> None:
        labels = ["namespace", "service", "objective"]
        self._target = GaugeMetricFamily(
            "tessera_service_slo_target_seconds",
            "Target of spec.slo for the 95th percentile, by `objective`: ttft or itl.",
            labels=labels,
        )
        self._attained = GaugeMetricFamily(
            "tessera_service_slo_attained_ratio",
            "Share of the last 5 minutes within the target; `bound`: lower or upper, since engines "
            "count at the edges of buckets only.",
            labels=[*labels, "bound"],
        )
        self._overdue = GaugeMetricFamily(
            "tessera_service_slo_overdue_requests",
            "Requests that wait for their first token longer than spec.slo.ttftP95.",
            labels=labels[:2],
        )
        self._edge = GaugeMetricFamily(
            "tessera_service_slo_edge_info",
            "1 for each bucket edge `le` by which an objective is judged, of the histogram of "
            "`source`: Engine or Gateway.",
            labels=[*labels, "source", "bound", "le"],
        )

    @property
    def families(self) -> tuple[GaugeMetricFamily, ...]:
        return self._target, self._attained, self._overdue, self._edge

    def add(
        self,
        service_labels: list[str],
        spec: InferenceServiceSpec,
        measurement: SloMeasurement | None,
    ) -> None:
        for objective in Objective:
            labels = [*service_labels, objective.value]
            target = objective.target_seconds(spec.slo)
            self._target.add_metric(labels, target)
            measured = measurement.of(objective) if measurement is not None else None
            source = measured.source if measured is not None else "Engine"
            for bound, edge in judging_bounds(objective, spec.slo, spec.engine.version, source):
                self._edge.add_metric([*labels, source, bound, edge_label(edge)], 1)
            if measured is not None:
                self._add_measured(labels, measured)
        if measurement is not None:
            self._overdue.add_metric(service_labels, measurement.ttft.overdue)

    def _add_measured(self, labels: list[str], measured: ObjectiveMeasurement) -> None:
        attained = measured.attained
        if attained is not None and attained.total > 0:
            self._attained.add_metric([*labels, "lower"], attained.lower_share)
            self._attained.add_metric([*labels, "upper"], attained.upper_share)
