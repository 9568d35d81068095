"""Allotment -> the status of a batch, with the times of what did not change kept."""

from datetime import datetime

from tessera.api.batch_inference import BatchInferenceStatus
from tessera.domain.batch_allotment import TERMINAL, BatchAllotment
from tessera.domain.reasons import Reason, Verdict
from tessera.domain.status import conditions

_LONGEST = 2048


def batch_status(
    allotment: BatchAllotment, at: datetime, problem: str | None = None
) -> BatchInferenceStatus:
    """The status to write, before any Job; `problem` is what the API server refused earlier."""
    batch, progress = allotment.batch, allotment.progress
    verdicts: dict[str, Verdict[Reason]] = {
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


def _deciding(allotment: BatchAllotment) -> Verdict[Reason]:
    """The verdict that answers the first question: why is it not done?"""
    if allotment.state in TERMINAL or allotment.state == "finalizing":
        return allotment.complete
    return allotment.running if allotment.accepted.reason.holds else allotment.accepted
