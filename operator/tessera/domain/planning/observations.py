"""What is measured of a service while it runs, as the next status has it."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from tessera.api.service_status import PreemptionStatus, SloStatus, SpeculationStatus, SpeedStatus
from tessera.domain.health.stall import Stall
from tessera.domain.incremental import reused_per_object
from tessera.domain.observed.latency import ServiceLatency
from tessera.domain.observed.snapshot import Readings, Ref, SpeedReading, reading_of
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.rollout.strategy import is_rolling_out
from tessera.domain.service.speculation import next_speculation_status
from tessera.domain.slo.condition import next_slo_status
from tessera.domain.speed.condition import is_recent, next_speed_status
from tessera.domain.speed.preemption import next_preemption_status
from tessera.domain.speed.service_speed import service_speed


class Measurements(NamedTuple):
    """What Prometheus measured of one service."""

    speeds: Sequence[SpeedReading] = ()
    speeds_at: datetime | None = None
    """When the speeds were measured; None without any reading."""
    latency: ServiceLatency | None = None
    """None if the service has no series."""
    latency_at: datetime | None = None
    """The same of the latency."""


def measurements_of(ref: Ref, readings: Readings | None) -> Measurements:
    """Return what was measured of one service."""
    if readings is None:
        return Measurements()
    return Measurements(
        speeds=readings.speeds.get(ref, ()),
        speeds_at=readings.speeds_at,
        latency=readings.latencies.get(ref),
        latency_at=readings.latencies_at,
    )


@reused_per_object
def with_observations(
    _ref: Ref, service_plan: ServicePlan, stall: Stall, measurements: Measurements
) -> ServicePlan:
    """Add a stall, and what was measured; without a reading speed and SLO stay."""
    return replace(
        service_plan,
        stall=stall,
        speed=_next_speed(service_plan, measurements.speeds, measurements.speeds_at),
        preemption=_next_preemption(service_plan, measurements.speeds, measurements.speeds_at),
        speculation=_next_speculation(service_plan, measurements.speeds, measurements.speeds_at),
        slo=_next_slo(service_plan, measurements.latency, measurements.latency_at),
    )


def _next_slo(
    service_plan: ServicePlan, latency: ServiceLatency | None, at: datetime | None
) -> SloStatus | None:
    service = service_plan.service
    current = service.status.slo
    if at is None or service_plan.choice is None or service.spec is None:
        return current
    return next_slo_status(service.spec.slo, latency, service_plan.pods, current, at)


def _next_speed(
    service_plan: ServicePlan, readings: Sequence[SpeedReading], at: datetime | None
) -> SpeedStatus | None:
    service, choice = service_plan.service, service_plan.choice
    current = service.status.speed
    if at is None or choice is None or service.spec is None:
        return current
    if current is not None and is_recent(current, service.spec.model.uri, choice.variant, at):
        return current
    observed = service_speed(service.spec, choice, service_plan.pods, readings)
    return next_speed_status(observed, current, at)


def _next_preemption(
    service_plan: ServicePlan, readings: Sequence[SpeedReading], at: datetime | None
) -> PreemptionStatus | None:
    service, choice = service_plan.service, service_plan.choice
    current = service.status.preemption
    # While replicas are replaced, their readings are of both limits.
    if at is None or choice is None or service.spec is None or is_rolling_out(service_plan.pods):
        return current
    reading = reading_of(choice.variant, readings)
    return next_preemption_status(service.spec, choice, reading, current, at)


def _next_speculation(
    service_plan: ServicePlan, readings: Sequence[SpeedReading], at: datetime | None
) -> SpeculationStatus | None:
    service, choice = service_plan.service, service_plan.choice
    if at is None or choice is None or service.spec is None:
        return service_plan.speculation
    reading = reading_of(choice.variant, readings)
    current = service.status.speculation
    return next_speculation_status(service.spec, choice.fit, reading, current, at)
