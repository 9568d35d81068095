"""The conditions of an object, from the verdicts on it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from tessera.api.meta import Condition
from tessera.api.reasons import StatusReason, StatusVerdict
from tessera.api.text import one_line
from tessera.domain.observed.object import Observed
from tessera.domain.waits import kind_of

_MAX_MESSAGE_LENGTH = 2048


def with_accepted(
    observed: Observed, reason: StatusReason, message: str, at: datetime
) -> Mapping[str, tuple[Condition, ...]]:
    """Return the update of a status that is as it was but for the condition Accepted."""
    others = (each for each in observed.status.conditions if each.type != "Accepted")
    accepted = conditions({"Accepted": StatusVerdict(reason, message)}, observed, at)
    return {"conditions": (*accepted, *others)}


def conditions(
    verdicts: Mapping[str, StatusVerdict[StatusReason]], observed: Observed, at: datetime
) -> tuple[Condition, ...]:
    """Return conditions; lastTransitionTime stays while the status does, waitingSince while the
    reason does."""
    before = {condition.type: condition for condition in observed.status.conditions}
    generation, now = observed.generation, at.replace(microsecond=0)
    updated = []
    for condition_type, verdict in verdicts.items():
        last = before.get(condition_type)
        reason = verdict.reason
        status: Literal["True", "False", "Unknown"] = (
            "Unknown" if not reason.is_known else "True" if reason.is_true else "False"
        )
        message, since = _with_exit(verdict), None
        if kind_of(reason) is not None:
            since = last.waiting_since if last is not None and last.reason == reason else None
            since = min(since or now, now)
        content = (status, reason, message, generation, since)
        if last is not None and content == (
            last.status, last.reason, last.message, last.observed_generation, last.waiting_since,
        ):  # fmt: skip
            updated.append(last)
            continue
        same = last is not None and last.status == status
        updated.append(
            Condition(
                type=condition_type,
                status=status,
                reason=reason,
                message=message,
                observed_generation=generation,
                last_transition_time=last.last_transition_time
                if last is not None and same
                else now,
                waiting_since=since,
            )
        )
    return tuple(updated)


def _with_exit(verdict: StatusVerdict[StatusReason]) -> str:
    """Return the message of a verdict, which ends with what ends its wait."""
    kind = kind_of(verdict.reason)
    if kind is None:
        return one_line(verdict.message, _MAX_MESSAGE_LENGTH)
    message = one_line(verdict.message, _MAX_MESSAGE_LENGTH - len(kind.exit) - 2)
    return f"{message.rstrip('.')}. {kind.exit}"
