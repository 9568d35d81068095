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
from tessera.domain.batch.attempt import Standing, ended
from tessera.domain.batch.facts import Batch, BatchJob
from tessera.domain.batch.reasons import BatchAccepted, BatchComplete, BatchRunning
from tessera.domain.batch.situation import Situation
from tessera.domain.batch.spec import Source
from tessera.domain.placement import HardwareChoice
from tessera.domain.reasons import StatusReason, StatusVerdict
from tessera.domain.ref import Ref

TERMINAL: frozenset[BatchState] = frozenset({"completed", "failed", "expired"})
NOT_ACCEPTED = StatusVerdict(
    BatchRunning.NOT_ACCEPTED,
    "nothing is started while Accepted is False, and what runs is left as it is",
)
_BEYOND = timedelta(minutes=10)
"""Beyond the deadline an operator that is there ends a Job long before its own limit does."""
_STATES: dict[BatchComplete, BatchState] = {
    BatchComplete.COMPLETED: "completed",
    BatchComplete.INVALID_INPUT: "failed",
    BatchComplete.USER_ACTION_REQUIRED: "failed",
    BatchComplete.BACKOFF_LIMIT_EXCEEDED: "failed",
    BatchComplete.DEADLINE_EXCEEDED: "expired",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A Job to create. It does not exist yet, and once it does it is never written again."""

    attempt: int | None
    """None is the check."""
    name: str
    source: Source
    choice: HardwareChoice | None = None
    """Where the attempt runs; a check runs anywhere."""
    lasting: timedelta
    """Its Job ends by itself after so long, also when no operator is there to end it."""
    labelled: bool = False
    """The cloud marks nodes of the chosen pool as spot, so the pod can ask for the mark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """The runner to ask how far it is, at `/progress`."""

    attempt: int
    pod: Ref
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAllotment:
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
    create: Start | None = None
    delete: tuple[Ref, ...] = ()
    """Jobs that have to go, with their pods."""
    ask: Ask | None = None
    choice: HardwareChoice | None = None
    """The hardware that the batch holds or is about to take."""
    living: bool = True
    """It is not over, or one of its pods is still there and has not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One batch with a spec, as far as it is judged."""

    situation: Situation
    now: datetime
    spec: BatchInferenceSpec
    accepted: StatusVerdict[BatchAccepted]
    standing: Standing
    check: CheckStatus | None

    @property
    def batch(self) -> Batch:
        return self.situation.batch

    @property
    def deadline(self) -> datetime:
        return self.batch.created + self.spec.deadline

    @property
    def lasting(self) -> timedelta:
        """How long a Job may last that begins now."""
        return self.deadline - self.now + _BEYOND


def told(turn: Turn, running: StatusVerdict[BatchRunning]) -> BatchAllotment:
    """The allotment of a batch that is not over, with no change to its Jobs."""
    state, complete = _state(turn)
    return BatchAllotment(
        batch=turn.batch,
        accepted=turn.accepted,
        running=running,
        complete=complete,
        state=state,
        deadline=turn.deadline,
        check=turn.check,
        attempt=turn.standing.attempt,
        progress=turn.standing.progress,
        ask=_ask(turn.standing),
    )


def left(turn: Turn, running: StatusVerdict[BatchRunning]) -> BatchAllotment:
    """What runs goes on, and nothing begins."""
    attempt = turn.standing.attempt
    number = None if attempt is None else attempt.number
    kept = (number,) if attempt is None or turn.standing.alive else ()
    return replace(told(turn, running), delete=deletable(turn.situation, kept, attempt))


def idle(turn: Turn, running: StatusVerdict[BatchRunning]) -> BatchAllotment:
    """Nothing runs; an attempt that lasts is let go."""
    gone = _let_go(turn, running.reason)
    return replace(told(gone, running), delete=deletable(turn.situation, (), gone.standing.attempt))


def closed(turn: Turn, over: StatusVerdict[BatchComplete]) -> BatchAllotment:
    """The batch is over."""
    gone = _let_go(turn, over.reason)
    state = _STATES[over.reason]
    return replace(
        told(gone, _finished(state)),
        complete=over,
        state=state,
        living=_living(turn.situation),
        delete=deletable(turn.situation, (), gone.standing.attempt),
    )


def held(situation: Situation, accepted: StatusVerdict[BatchAccepted]) -> BatchAllotment:
    """Nothing can be decided, so everything stays as it is."""
    status = situation.batch.status
    reason = BatchComplete.VALIDATING if status.check is None else BatchComplete.IN_PROGRESS
    return _as_written(
        situation,
        accepted=accepted,
        running=NOT_ACCEPTED,
        complete=_written(situation, "Complete", StatusVerdict(reason, NOT_ACCEPTED.message)),
    )


def finished(situation: Situation) -> BatchAllotment:
    """A batch that was over before says what it said, and its idle Jobs stay for their logs."""
    state = situation.batch.status.state
    complete = next((reason for reason in _STATES if _STATES[reason] == state), None)
    found = _as_written(
        situation,
        accepted=_written(situation, "Accepted", StatusVerdict(BatchAccepted.VALID, "it was")),
        running=_written(situation, "Running", _finished(state)),
        complete=_written(
            situation,
            "Complete",
            StatusVerdict(complete or BatchComplete.DEADLINE_EXCEEDED, f"it is {state}"),
        ),
    )
    delete = deletable(situation, (), situation.batch.status.attempt)
    return replace(found, delete=delete, living=_living(situation))


def _living(situation: Situation) -> bool:
    return any(pod.ended is None for pod in situation.pods)


def deletable(
    situation: Situation, kept: Collection[int | None], last: AttemptStatus | None
) -> tuple[Ref, ...]:
    """All Jobs but those that are kept, and but the last one if it is over: its log helps."""
    number = None if last is None else last.number
    return tuple(
        sorted(
            job.ref
            for job in situation.jobs
            if job.attempt not in kept and not (job.attempt == number and _quiet(situation, job))
        )
    )


def _quiet(situation: Situation, job: BatchJob) -> bool:
    pods = [pod for pod in situation.pods if pod.attempt == job.attempt]
    return bool(pods) and all(pod.over for pod in pods)


def _let_go(turn: Turn, words: str) -> Turn:
    state, attempt = turn.standing, turn.standing.attempt
    if attempt is None or attempt.ended_at is not None:
        return turn
    gone = ended(attempt, state.progress, turn.now, words)
    return replace(turn, standing=replace(state, attempt=gone, alive=False))


def _ask(state: Standing) -> Ask | None:
    attempt, pod = state.attempt, state.pod
    if not state.alive or attempt is None or pod is None or pod.address is None:
        return None
    return Ask(attempt=attempt.number, pod=pod.ref, address=pod.address)


def _state(turn: Turn) -> tuple[BatchState, StatusVerdict[BatchComplete]]:
    progress, spec = turn.standing.progress, turn.spec
    if turn.check is None or progress is None:
        text = f"spec.input: {spec.input} on {spec.claim} is not checked yet, 0 rows are known"
        return "validating", StatusVerdict(BatchComplete.VALIDATING, text)
    if turn.standing.alive and turn.standing.publishing:
        text = f"status.progress: all {progress.rows} rows are done, {spec.output} is being written"
        return "finalizing", StatusVerdict(BatchComplete.FINALIZING, text)
    text = f"status.progress: {progress.done} of {progress.rows} rows are done"
    if progress.failed:
        text += f", {progress.failed} of them failed"
    return "in_progress", StatusVerdict(BatchComplete.IN_PROGRESS, text)


def _finished(state: BatchState) -> StatusVerdict[BatchRunning]:
    return StatusVerdict(
        BatchRunning.FINISHED, f"status.state is {state}, so 0 attempts are wanted"
    )


def _as_written(
    situation: Situation,
    *,
    accepted: StatusVerdict[BatchAccepted],
    running: StatusVerdict[BatchRunning],
    complete: StatusVerdict[BatchComplete],
) -> BatchAllotment:
    status = situation.batch.status
    return BatchAllotment(
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


def _written(situation: Situation, kind: str, otherwise: StatusVerdict[R]) -> StatusVerdict[R]:
    """The verdict that stands in a condition; reasons of another version give way."""
    words = {str(reason): reason for reason in type(otherwise.reason)}
    for condition in situation.batch.status.conditions:
        if condition.type == kind and condition.reason in words:
            return StatusVerdict(words[condition.reason], condition.message)
    return otherwise
