"""All aspects of a placed service, and what each part of the operator asks of them."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from tessera.api.reasons import StatusReason, StatusVerdict
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.aspects.aspect import Aspect, Measurements, PlacedService, Reported
from tessera.domain.aspects.balance import BALANCE
from tessera.domain.aspects.energy import ENERGY
from tessera.domain.aspects.preemption import PREEMPTION
from tessera.domain.aspects.slo import SLO
from tessera.domain.aspects.speculation import SPECULATION
from tessera.domain.aspects.speed import SPEED
from tessera.domain.incremental import Until
from tessera.domain.observed.snapshot import Readings, Snapshot
from tessera.domain.reporting.decision import Decision
from tessera.domain.reporting.event_note import EventNote
from tessera.domain.reporting.series import Sample
from tessera.domain.steps import Step

# In the order in which they are explained, that of the fields of `Reported`.
ASPECTS: tuple[Aspect[Any], ...] = (SPEED, SPECULATION, SLO, BALANCE, PREEMPTION, ENERGY)

# One that raises keeps what is reported, and the service is planned.
_following = Step(
    lambda aspect, *arguments: aspect.following(*arguments),
    lambda _error, _aspect, _placed, _measurements, current, _at: Until(current),
)
_sampled = Step(
    lambda aspect, placed, readings, value: list(aspect.samples(placed, readings, value)),
    lambda *_: [],
)


def reported_by(placed: PlacedService) -> Reported:
    """Return what the status of a service reports."""
    status = placed.service.status
    return Reported(
        *(
            aspect.reported(placed) if aspect.reported else getattr(status, aspect.name)
            for aspect in ASPECTS
        )
    )


def following(placed: PlacedService, measurements: Measurements, at: datetime) -> Until[Reported]:
    """Return what follows from measurements and from what is reported."""
    values = [
        _following(aspect, placed, measurements, current, at)
        for aspect, current in zip(ASPECTS, reported_by(placed), strict=True)
    ]
    reported = Reported(*(value.result for value in values))
    return Until(reported, min(value.until for value in values))


def verdicts(
    placed: PlacedService, reported: Reported
) -> Mapping[str, StatusVerdict[StatusReason]]:
    """Return the verdicts of the aspects' conditions, by type."""
    return {
        aspect.condition: verdict
        for aspect, value in zip(ASPECTS, reported, strict=True)
        if aspect.condition and (verdict := aspect.verdict(placed, value)) is not None
    }


def status_fields(placed: PlacedService, reported: Reported) -> Mapping[str, Any]:
    """Return the values of the aspects' fields of the status."""
    return {
        aspect.name: aspect.as_status(placed, value)
        for aspect, value in zip(ASPECTS, reported, strict=True)
        if aspect.as_status is not None
    }


def aspect_events(old: InferenceServiceStatus, new: InferenceServiceStatus) -> Iterator[EventNote]:
    """Yield the Events of a change of what is reported."""
    for aspect in ASPECTS:
        yield from aspect.events(old, new)


def explain_aspects(
    placed: PlacedService, snapshot: Snapshot, reported: Reported
) -> Iterator[Decision]:
    """Yield the decisions about what is measured, with the numbers of now."""
    for aspect, value in zip(ASPECTS, reported, strict=True):
        verdict = aspect.verdict(placed, value)
        explanation = aspect.explain(placed, snapshot, reported)
        if verdict is not None and explanation is not None:
            yield Decision(
                topic=aspect.name,
                reason=verdict.reason,
                message=verdict.message,
                numbers=explanation.numbers,
                would_change=explanation.would_change,
            )


def aspect_samples(
    measured_by: str, placed: PlacedService, readings: Readings | None, reported: Reported
) -> Iterator[Sample]:
    """Yield the samples of the aspects that follow these measurements."""
    for aspect, value in zip(ASPECTS, reported, strict=True):
        if aspect.measured_by == measured_by:
            yield from _sampled(aspect, placed, readings, value)
