"""Preemptions at steady load, and the limit of requests that they lower: status.preemption."""

from collections.abc import Iterator
from datetime import datetime

from tessera.api.reasons import EventReason
from tessera.api.service_status import InferenceServiceStatus, PreemptionStatus
from tessera.domain.aspects.aspect import Aspect, Measurements, PlacedService
from tessera.domain.incremental import Until
from tessera.domain.observed.snapshot import reading_of
from tessera.domain.reporting.event_note import EventNote
from tessera.domain.rollout.strategy import is_rolling_out
from tessera.domain.speed.preemption import next_preemption_status, preemption_message


def _following(
    placed: PlacedService,
    measurements: Measurements,
    current: PreemptionStatus | None,
    _at: datetime,
) -> Until[PreemptionStatus | None]:
    at = measurements.speeds_at
    # While replicas are replaced, their readings are of both limits.
    if at is None or placed.placement is None or is_rolling_out(placed.pods):
        return Until(current)
    spec, choice = placed.placement
    reading = reading_of(choice.variant, measurements.readings.speeds)
    return Until(next_preemption_status(spec, choice, reading, current, at))


def _events(old: InferenceServiceStatus, new: InferenceServiceStatus) -> Iterator[EventNote]:
    current = new.preemption
    if current is None or current.max_num_seqs is None:
        return
    if old.preemption is None or old.preemption.max_num_seqs != current.max_num_seqs:
        yield EventNote(
            action="Lowered",
            reason=EventReason.PREEMPTED_AT_STEADY_LOAD,
            message=preemption_message(current),
            is_warning=True,
        )


PREEMPTION: Aspect[PreemptionStatus | None] = Aspect(
    name="preemption",
    measured_by="speeds",
    following=_following,
    events=_events,
)
