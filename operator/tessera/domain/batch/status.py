"""Allotment -> the status of a batch, with times and texts of what did not change kept."""

from dataclasses import replace
from datetime import datetime

from tessera.api.batch_inference import BatchInferenceStatus
from tessera.domain.batch.allotment import TERMINAL, BatchAllotment
from tessera.domain.batch.reasons import BatchRunning
from tessera.domain.reasons import StatusReason, StatusVerdict
from tessera.domain.status import conditions

_LONGEST = 2048
_MOVING = frozenset(
    {
        BatchRunning.ON_SPOT,
        BatchRunning.BEHIND_SCHEDULE,
        BatchRunning.DEADLINE_NEAR,
        BatchRunning.NOT_YET_AHEAD,
        BatchRunning.SPOT_DISABLED,
        BatchRunning.DEADLINE_AT_RISK,
        BatchRunning.STARTING,
        BatchRunning.WAITING_FOR_SPOT,
        BatchRunning.UNSCHEDULABLE,
        BatchRunning.BUDGET_EXHAUSTED,
    }
)
"""Their messages hold amounts that move with time alone."""


def batch_status(
    allotment: BatchAllotment, at: datetime, problem: str | None = None
) -> BatchInferenceStatus:
    """The status to write, before any Job; `problem` is what the API server refused earlier."""
    allotment = replace(allotment, running=_settled(allotment))
    batch, progress = allotment.batch, allotment.progress
    verdicts: dict[str, StatusVerdict[StatusReason]] = {
        "Accepted": allotment.accepted,
        "Running": allotment.running,
        "Complete": allotment.complete,
    }
    deciding = _deciding(allotment)
    message = deciding.message if problem is None else f"{problem}; {deciding.message}"
    return BatchInferenceStatus(
        observed_generation=batch.generation,
        conditions=conditions(verdicts, batch.status.conditions, batch.generation, at),
        state=allotment.state,
        reason=deciding.reason,
        message=message[:_LONGEST],
        done="" if progress is None else f"{progress.done}/{progress.rows}",
        deadline=allotment.deadline,
        check=allotment.check,
        attempt=allotment.attempt,
        progress=progress,
    )


def _settled(allotment: BatchAllotment) -> StatusVerdict[BatchRunning]:
    """A message with moving amounts is written anew only with something that it speaks about."""
    running, batch, old = allotment.running, allotment.batch, allotment.batch.status
    written = next((one for one in old.conditions if one.type == "Running"), None)
    same = (
        running.reason in _MOVING
        and written is not None
        and (written.reason, written.observed_generation) == (running.reason, batch.generation)
        and (old.attempt, old.progress) == (allotment.attempt, allotment.progress)
    )
    return replace(running, message=written.message) if written is not None and same else running


def _deciding(allotment: BatchAllotment) -> StatusVerdict[StatusReason]:
    """The verdict that answers the first question: why is it not done?"""
    if allotment.state in TERMINAL or allotment.state == "finalizing":
        return allotment.complete
    return allotment.running if allotment.accepted.reason.is_true else allotment.accepted
