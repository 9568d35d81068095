"""The plan of one batch and its variants: continue, idle, close."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from tessera.api.batch_inference import (
    AttemptStatus,
    BatchInferenceSpec,
    BatchModelStatus,
    BatchState,
    CheckStatus,
    ProgressStatus,
)
from tessera.api.batch_reasons import BatchAccepted, BatchComplete, BatchRunning
from tessera.api.reasons import StatusReason, StatusVerdict
from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.domain.batch.attempt_state import AttemptState, end_attempt, podless_job
from tessera.domain.batch.check import check_pod
from tessera.domain.batch.names import job_name
from tessera.domain.batch.situation import Situation
from tessera.domain.batch.spec import BatchModelSource
from tessera.domain.budget.state import GrantRequest
from tessera.domain.observed.batches import Batch, BatchJob
from tessera.domain.observed.runner_reports import CHECK_NUMBER
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.service.preparation.claims import ModelClaim
from tessera.domain.service.preparation.jobs import ModelJob

NOT_ACCEPTED = StatusVerdict(
    BatchRunning.NOT_ACCEPTED, "Accepted is False, so no attempt starts and running ones continue"
)
# A running operator ends a Job at the deadline, before the Job's own limit does.
_JOB_DEADLINE_MARGIN = timedelta(minutes=10)
_STATES: dict[BatchComplete, BatchState] = {
    BatchComplete.COMPLETED: "completed",
    BatchComplete.INVALID_INPUT: "failed",
    BatchComplete.USER_ACTION_REQUIRED: "failed",
    BatchComplete.ROWS_REFUSED: "failed",
    BatchComplete.ALL_ROWS_FAILED: "failed",
    BatchComplete.BACKOFF_LIMIT_EXCEEDED: "failed",
    BatchComplete.DEADLINE_EXCEEDED: "expired",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJobRequest:
    """A Job to create; an existing Job is never updated."""

    attempt: int | None
    """Number of the attempt; None for the check."""
    name: str
    source: BatchModelSource
    choice: HardwareChoice | None = None
    """Hardware of the attempt; None for the check and for an attempt that only publishes."""
    claims: tuple[ModelClaim, ...] = ()
    """Claims that model files are downloaded to; they are applied before the Job."""
    active_deadline: timedelta
    """Limit after which the Job ends without an operator."""
    avoided_node: str = ""
    """Node on which the last attempt failed."""
    charged: bool = False
    """A limit of basis Charge may hold for its rows: they are paid at a gateway."""
    spot_affinity: bool = False
    """Nodes of the chosen pool have a spot label, so the pod can require it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressTarget:
    """The runner whose `/progress` is to be read."""

    attempt: int
    """Its number; `CHECK_NUMBER` for the check."""
    pod: Ref
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Status, Jobs and hardware of one batch, with reasons.

    It is applied in this order: the status with the attempt's number, `delete`, `create`.
    """

    batch: Batch
    accepted: StatusVerdict[BatchAccepted]
    running: StatusVerdict[BatchRunning]
    complete: StatusVerdict[BatchComplete]
    state: BatchState
    deadline: datetime | None = None
    model: BatchModelStatus | None = None
    """What was read about the model of the spec."""
    model_job: ModelJob | None = None
    """A Job to create, which reads it."""
    check: CheckStatus | None = None
    attempt: AttemptStatus | None = None
    progress: ProgressStatus | None = None
    create: BatchJobRequest | None = None
    delete: tuple[Ref, ...] = ()
    """Jobs to delete, with their pods."""
    progress_target: ProgressTarget | None = None
    podless_job: BatchJob | None = None
    """A Job whose events may say why it has no pod."""
    choice: HardwareChoice | None = None
    """The hardware that the batch holds or is about to use."""
    active: bool = True
    """Set until the batch is finished and all of its pods have ended."""
    claim: GrantRequest | None = None
    """The grant that the plan needs from the budget; None when it costs nothing."""
    unfunded_plan: "BatchPlan | None" = None
    """The plan without the grant; its reason follows from the denial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchContext:
    """One batch with a valid spec and the state of its check and last attempt."""

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

    def job_request(self, attempt: int | None, source: BatchModelSource) -> BatchJobRequest:
        """Return the Job of the check or of an attempt without a GPU, if it starts now."""
        return BatchJobRequest(
            attempt=attempt,
            name=job_name(self.batch.ref.name, attempt),
            source=source,
            active_deadline=self.deadline - self.now + _JOB_DEADLINE_MARGIN,
        )


def unchanged_plan(context: BatchContext, running: StatusVerdict[BatchRunning]) -> BatchPlan:
    """Return the plan of an unfinished batch, without changes to its Jobs."""
    state, complete = _batch_state(context)
    return BatchPlan(
        batch=context.batch,
        accepted=context.accepted,
        running=running,
        complete=complete,
        state=state,
        deadline=context.deadline,
        model=context.situation.model,
        check=context.check,
        attempt=context.attempt_state.attempt,
        progress=context.attempt_state.progress,
        progress_target=_progress_target(context),
        podless_job=podless_job(context.situation),
    )


def continue_plan(context: BatchContext, running: StatusVerdict[BatchRunning]) -> BatchPlan:
    """Return the plan that continues the running attempt and starts nothing."""
    attempt = context.attempt_state.attempt
    number = None if attempt is None else attempt.number
    retained = (number,) if attempt is None or context.attempt_state.alive else ()
    delete = deletable_jobs(context.situation, retained, attempt)
    return replace(unchanged_plan(context, running), delete=delete)


def idle_plan(context: BatchContext, running: StatusVerdict[BatchRunning]) -> BatchPlan:
    """Return the plan without a running attempt; the current one is stopped."""
    stopped = _stop_attempt(context, running.reason)
    delete = deletable_jobs(context.situation, (), stopped.attempt_state.attempt)
    return replace(unchanged_plan(stopped, running), delete=delete)


