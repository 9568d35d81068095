"""What services attain of their objectives, and the targets, as metrics."""

from collections.abc import Iterator

from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.reporting.series import Sample, Series
from tessera.domain.slo.measurement import Objective, edge_label, judging_bounds
from tessera.domain.steps import Step
from tessera.reconcile.cycle import ReconcileOutcome

_LABELS = ("namespace", "service", "objective")
_TARGET = Series(
    "tessera_service_slo_target_seconds",
    "Target of spec.slo for the 95th percentile, by `objective`: ttft or itl.",
    *_LABELS,
)
_ATTAINED = Series(
    "tessera_service_slo_attained_ratio",
    "Share of the last 5 minutes within the target; `bound`: lower or upper, since engines count "
    "at the edges of buckets only.",
    *(*_LABELS, "bound"),
)
_OVERDUE = Series(
    "tessera_service_slo_overdue_requests",
    "Requests that wait for their first token longer than spec.slo.ttftP95.",
    *_LABELS[:2],
)
_EDGE = Series(
    "tessera_service_slo_edge_info",
    "1 for each bucket edge `le` by which an objective is judged, of the histogram of `source`: "
    "Engine or Gateway.",
    *(*_LABELS, "source", "bound", "le"),
)
SLO_SERIES = _TARGET, _ATTAINED, _OVERDUE, _EDGE

measured_slo = Step(ServicePlan.measured_slo, lambda *_: None)


def slo_inputs(outcome: ReconcileOutcome) -> object:
    """Return the inputs; the series are rendered again only when they change.

    The series follow the readings. Without any readings they follow the plan.
    """
    readings, service_plans = outcome.snapshot.readings, outcome.plan.service_plans
    if readings is not None and readings.latencies_at is not None:
        return readings.latencies, tuple(service_plans)
    return service_plans


def slo_samples(outcome: ReconcileOutcome) -> Iterator[Sample]:
    """Yield the objectives as of the last reading."""
    for ref, service_plan in outcome.plan.service_plans.items():
        if (spec := service_plan.service.spec) is None:
            continue
        measurement = measured_slo(service_plan, outcome.snapshot.readings)
        for objective in Objective:
            labels = ref.namespace, ref.name, objective.value
            yield _TARGET, labels, objective.target_seconds(spec.slo)
            measured = measurement.of(objective) if measurement is not None else None
            source = measured.source if measured is not None else "Engine"
            for bound, edge in judging_bounds(objective, spec.slo, spec.engine.version, source):
                yield _EDGE, (*labels, source, bound, edge_label(edge)), 1
            attained = measured.attained if measured is not None else None
            if attained is not None and attained.total > 0:
                yield _ATTAINED, (*labels, "lower"), attained.lower_share
                yield _ATTAINED, (*labels, "upper"), attained.upper_share
        if measurement is not None:
            yield _OVERDUE, (ref.namespace, ref.name), measurement.ttft.overdue
