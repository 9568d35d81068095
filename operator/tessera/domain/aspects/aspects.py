"""All aspects of a placed service, and what each part of the operator asks of them."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from tessera.api.reasons import StatusReason, StatusVerdict
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.aspects.aspect import Aspect, Measurements, PlacedService, Reported
from tessera.domain.aspects.preemption import PREEMPTION
from tessera.domain.aspects.slo import SLO
from tessera.domain.aspects.speculation import SPECULATION
from tessera.domain.aspects.speed import SPEED
from tessera.domain.observed.snapshot import Readings, Ref, Snapshot
from tessera.domain.reporting.decision import Decision
from tessera.domain.reporting.event_note import EventNote
from tessera.domain.reporting.series import Sample
from tessera.domain.steps import Step

# In the order in which they are explained; each is a field of `Reported`.
ASPECTS: tuple[Aspect[Any], ...] = (SPEED, SPECULATION, SLO, PREEMPTION)

# One that raises keeps what is reported, and the service is planned.
_following = Step(
    lambda aspect, placed, measurements, before: aspect.following(placed, measurements, before),
    lambda _error, _aspect, _placed, _measurements, before: before,
)
_sampled = Step(
    lambda aspect, placed, readings, value: list(aspect.samples(placed, readings, value)),
    lambda *_: [],
)


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


def reported_by(status: InferenceServiceStatus) -> Reported:
    """Return what a status reports."""
    return Reported(**{aspect.name: getattr(status, aspect.name) for aspect in ASPECTS})


def unmeasured(placed: PlacedService, at: datetime) -> Reported:
    """Return what is reported before anything is measured in this cycle."""
    expected = {
        aspect.name: aspect.unmeasured(placed, at)
        for aspect in ASPECTS
        if aspect.unmeasured is not None
    }
    return reported_by(placed.service.status)._replace(**expected)


def following(placed: PlacedService, measurements: Measurements, before: Reported) -> Reported:
    """Return what follows from measurements."""
    return Reported(
        **{
            aspect.name: _following(aspect, placed, measurements, getattr(before, aspect.name))
            for aspect in ASPECTS
        }
    )


def verdicts(
    placed: PlacedService, reported: Reported
) -> Mapping[str, StatusVerdict[StatusReason]]:
    """Return the verdicts of the aspects' conditions, by type."""
    by_condition = {
        aspect.condition: aspect.verdict(placed, getattr(reported, aspect.name))
        for aspect in ASPECTS
    }
    return {
        condition: verdict for condition, verdict in by_condition.items() if verdict is not None
    }


def status_fields(placed: PlacedService, reported: Reported) -> Mapping[str, Any]:
    """Return the values of the aspects' fields of the status."""
    return {
        aspect.name: aspect.as_status(placed, getattr(reported, aspect.name)) for aspect in ASPECTS
    }


def aspect_events(old: InferenceServiceStatus, new: InferenceServiceStatus) -> Iterator[EventNote]:
    """Yield the Events of a change of what is reported, beside those of conditions."""
    for aspect in ASPECTS:
        yield from aspect.events(old, new)


def explain_aspects(
    placed: PlacedService, snapshot: Snapshot, reported: Reported
) -> Iterator[Decision]:
    """Yield the decisions about what is measured, with the numbers of now."""
    for aspect in ASPECTS:
        yield from aspect.explain(placed, snapshot, reported)


def aspect_samples(
    measured_by: str, placed: PlacedService, readings: Readings | None, reported: Reported
) -> Iterator[Sample]:
    """Yield the samples of the aspects that follow these measurements."""
    for aspect in ASPECTS:
        if aspect.measured_by == measured_by:
            yield from _sampled(aspect, placed, readings, getattr(reported, aspect.name))
