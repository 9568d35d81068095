"""Allotment -> the status of a batch, with times and texts of what did not change kept."""

from dataclasses import replace
from datetime import datetime

from tessera.api.batch_inference import TERMINAL_STATES, BatchInferenceStatus, ProgressStatus
from tessera.api.batch_reasons import BatchAccepted, BatchRunning
from tessera.api.meta import find_condition
from tessera.api.reasons import StatusReason, StatusVerdict
from tessera.api.text import AMOUNT, differ_in_more_than_amounts, one_line
from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.status.conditions import conditions, with_accepted
from tessera.domain.steps import Step, planner_error

_MAX_MESSAGE_LENGTH = 2048
# Amounts that moved by more are written again: a few dozen times in a window of any length.
_MAX_AMOUNT_CHANGE = 0.1
# Their messages hold amounts that move with time alone.
_VARYING_REASONS = frozenset(
    {
        BatchRunning.ON_SPOT,
        BatchRunning.BEHIND_SCHEDULE,
        BatchRunning.DEADLINE_NEAR,
        BatchRunning.NOT_YET_AHEAD,
        BatchRunning.SPOT_DISABLED,
        BatchRunning.DEADLINE_AT_RISK,
        BatchRunning.STARTING,
        BatchRunning.STALLED,
        BatchRunning.WAITING_FOR_SPOT,
        BatchRunning.UNSCHEDULABLE,
        BatchRunning.BUDGET_EXHAUSTED,
    }
)


def _batch_status(
    plan: BatchPlan, at: datetime, problem: str | None = None
) -> BatchInferenceStatus:
    """Return the status to write before any Job; `problem` is an earlier refusal by the API."""
    plan = replace(plan, running=_stable_running_verdict(plan))
    if (
        problem is not None
        and plan.state not in TERMINAL_STATES
        and not plan.running.reason.is_true
    ):
        message = f"{problem}; {plan.running.message}"
        plan = replace(plan, running=StatusVerdict(BatchRunning.APPLY_FAILED, message))
    batch, progress = plan.batch, plan.progress
    verdicts = {
        "Accepted": plan.accepted,
        "Running": plan.running,
        "Complete": plan.complete,
    }
    deciding = _deciding_verdict(plan)
    message = deciding.message
    if problem is not None and deciding.reason is not BatchRunning.APPLY_FAILED:
        message = f"{problem}; {message}"
    return BatchInferenceStatus(
        observed_generation=batch.generation,
        conditions=conditions(verdicts, batch, at),
        state=plan.state,
        reason=deciding.reason,
        message=one_line(message.rstrip("."), _MAX_MESSAGE_LENGTH),
        done="" if progress is None else _done(progress),
        deadline=plan.deadline,
        model=plan.model,
        check=plan.check,
        attempt=plan.attempt,
        progress=progress,
    )


def _set_aside(error: Exception, plan: BatchPlan, at: datetime, *_: object) -> BatchInferenceStatus:
    batch = plan.batch
    message = planner_error(error, "batchinference", batch.ref.name, batch.ref.namespace)
    update = with_accepted(batch, BatchAccepted.PLANNER_ERROR, message, at)
    return batch.status.model_copy(update=update)


batch_status = Step(_batch_status, _set_aside)


def _done(progress: ProgressStatus) -> str:
    answered = f"{progress.completed}/{progress.rows}"
    return f"{answered}, {progress.failed} failed" if progress.failed else answered


def _stable_running_verdict(plan: BatchPlan) -> StatusVerdict[BatchRunning]:
    """Keep the written message while only amounts in it have moved."""
    running, batch, previous = plan.running, plan.batch, plan.batch.status
    existing = find_condition(previous.conditions, "Running")
    unchanged = (
        running.reason in _VARYING_REASONS
        and existing is not None
        and (existing.reason, existing.observed_generation) == (running.reason, batch.generation)
        and (previous.attempt, previous.progress) == (plan.attempt, plan.progress)
        and not (
            running.reason is BatchRunning.BUDGET_EXHAUSTED
            and _has_moved(existing.cause, running.message.rstrip("."))
        )
    )
    return (
        replace(running, message=existing.cause) if existing is not None and unchanged else running
    )


def _has_moved(before: str, now: str) -> bool:
    """Return whether a text says something else, or an amount that differs by much."""
    if differ_in_more_than_amounts(before, now):
        return True
    amounts = zip(AMOUNT.findall(before), AMOUNT.findall(now), strict=True)
    return any(
        abs(float(new) - float(old)) > _MAX_AMOUNT_CHANGE * float(old) for old, new in amounts
    )


def _deciding_verdict(plan: BatchPlan) -> StatusVerdict[StatusReason]:
    """Return the verdict that answers the first question: why is it not done?"""
    if plan.state in TERMINAL_STATES or plan.state == "finalizing":
        return plan.complete
    return plan.running if plan.accepted.reason.is_true else plan.accepted
