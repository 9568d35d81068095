"""What became of the last attempt, by its pod, its Job and its node."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from tessera.api.batch_inference import AttemptStatus, ProgressStatus
from tessera.api.batch_reasons import BatchComplete
from tessera.api.reasons import StatusVerdict
from tessera.domain.batch.names import errors_path, job_name, work_path
from tessera.domain.batch.situation import Situation
from tessera.domain.batch.spot_nodes import disruption_message
from tessera.domain.observed.batches import BatchJob, BatchPod, ProgressSample
from tessera.domain.observed.runner_reports import RunReport, run_report

# So many attempts in a row fail without a new row before a batch is given up,
MAX_FAILURES_WITHOUT_ROWS = 6
# and for so long: a registry that is away for an hour must not end what has a day.
MIN_FAILURE_DURATION = timedelta(hours=2)
# Progress is written down this often; each writing costs a request.
PROGRESS_WRITE_INTERVAL = timedelta(seconds=30)
_INITIAL_BACKOFF = timedelta(seconds=5)
_MAX_BACKOFF = timedelta(minutes=5)
_MAX_BACKOFF_AFTER_LOSS = timedelta(minutes=1)
# Exit code of a runner that found something only the user can change.
_REFUSED_EXIT_CODE = 3
# Why containers wait, in the kubelet's words, when waiting longer rarely helps.
_FATAL_WAITING_REASONS = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
# An image of 20 GB and the largest weights take less; what is not there by then never comes.
_START_TIMEOUT = timedelta(minutes=45)
_MAX_MESSAGE_LENGTH = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptState:
    """The last attempt as it stands."""

    attempt: AttemptStatus | None = None
    progress: ProgressStatus | None = None
    pod: BatchPod | None = None
    alive: bool = False
    publishing: bool = False
    """All rows are done, and the runner is at work on the results."""
    completion: StatusVerdict[BatchComplete] | None = None
    """The batch is over."""

    @property
    def scheduled(self) -> bool:
        return self.pod is not None and self.pod.bound is not None

    @property
    def started(self) -> bool:
        """The engine is up, and the runner at work beside it."""
        running = self.attempt is not None and self.attempt.running_since is not None
        return running or (self.pod is not None and self.pod.runner_since is not None)


@dataclass(frozen=True, slots=True)
class _AttemptEnd:
    """How an attempt ended."""

    kind: Literal["lost", "failed", "vanished", "refused"]
    message: str


def attempt_state(situation: Situation, now: datetime) -> AttemptState:
    """Judge the attempt that stands in the status, and take in what runners say."""
    attempt = situation.batch.status.attempt or _unrecorded_attempt(situation, now)
    progress = _latest_progress(situation, now)
    if attempt is None or progress is None:
        return AttemptState(attempt=attempt, progress=progress)
    if any(report.state == "completed" for _, report in _run_reports(situation)):
        return AttemptState(
            attempt=attempt
            if attempt.ended_at
            else end_attempt(attempt, progress, now, "completed"),
            progress=progress,
            completion=StatusVerdict(
                BatchComplete.COMPLETED, _completion_message(situation, progress)
            ),
        )
    if attempt.ended_at is not None:
        return AttemptState(attempt=attempt, progress=progress)
    attempt, progress = _mark_running(attempt, progress, _current_sample(situation))
    job = next((job for job in situation.jobs if job.attempt == attempt.number), None)
    pods = [
        pod
        for pod in situation.pods
        if pod.attempt == attempt.number and (job is None or pod.owner == job.uid)
    ]
    pod = max(pods, key=lambda candidate: (candidate.created, candidate.ref), default=None)
    end = _attempt_end(situation, pod, job) or _start_timeout_end(pod, now)
    if end is not None:
        return _ended_state(situation, attempt, progress, end, now)
    state = AttemptState(attempt=attempt, progress=progress, pod=pod, alive=True)
    sample = _current_sample(situation)
    assembling = sample is not None and sample.progress.state in ("assembling", "publishing")
    all_done = state.started and progress.done >= progress.rows
    return replace(state, publishing=assembling or all_done)


def highest_attempt_number(situation: Situation) -> int:
    """The highest number that any attempt ever had, as far as anything shows it."""
    attempt = situation.batch.status.attempt
    known = [job.attempt for job in situation.jobs] + [pod.attempt for pod in situation.pods]
    return max(0 if attempt is None else attempt.number, *(number or 0 for number in known), 0)


def end_attempt(
    attempt: AttemptStatus,
    progress: ProgressStatus | None,
    now: datetime,
    message: str,
    *,
    cause: Literal["lost", "failed", "let go"] = "let go",
) -> AttemptStatus:
    """The attempt, over now.

    After failures of its own the next one waits: 5 s, doubled with each in a row that brought no
    new row, at most 5 min. One that is lost is followed at once; from the second in a row that
    brought no new row on the next one waits 5 s, doubled with each, at most 1 min.
    """
    has_new_rows = progress is not None and progress.done > attempt.done_before
    failures = 0 if has_new_rows else attempt.barren + (cause == "failed")
    losses = 0 if has_new_rows or cause == "failed" else attempt.lost + (cause == "lost")
    backoff = timedelta()
    if cause == "failed":
        backoff = min(
            _INITIAL_BACKOFF * 2 ** min(failures, MAX_FAILURES_WITHOUT_ROWS), _MAX_BACKOFF
        )
    elif cause == "lost" and losses > 1:
        backoff = min(
            _INITIAL_BACKOFF * 2 ** min(losses - 2, MAX_FAILURES_WITHOUT_ROWS),
            _MAX_BACKOFF_AFTER_LOSS,
        )
    since = (attempt.barren_since or now) if failures else None
    update = {"ended_at": now, "retry_at": now + backoff, "lost": losses}
    update |= {"barren": failures, "barren_since": since}
    return attempt.model_copy(update={**update, "last_words": message[-_MAX_MESSAGE_LENGTH:]})


def retained_rows_message(situation: Situation) -> str:
    """Where finished rows are."""
    spec = situation.batch.spec
    claim = spec.claim if spec is not None else "the claim"
    return f"what was finished is kept in {work_path(situation.batch.uid)} on {claim}"


def _unrecorded_attempt(situation: Situation, now: datetime) -> AttemptStatus | None:
    """An attempt that exists although the status names none: its number must not come again."""
    number = highest_attempt_number(situation)
    if number == 0:
        return None
    name = job_name(situation.batch.ref.name, number)
    attempt = AttemptStatus(
        number=number, tier="spot", pool="", variant="", job=name, started_at=now
    )
    return end_attempt(attempt, None, now, "the status had lost it")


def _ended_state(
    situation: Situation,
    attempt: AttemptStatus,
    progress: ProgressStatus,
    end: _AttemptEnd,
    now: datetime,
) -> AttemptState:
    cause: Literal["lost", "failed"] = "lost" if end.kind == "lost" else "failed"
    ended_attempt = end_attempt(attempt, progress, now, end.message, cause=cause)
    if end.kind == "vanished":
        ended_attempt = ended_attempt.model_copy(
            update={"barren": min(ended_attempt.barren, MAX_FAILURES_WITHOUT_ROWS - 1)}
        )
    state = AttemptState(attempt=ended_attempt, progress=progress)
    done = (
        f"{progress.done} of {progress.rows} rows are done, and {retained_rows_message(situation)}"
    )
    if end.kind == "refused":
        message = f"spec.input, spec.output: attempt {attempt.number} was refused: {end.message}"
        return replace(
            state,
            completion=StatusVerdict(BatchComplete.USER_ACTION_REQUIRED, f"{message}; {done}"),
        )
    if (
        ended_attempt.barren >= MAX_FAILURES_WITHOUT_ROWS
        and now - (ended_attempt.barren_since or now) >= MIN_FAILURE_DURATION
    ):
        message = (
            f"status.attempt: {ended_attempt.barren} attempts in a row failed without a new row"
        )
        return replace(
            state,
            completion=StatusVerdict(
                BatchComplete.BACKOFF_LIMIT_EXCEEDED,
                f"{message}, the last one: {end.message}; {done}",
            ),
        )
    return state


def _attempt_end(
    situation: Situation, pod: BatchPod | None, job: BatchJob | None
) -> _AttemptEnd | None:
    """How the attempt ended; None while it lasts."""
    if pod is None:
        if job is None:
            refused = situation.job_refusal
            message = "its Job is gone" if refused is None else f"its Job was refused: {refused}"
            return _AttemptEnd("vanished", message)
        return _AttemptEnd("lost", "its pod is gone") if job.failed else None
    disruption = disruption_message(pod, situation.nodes)
    if pod.finished:
        return _exit_end(pod, disruption)
    if disruption is not None:
        return _AttemptEnd("lost", disruption)
    if pod.waiting_reason in _FATAL_WAITING_REASONS:
        return _AttemptEnd(
            "failed", f"{pod.waiting_reason}: {pod.container_message[-_MAX_MESSAGE_LENGTH:]}"
        )
    return _AttemptEnd("vanished", "its Job is gone") if job is None else None


def _start_timeout_end(pod: BatchPod | None, now: datetime) -> _AttemptEnd | None:
    if pod is None or pod.bound is None or pod.runner_since is not None:
        return None
    if now - pod.bound < _START_TIMEOUT:
        return None
    limit = int(_START_TIMEOUT.total_seconds() / 60)
    message = f"its engine was not up within {limit} min; kubectl describe pod {pod.ref.name}"
    return _AttemptEnd(
        "failed", f"{message}: {pod.waiting_reason or 'ContainerCreating'}: {pod.container_message}"
    )


def _exit_end(pod: BatchPod, disruption: str | None) -> _AttemptEnd:
    report = run_report(pod.report)
    code = "no exit code" if pod.exit_code is None else f"exit code {pod.exit_code}"
    text = report.message if report is not None else pod.report.strip() or pod.container_message
    message = f"{code}: {text[-_MAX_MESSAGE_LENGTH:]}".strip(": ")
    if pod.exit_code == _REFUSED_EXIT_CODE:
        return _AttemptEnd("refused", message)
    if disruption is not None:
        return _AttemptEnd("lost", disruption)
    if report is not None and report.state == "stopped":
        return _AttemptEnd("lost", message)
    return _AttemptEnd("failed", message)


def _run_reports(situation: Situation) -> Iterator[tuple[BatchPod, RunReport]]:
    """What attempts left behind; a report that names another attempt than its pod is none."""
    for pod in sorted(
        situation.pods, key=lambda candidate: (candidate.attempt or 0, candidate.ref)
    ):
        if pod.attempt is not None and pod.exit_code is not None:
            report = run_report(pod.report)
            if report is not None and report.attempt == pod.attempt:
                yield pod, report


def _current_sample(situation: Situation) -> ProgressSample | None:
    """The last answer, if it is that of the attempt in the status."""
    sample, attempt = situation.progress_sample, situation.batch.status.attempt
    if sample is None or attempt is None or sample.progress.attempt != attempt.number:
        return None
    return sample


def _mark_running(
    attempt: AttemptStatus, progress: ProgressStatus, sample: ProgressSample | None
) -> tuple[AttemptStatus, ProgressStatus]:
    """Note when the attempt was first seen at work on rows, and so how long its start took."""
    if sample is None or sample.progress.state != "running" or attempt.running_since is not None:
        return attempt, progress
    since = max(sample.at.replace(microsecond=0), attempt.started_at)
    running_attempt = attempt.model_copy(
        update={"running_since": since, "running_from": sample.progress.done}
    )
    start_seconds = int((since - attempt.started_at).total_seconds())
    return running_attempt, progress.model_copy(update={"start_seconds": start_seconds})


def _latest_progress(situation: Situation, now: datetime) -> ProgressStatus | None:
    """The furthest that is known; it never goes back."""
    known = situation.batch.status.progress
    if known is None:
        return None
    for _, report in _run_reports(situation):
        counts = report.model_dump(exclude={"phase", "attempt", "state", "rows", "message"})
        known = _furthest_progress(known, counts, now)
    sample = _current_sample(situation)
    if sample is not None:
        progress = sample.progress
        counts = progress.model_dump(exclude={"attempt", "state", "rows", "done"})
        counts["completed"] = max(0, progress.done - progress.failed)
        due = (
            sample.at - known.at >= PROGRESS_WRITE_INTERVAL
            or known.done == 0
            or progress.done >= known.rows
        )
        known = _furthest_progress(known, counts, sample.at) if due else known
    return known


def _furthest_progress(
    known: ProgressStatus, counts: dict[str, int], at: datetime
) -> ProgressStatus:
    updated = known.model_copy(update={**counts, "at": at.replace(microsecond=0)})
    return updated if _progress_key(updated) > _progress_key(known) else known


def _progress_key(progress: ProgressStatus) -> tuple[int, int, int]:
    return (progress.done, progress.output_tokens, progress.repaid_rows)


def _completion_message(situation: Situation, progress: ProgressStatus) -> str:
    spec = situation.batch.spec
    if spec is None:
        return f"{progress.completed} of {progress.rows} rows are answered"
    message = f"spec.output: {progress.completed} of {progress.rows} rows are answered in "
    message += f"{spec.output} on {spec.claim}"
    if progress.failed:
        message += f"; {progress.failed} failed, {errors_path(spec)} says why"
    return message
