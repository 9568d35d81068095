"""The Events of conditions that change."""

from collections.abc import Iterator

from tessera.api.batch_reasons import BatchAccepted, BatchRunning
from tessera.api.meta import Condition, Conditions, find_condition
from tessera.api.pool_reasons import Discovered, LayoutReady
from tessera.api.reasons import Accepted, PlacementReason, Progressing
from tessera.domain.reporting.event_note import EventNote

# Reasons that only repeat another condition.
_CONSEQUENCES = frozenset(
    {Discovered.NOT_ACCEPTED, LayoutReady.NOT_DISCOVERED, Progressing.NOT_PLACED}
)
# Reasons of a False condition that is on its way, or has an Event of its own.
_WITHOUT_EVENT = _CONSEQUENCES | {
    BatchRunning.BACKING_OFF,
    BatchRunning.FINISHED,
    BatchRunning.STARTING,
    BatchRunning.TERMINATING,
    BatchRunning.VALIDATION_JOB_RUNNING,
    LayoutReady.REPARTITIONING,
}
# Reasons of a False condition that needs no attention.
_EXPECTED = frozenset(
    {
        Accepted.READING_MODEL,
        BatchAccepted.READING_MODEL,
        BatchRunning.SUSPENDED,
        BatchRunning.WAITING_FOR_SPOT,
        LayoutReady.AWAITING_APPROVAL,
        LayoutReady.OUTSIDE_MAINTENANCE_WINDOW,
        PlacementReason.LAYOUT_PENDING,
    }
)


def transitions(old: Conditions, new: Conditions, *types: str) -> Iterator[EventNote]:
    """Yield the Events of conditions that became False, and of those that were and are True."""
    for condition_type in types:
        yield from failure(condition_type, old, new)
        previous, current = before_and_after(condition_type, old, new)
        if previous is None or previous.status != "False" or previous.reason in _CONSEQUENCES:
            continue
        if current is not None and current.status == "True":
            yield note_of(current)


def failure(condition_type: str, old: Conditions, new: Conditions) -> Iterator[EventNote]:
    """Yield the Event of a condition that became False for a reason, or for a new spec."""
    previous, current = before_and_after(condition_type, old, new)
    if current is None or current.status != "False" or current.reason in _WITHOUT_EVENT:
        return
    if previous is None or _cause(previous) != _cause(current):
        yield note_of(current, is_warning=current.reason not in _EXPECTED)


def begun(
    condition_type: str, reason: str, old: Conditions, new: Conditions, *, is_warning: bool = False
) -> Iterator[EventNote]:
    """Yield the Event of a reason that a condition did not have before."""
    previous, current = before_and_after(condition_type, old, new)
    if current is None or current.reason != reason:
        return
    if previous is None or previous.reason != reason:
        yield note_of(current, is_warning=is_warning)


def note_of(condition: Condition, *, is_warning: bool = False) -> EventNote:
    """Return the Event that says what a condition says."""
    return EventNote(
        action=condition.type,
        reason=condition.reason,
        message=condition.message,
        is_warning=is_warning,
    )


def before_and_after(
    condition_type: str, old: Conditions, new: Conditions
) -> tuple[Condition | None, Condition | None]:
    """Return a condition of two statuses, None where they do not have it."""
    return find_condition(old, condition_type), find_condition(new, condition_type)


def _cause(condition: Condition) -> tuple[str, str, int]:
    return condition.status, condition.reason, condition.observed_generation
