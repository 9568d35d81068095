"""What one batch gets: the forms that a decision takes."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from tessera.api.batch_inference import (
    AttemptStatus,
    BatchInferenceSpec,
    BatchState,
    CheckStatus,
    ProgressStatus,
)
from tessera.api.batch_reasons import BatchAccepted, BatchComplete, BatchRunning
from tessera.api.reasons import StatusReason, StatusVerdict
from tessera.api.ref import Ref
from tessera.domain.batch.attempt_state import AttemptState, end_attempt
from tessera.domain.batch.situation import Situation
from tessera.domain.batch.spec import BatchModelSource
from tessera.domain.observed.batches import Batch, BatchJob
from tessera.domain.placement.placement import HardwareChoice

NOT_ACCEPTED = StatusVerdict(
    BatchRunning.NOT_ACCEPTED,
    "nothing is started while Accepted is False, and what runs is left as it is",
)
# Beyond the deadline an operator that is there ends a Job long before its own limit does.
_JOB_DEADLINE_MARGIN = timedelta(minutes=10)
_STATES: dict[BatchComplete, BatchState] = {
    BatchComplete.COMPLETED: "completed",
    BatchComplete.INVALID_INPUT: "failed",
    BatchComplete.USER_ACTION_REQUIRED: "failed",
    BatchComplete.BACKOFF_LIMIT_EXCEEDED: "failed",
    BatchComplete.DEADLINE_EXCEEDED: "expired",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJobRequest:
    """A Job to create. It does not exist yet, and once it does it is never written again."""

    attempt: int | None
    """None is the check."""
    name: str
    source: BatchModelSource
    choice: HardwareChoice | None = None
    """Where the attempt runs; a check runs anywhere."""
    active_deadline: timedelta
    """Its Job ends by itself after so long, also when no operator is there to end it."""
    spot_affinity: bool = False
    """The cloud marks nodes of the chosen pool as spot, so the pod can ask for the mark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressProbe:
    """The runner to ask how far it is, at `/progress`."""

    attempt: int
    pod: Ref
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """What one batch gets, and why.

    Carried out in this order: the status, with the attempt's number; then `delete`; then `create`.
    """

    batch: Batch
    accepted: StatusVerdict[BatchAccepted]
    running: StatusVerdict[BatchRunning]
    complete: StatusVerdict[BatchComplete]
    state: BatchState
    deadline: datetime | None = None
    check: CheckStatus | None = None
    attempt: AttemptStatus | None = None
    progress: ProgressStatus | None = None
    create: BatchJobRequest | None = None
    delete: tuple[Ref, ...] = ()
    """Jobs that have to go, with their pods."""
    progress_probe: ProgressProbe | None = None
    choice: HardwareChoice | None = None
    """The hardware that the batch holds or is about to take."""
    active: bool = True
    """It is not over, or one of its pods is still there and has not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchContext:
    """One batch with a spec, as far as it is judged."""

    situation: Situation
    now: datetime
    spec: BatchInferenceSpec
    accepted: StatusVerdict[BatchAccepted]
    attempt_state: AttemptState
    check: CheckStatus | None

    @property
    def batch(self) -> Batch:
        return self.situation.batch

    @property
    def deadline(self) -> datetime:
        return self.batch.created + self.spec.deadline

    @property
    def active_deadline(self) -> timedelta:
        """How long a Job may last that begins now."""
        return self.deadline - self.now + _JOB_DEADLINE_MARGIN


def unchanged_plan(context: BatchContext, running: StatusVerdict[BatchRunning]) -> BatchPlan:
    """The allotment of a batch that is not over, with no change to its Jobs."""
    state, complete = _batch_state(context)
    return BatchPlan(
        batch=context.batch,
        accepted=context.accepted,
        running=running,
        complete=complete,
        state=state,
        deadline=context.deadline,
        check=context.check,
        attempt=context.attempt_state.attempt,
        progress=context.attempt_state.progress,
        progress_probe=_progress_probe(context.attempt_state),
    )


def continue_plan(context: BatchContext, running: StatusVerdict[BatchRunning]) -> BatchPlan:
    """What runs goes on, and nothing begins."""
    attempt = context.attempt_state.attempt
    number = None if attempt is None else attempt.number
    retained = (number,) if attempt is None or context.attempt_state.alive else ()
    return replace(
        unchanged_plan(context, running),
        delete=deletable_jobs(context.situation, retained, attempt),
    )


def idle_plan(context: BatchContext, running: StatusVerdict[BatchRunning]) -> BatchPlan:
    """Nothing runs; an attempt that lasts is let go."""
    stopped = _stop_attempt(context, running.reason)
    return replace(
        unchanged_plan(stopped, running),
        delete=deletable_jobs(context.situation, (), stopped.attempt_state.attempt),
    )


def closing_plan(context: BatchContext, completion: StatusVerdict[BatchComplete]) -> BatchPlan:
    """The batch is over."""
    stopped = _stop_attempt(context, completion.reason)
    state = _STATES[completion.reason]
    return replace(
        unchanged_plan(stopped, _finished_verdict(state)),
        complete=completion,
        state=state,
        active=_has_live_pods(context.situation),
        delete=deletable_jobs(context.situation, (), stopped.attempt_state.attempt),
    )


def unaccepted_plan(situation: Situation, accepted: StatusVerdict[BatchAccepted]) -> BatchPlan:
    """Nothing can be decided, so everything stays as it is."""
    status = situation.batch.status
    reason = BatchComplete.VALIDATING if status.check is None else BatchComplete.IN_PROGRESS
    return _plan_from_status(
        situation,
        accepted=accepted,
        running=NOT_ACCEPTED,
        complete=_verdict_from_status(
            situation, "Complete", StatusVerdict(reason, NOT_ACCEPTED.message)
        ),
    )


def terminal_plan(situation: Situation) -> BatchPlan:
    """A batch that was over before says what it said, and its idle Jobs stay for their logs."""
    state = situation.batch.status.state
    complete = next((reason for reason in _STATES if _STATES[reason] == state), None)
    plan = _plan_from_status(
        situation,
        accepted=_verdict_from_status(
            situation, "Accepted", StatusVerdict(BatchAccepted.VALID, "it was")
        ),
        running=_verdict_from_status(situation, "Running", _finished_verdict(state)),
        complete=_verdict_from_status(
            situation,
            "Complete",
            StatusVerdict(complete or BatchComplete.DEADLINE_EXCEEDED, f"it is {state}"),
        ),
    )
    delete = deletable_jobs(situation, (), situation.batch.status.attempt)
    return replace(plan, delete=delete, active=_has_live_pods(situation))


def _has_live_pods(situation: Situation) -> bool:
    return any(pod.ended is None for pod in situation.pods)


def deletable_jobs(
    situation: Situation, retained: Collection[int | None], last: AttemptStatus | None
) -> tuple[Ref, ...]:
    """All Jobs but those that are kept, and but the last one if it is over: its log helps."""
    number = None if last is None else last.number
    return tuple(
        sorted(
            job.ref
            for job in situation.jobs
            if job.attempt not in retained
            and not (job.attempt == number and _all_pods_finished(situation, job))
        )
    )


def _all_pods_finished(situation: Situation, job: BatchJob) -> bool:
    pods = [pod for pod in situation.pods if pod.attempt == job.attempt]
    return bool(pods) and all(pod.finished for pod in pods)


def _stop_attempt(context: BatchContext, message: str) -> BatchContext:
    state, attempt = context.attempt_state, context.attempt_state.attempt
    if attempt is None or attempt.ended_at is not None:
        return context
    ended_attempt = end_attempt(attempt, state.progress, context.now, message)
    return replace(context, attempt_state=replace(state, attempt=ended_attempt, alive=False))


def _progress_probe(state: AttemptState) -> ProgressProbe | None:
    attempt, pod = state.attempt, state.pod
    if not state.alive or attempt is None or pod is None or pod.address is None:
        return None
    return ProgressProbe(attempt=attempt.number, pod=pod.ref, address=pod.address)


def _batch_state(context: BatchContext) -> tuple[BatchState, StatusVerdict[BatchComplete]]:
    progress, spec = context.attempt_state.progress, context.spec
    if context.check is None or progress is None:
        text = f"spec.input: {spec.input} on {spec.claim} is not checked yet, 0 rows are known"
        return "validating", StatusVerdict(BatchComplete.VALIDATING, text)
    if context.attempt_state.alive and context.attempt_state.publishing:
        text = f"status.progress: all {progress.rows} rows are done, {spec.output} is being written"
        return "finalizing", StatusVerdict(BatchComplete.FINALIZING, text)
    text = f"status.progress: {progress.done} of {progress.rows} rows are done"
    if progress.failed:
        text += f", {progress.failed} of them failed"
    return "in_progress", StatusVerdict(BatchComplete.IN_PROGRESS, text)


def _finished_verdict(state: BatchState) -> StatusVerdict[BatchRunning]:
    return StatusVerdict(
        BatchRunning.FINISHED, f"status.state is {state}, so 0 attempts are wanted"
    )


def _plan_from_status(
    situation: Situation,
    *,
    accepted: StatusVerdict[BatchAccepted],
    running: StatusVerdict[BatchRunning],
    complete: StatusVerdict[BatchComplete],
) -> BatchPlan:
    status = situation.batch.status
    return BatchPlan(
        batch=situation.batch,
        accepted=accepted,
        running=running,
        complete=complete,
        state=status.state,
        deadline=status.deadline,
        check=status.check,
        attempt=status.attempt,
        progress=status.progress,
    )


R = TypeVar("R", bound=StatusReason)


def _verdict_from_status(
    situation: Situation, condition_type: str, default: StatusVerdict[R]
) -> StatusVerdict[R]:
    """The verdict that stands in a condition; reasons of another version give way."""
    reasons = {str(reason): reason for reason in type(default.reason)}
    for condition in situation.batch.status.conditions:
        if condition.type == condition_type and condition.reason in reasons:
            return StatusVerdict(reasons[condition.reason], condition.message)
    return default