def deleting_plan(context: BatchContext) -> BatchPlan:
    """Return the plan of a batch that a finalizer keeps; its attempt is stopped."""
    text = (
        f"BatchInference/{context.batch.ref.name} is being deleted and kept by "
        "metadata.finalizers, so 0 attempts run"
    )
    plan = idle_plan(context, StatusVerdict(BatchRunning.TERMINATING, text))
    return replace(plan, active=_has_live_pods(context.situation))


def closing_plan(context: BatchContext, completion: StatusVerdict[BatchComplete]) -> BatchPlan:
    """Return the plan that finishes the batch."""
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
    """Return the plan of a batch that is not accepted; its objects stay unchanged."""
    status = situation.batch.status
    reason = BatchComplete.VALIDATING if status.check is None else BatchComplete.IN_PROGRESS
    complete = _verdict_from_status(
        situation, "Complete", StatusVerdict(reason, NOT_ACCEPTED.message)
    )
    return _plan_from_status(situation, accepted=accepted, running=NOT_ACCEPTED, complete=complete)


def terminal_plan(situation: Situation) -> BatchPlan:
    """Return the plan of a finished batch; its status and its last Job stay."""
    state = situation.batch.status.state
    complete = next((reason for reason in _STATES if _STATES[reason] == state), None)
    plan = _plan_from_status(
        situation,
        accepted=_verdict_from_status(
            situation, "Accepted", StatusVerdict(BatchAccepted.VALID, "accepted before")
        ),
        running=_verdict_from_status(situation, "Running", _finished_verdict(state)),
        complete=_verdict_from_status(
            situation,
            "Complete",
            StatusVerdict(complete or BatchComplete.DEADLINE_EXCEEDED, f"status.state is {state}"),
        ),
    )
    delete = deletable_jobs(situation, (), situation.batch.status.attempt)
    return replace(plan, delete=delete, active=_has_live_pods(situation))


def _has_live_pods(situation: Situation) -> bool:
    return any(pod.ended is None for pod in situation.pods)


def deletable_jobs(
    situation: Situation, retained: Collection[int | None], last: AttemptStatus | None
) -> tuple[Ref, ...]:
    """Return all Jobs except the retained ones and the last attempt's finished Job."""
    # The log of the last Job helps to debug it.
    number = None if last is None else last.number
    jobs = sorted(
        job.ref
        for job in situation.jobs
        if job.attempt not in retained
        and not (job.attempt == number and _all_pods_finished(situation, job))
    )
    return (*_obsolete_shape_jobs(situation), *jobs)


def _obsolete_shape_jobs(situation: Situation) -> tuple[Ref, ...]:
    """Return the Job that reads the model if the status has what it read, or it runs again."""
    job = situation.shape_job
    if job is None:
        return ()
    return job.obsolete_jobs if situation.batch.status.model is None else job.jobs


def _all_pods_finished(situation: Situation, job: BatchJob) -> bool:
    pods = [pod for pod in situation.pods if pod.attempt == job.attempt]
    return bool(pods) and all(pod.finished for pod in pods)


def _stop_attempt(context: BatchContext, message: str) -> BatchContext:
    state, attempt = context.attempt_state, context.attempt_state.attempt
    if attempt is None or attempt.finished_at is not None:
        return context
    ended_attempt = end_attempt(attempt, state.progress, context.now, message)
    return replace(context, attempt_state=replace(state, attempt=ended_attempt, alive=False))


def _progress_target(context: BatchContext) -> ProgressTarget | None:
    state, number = context.attempt_state, CHECK_NUMBER
    pod = check_pod(context.situation) if context.check is None else None
    if state.alive and state.attempt is not None:
        pod, number = state.pod, state.attempt.number
    if pod is None or pod.finished or pod.address is None:
        return None
    return ProgressTarget(attempt=number, pod=pod.ref, address=pod.address)


def _batch_state(context: BatchContext) -> tuple[BatchState, StatusVerdict[BatchComplete]]:
    progress, spec = context.attempt_state.progress, context.spec
    if context.check is None or progress is None:
        text = f"spec.input: {spec.input} on {spec.claim_name} is not checked yet, 0 rows are known"
        return "validating", StatusVerdict(BatchComplete.VALIDATING, text)
    if context.attempt_state.alive and context.attempt_state.publishing:
        rows = counted(progress.rows, "row")
        text = f"status.progress: {progress.done} of {rows} done, publishing {spec.output}"
        return "finalizing", StatusVerdict(BatchComplete.FINALIZING, text)
    text = f"status.progress: {progress.done} of {counted(progress.rows, 'row')} done"
    if progress.failed:
        text += f", {progress.failed} of them failed"
    return "in_progress", StatusVerdict(BatchComplete.IN_PROGRESS, text)


def _finished_verdict(state: BatchState) -> StatusVerdict[BatchRunning]:
    return StatusVerdict(BatchRunning.FINISHED, f"status.state is {state}, so 0 attempts run")


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
        model=status.model,
        check=status.check,
        attempt=status.attempt,
        progress=status.progress,
    )


R = TypeVar("R", bound=StatusReason)


def _verdict_from_status(
    situation: Situation, condition_type: str, default: StatusVerdict[R]
) -> StatusVerdict[R]:
    """Return the verdict of a condition; `default` if its reason is of another version."""
    reasons = {str(reason): reason for reason in type(default.reason)}
    for condition in situation.batch.status.conditions:
        if condition.type == condition_type and condition.reason in reasons:
            return StatusVerdict(reasons[condition.reason], condition.cause)
    return default
