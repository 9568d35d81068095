"""What is measured of the services, as metrics."""

from collections.abc import Iterator

from tessera.domain.aspects.aspects import ASPECTS, aspect_samples
from tessera.domain.reporting.series import Sample, Series
from tessera.reconcile.cycle import ReconcileOutcome

# The measurements that series follow.
FOLLOWED = tuple(dict.fromkeys(aspect.measured_by for aspect in ASPECTS if aspect.series))


def aspect_series(measured_by: str) -> tuple[Series, ...]:
    """Return the series that follow these measurements."""
    return tuple(
        series
        for aspect in ASPECTS
        if aspect.measured_by == measured_by
        for series in aspect.series
    )


def samples_by(measured_by: str, outcome: ReconcileOutcome) -> Iterator[Sample]:
    """Yield their samples as of the last reading."""
    for service_plan in outcome.plan.service_plans.values():
        yield from aspect_samples(
            measured_by, service_plan.placed, outcome.snapshot.readings, service_plan.reported
        )


def inputs_of(measured_by: str, outcome: ReconcileOutcome) -> object:
    """Return the identity of the inputs; the series are rendered again only when it changes.

    They follow the readings, those of latency and energy also which services there are. Without
    any readings they follow the plan.
    """
    readings, service_plans = outcome.snapshot.readings, outcome.plan.service_plans
    if measured_by == "speeds" and readings is not None and readings.speeds_at is not None:
        return readings.speeds
    if measured_by == "latency" and readings is not None and readings.latencies_at is not None:
        return readings.latencies, tuple(service_plans)
    if measured_by == "energy" and readings is not None:
        return readings.energies, tuple(service_plans)
    return service_plans
