"""State of the last attempt, by its pod, its Job and its node."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from tessera.api.batch_inference import AttemptStatus, ProgressStatus
from tessera.api.batch_reasons import BatchComplete
from tessera.api.reasons import StatusVerdict
from tessera.api.text import counted
from tessera.domain.batch.names import errors_path, job_name, work_path
from tessera.domain.batch.situation import Situation
from tessera.domain.hardware.spot_nodes import disruption_message
from tessera.domain.health.startup_failure import refusal_text
from tessera.domain.observed.batches import POD_CREATION_TIME, BatchJob, ProgressSample
from tessera.domain.observed.model_reports import report_message
from tessera.domain.observed.runner_reports import (
    BUDGET_EXCEEDED,
    INPUT_CHANGED,
    REFUSED_EXIT_CODE,
    ROWS_MISSING,
    ROWS_REFUSED,
    STALL_SECONDS,
    WORK_MISSING,
    RunReport,
    run_report,
)
from tessera.domain.observed.snapshot import BatchPod

# A batch fails after so many failed attempts in a row without a new row,
MAX_FAILURES_WITHOUT_ROWS = 6
# and after so long at least: an outage of a registry must not fail a batch that has a day.
MIN_FAILURE_DURATION = timedelta(hours=2)
# Each write of the progress costs a request.
PROGRESS_WRITE_INTERVAL = timedelta(seconds=30)
_INITIAL_BACKOFF = timedelta(seconds=5)
MAX_BACKOFF = timedelta(minutes=5)
_MAX_BACKOFF_AFTER_INTERRUPTION = timedelta(minutes=1)
# Waiting reasons of the kubelet that rarely resolve by themselves.
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
# An image of 20 GB and the largest weights start in less.
_START_TIMEOUT = timedelta(minutes=45)
# After so long without a row or a byte an attempt is called stalled,
_STALL_NOTICE = timedelta(minutes=2)
# and replaced if its runner, which ends it sooner, could not.
STALL_TIMEOUT = timedelta(seconds=STALL_SECONDS, minutes=5)
_MAX_MESSAGE_LENGTH = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptState:
    """The last attempt with its progress and its pod."""

    attempt: AttemptStatus | None = None
    progress: ProgressStatus | None = None
    pod: BatchPod | None = None
    alive: bool = False
    publishing: bool = False
    """All rows are done and the runner assembles or publishes the results."""
    completion: StatusVerdict[BatchComplete] | None = None
    """Set when the batch is finished."""

    @property
    def scheduled(self) -> bool:
        return self.pod is not None and self.pod.bound is not None

    @property
    def started(self) -> bool:
        """Return whether the engine is ready and the runner has started."""
        running = self.attempt is not None and self.attempt.running_since is not None
        return running or (self.pod is not None and self.pod.runner_since is not None)


@dataclass(frozen=True, slots=True)
class _AttemptEnd:
    kind: Literal[
        "interrupted",
        "failed",
        "job_missing",
        "refused",
        "rowsRefused",
        "rowsMissing",
        "inputChanged",
        "budgetExceeded",
        "workMissing",
    ]
    """`interrupted`: by its node or an eviction; `job_missing`: its Job was
    deleted, or the API server refused to create it."""
    message: str


def attempt_state(situation: Situation, now: datetime) -> AttemptState:
    """Assess the attempt of the status by its objects and by the reports of runners."""
    attempt = situation.batch.status.attempt or _unrecorded_attempt(situation, now)
    progress = _latest_progress(situation, now)
    if attempt is None or progress is None:
        return AttemptState(attempt=attempt, progress=progress)
    completed = [report for _, report in _run_reports(situation) if report.state == "completed"]
    if completed:
        answered = completed[0].completed > 0
        message = _completion_message(situation, progress)
        if completed[0].input_changed:
            message += "; spec.input changed since its check, and all rows are those of the check"
        reason = BatchComplete.COMPLETED if answered else BatchComplete.ALL_ROWS_FAILED
        return AttemptState(
            attempt=attempt
            if attempt.finished_at
            else end_attempt(attempt, progress, now, "completed"),
            progress=progress,
            completion=StatusVerdict(reason, message),
        )
    if attempt.finished_at is not None:
        return AttemptState(attempt=attempt, progress=progress)
    attempt, progress = _mark_running(attempt, progress, _current_sample(situation))
    job = situation.job_of(attempt.number)
    pod = situation.last_pod(attempt.number, job)
    end = (
        _attempt_end(situation, pod, job)
        or _start_timeout_end(pod, now)
        or _stall_end(situation, now)
    )
    if end is not None:
        if end.kind == "failed" and pod is not None and pod.node is not None:
            attempt = attempt.model_copy(update={"failed_node": pod.node})
        return _ended_state(situation, attempt, progress, end, now)
    state = AttemptState(attempt=attempt, progress=progress, pod=pod, alive=True)
    sample = _current_sample(situation)
    assembling = sample is not None and sample.progress.state in ("assembling", "publishing")
    all_done = (state.started or not attempt.has_engine) and progress.done >= progress.rows
    return replace(state, publishing=assembling or all_done)


def stalled_since(situation: Situation, now: datetime) -> datetime | None:
    """Return when a row or a byte of the attempt last moved, if that is 2 minutes ago; else None.

    A runner that never answered may be out of reach, so only one that did is judged.
    """
    sample, attempt = _current_sample(situation), situation.batch.status.attempt
    if sample is not None:
        return unmoved_since(sample, now)
    # It answered an earlier leader, and this one not yet.
    silent = situation.unanswered_since if attempt and attempt.running_since else None
    return silent if silent is not None and now - silent >= _STALL_NOTICE else None


def unmoved_since(sample: ProgressSample, now: datetime) -> datetime | None:
    """Return when a row or a byte last moved, if that is 2 minutes ago; else None."""
    # The checksums of large results take long, and no row moves meanwhile.
    publishing = sample.progress.state == "publishing"
    idle = timedelta(seconds=0 if publishing else sample.progress.idle_seconds)
    moved = (sample.at - idle).replace(microsecond=0)
    return moved if now - moved >= _STALL_NOTICE else None


def podless_job(situation: Situation) -> BatchJob | None:
    """Return a Job whose pod should exist by now."""
    owners = {pod.owner for pod in situation.pods}
    for job in situation.jobs:
        created = job.created or situation.at
        if job.uid not in owners and situation.at - created >= POD_CREATION_TIME:
            return job
    return None


def pod_refusal_message(situation: Situation, attempt: int | None) -> str | None:
    """Return why the Job of an attempt, or of the check, has no pod; None while nothing says so."""
    job = podless_job(situation)
    refusal = None if job is None else situation.pod_refusals.get(job.uid)
    if job is None or job.attempt != attempt or refusal is None or refusal.message is None:
        return None
    text = refusal_text(refusal.message[:_MAX_MESSAGE_LENGTH])
    return f"Job/{job.ref.name} has no pod: {text}; see kubectl describe job {job.ref.name}"


def highest_attempt_number(situation: Situation) -> int:
    """Return the highest number of any attempt in the status, Jobs and pods; 0 without one."""
    attempt = situation.batch.status.attempt
    known = [job.attempt for job in situation.jobs] + [pod.attempt for pod in situation.pods]
    return max(0 if attempt is None else attempt.number, *(number or 0 for number in known), 0)


def end_attempt(
    attempt: AttemptStatus,
    progress: ProgressStatus | None,
    now: datetime,
    message: str,
    *,
    cause: Literal["interrupted", "failed", "stopped"] = "stopped",
) -> AttemptStatus:
    """Return the attempt as ended now, with the time of the next one.

    After a failure the next attempt waits 5 s, doubled for each failure in a row without a new row,
    at most 5 min. After an interruption it starts at once; from the second interruption in a row
    without a new row it waits 5 s, doubled for each, at most 1 min.
    """
    has_new_rows = progress is not None and progress.done > attempt.done_before
    failures = 0 if has_new_rows else attempt.consecutive_failures + (cause == "failed")
    interruptions = (
        0
        if has_new_rows or cause == "failed"
        else attempt.consecutive_interruptions + (cause == "interrupted")
    )
    backoff = timedelta()
    if cause == "failed":
        backoff = min(_INITIAL_BACKOFF * 2 ** min(failures, MAX_FAILURES_WITHOUT_ROWS), MAX_BACKOFF)
    elif cause == "interrupted" and interruptions > 1:
        backoff = min(
            _INITIAL_BACKOFF * 2 ** min(interruptions - 2, MAX_FAILURES_WITHOUT_ROWS),
            _MAX_BACKOFF_AFTER_INTERRUPTION,
        )
    since = (attempt.failing_since or now) if failures else None
    return attempt.model_copy(
        update={
            "finished_at": now,
            "retry_at": now + backoff,
            "consecutive_interruptions": interruptions,
            "consecutive_failures": failures,
            "failing_since": since,
            "termination_message": message[-_MAX_MESSAGE_LENGTH:],
        }
    )


def retained_rows_message(situation: Situation) -> str:
    """Return where finished rows are stored."""
    spec = situation.batch.spec
    claim = f"PersistentVolumeClaim/{spec.claim_name}" if spec is not None else "the volume"
    return f"finished rows are retained in {work_path(situation.batch.uid)} on {claim}"


def _unrecorded_attempt(situation: Situation, now: datetime) -> AttemptStatus | None:
    """Return an attempt that has objects although the status names none; None without one."""
    number = highest_attempt_number(situation)
    if number == 0:
        return None
    # Its number must not be used again.
    name = job_name(situation.batch.ref.name, number)
    attempt = AttemptStatus(
        number=number, tier="Spot", pool="", variant="", job=name, started_at=now
    )
    return end_attempt(attempt, None, now, "the status did not record it")


def _ended_state(
    situation: Situation,
    attempt: AttemptStatus,
    progress: ProgressStatus,
    end: _AttemptEnd,
    now: datetime,
) -> AttemptState:
    cause: Literal["interrupted", "failed"] = (
        "interrupted" if end.kind == "interrupted" else "failed"
    )
    ended_attempt = end_attempt(attempt, progress, now, end.message, cause=cause)
    if end.kind == INPUT_CHANGED:
        ended_attempt = ended_attempt.model_copy(update={"input_changed": True})
    elif end.kind == BUDGET_EXCEEDED:
        # Money that others spend is no failure of the batch, however long it lasts.
        waiting = {"budget_exceeded": True, "retry_at": now + MAX_BACKOFF}
        waiting |= {"consecutive_failures": 0, "failing_since": None, "budget": situation.budget}
        ended_attempt = ended_attempt.model_copy(update=waiting)
    elif end.kind == ROWS_MISSING:
        # Without a GPU it found the input as it was checked, or rows that the volume lost.
        update = {"consecutive_failures": 0, "failing_since": None}
        update |= {"input_changed": False, "budget_exceeded": False}
        ended_attempt = ended_attempt.model_copy(update={**update, "retry_at": now})
    state = AttemptState(attempt=ended_attempt, progress=progress)
    progress_text = f"{progress.done} of {counted(progress.rows, 'row')} done"
    if end.kind != WORK_MISSING:
        progress_text += f", {retained_rows_message(situation)}"
    if end.kind in ("refused", ROWS_REFUSED, WORK_MISSING):
        is_rows = end.kind == ROWS_REFUSED
        reason = BatchComplete.ROWS_REFUSED if is_rows else BatchComplete.USER_ACTION_REQUIRED
        message = f"spec.input, spec.output: attempt {attempt.number} failed: {end.message}"
    # What costs no GPU is tried until the deadline; and a missing Job used none.
    elif (
        progress.done < progress.rows
        and end.kind != "job_missing"
        and not ended_attempt.waits
        and ended_attempt.consecutive_failures >= MAX_FAILURES_WITHOUT_ROWS
        and now - (ended_attempt.failing_since or now) >= MIN_FAILURE_DURATION
    ):
        reason = BatchComplete.BACKOFF_LIMIT_EXCEEDED
        attempts = counted(ended_attempt.consecutive_failures, "attempt")
        message = f"status.attempt: {attempts} in a row failed without a new row, the last with "
        message += end.message
    else:
        return state
    return replace(state, completion=StatusVerdict(reason, f"{message}; {progress_text}"))


def _attempt_end(
    situation: Situation, pod: BatchPod | None, job: BatchJob | None
) -> _AttemptEnd | None:
    """Return how the attempt ended; None while it runs."""
    if pod is None:
        if job is None:
            refused = situation.job_refusal
            message = (
                "its Job no longer exists"
                if refused is None
                else f"the API server refused its Job: {refused}"
            )
            return _AttemptEnd("job_missing", message)
        return _AttemptEnd("interrupted", "its pod no longer exists") if job.failed else None
    disruption = disruption_message(pod, situation.nodes)
    if pod.finished:
        return _exit_end(pod, disruption)
    if disruption is not None:
        return _AttemptEnd("interrupted", disruption)
    if pod.waiting_reason in _FATAL_WAITING_REASONS:
        return _AttemptEnd(
            "failed", f"{pod.waiting_reason}: {pod.container_message[-_MAX_MESSAGE_LENGTH:]}"
        )
    return _AttemptEnd("job_missing", "its Job no longer exists") if job is None else None


def _start_timeout_end(pod: BatchPod | None, now: datetime) -> _AttemptEnd | None:
    if pod is None or pod.bound is None or pod.runner_since is not None:
        return None
    if now - pod.bound < _START_TIMEOUT:
        return None
    limit = int(_START_TIMEOUT.total_seconds() / 60)
    message = f"engine not started after {limit} min, see kubectl describe pod {pod.ref.name}"
    return _AttemptEnd(
        "failed", f"{message}: {pod.waiting_reason or 'ContainerCreating'}: {pod.container_message}"
    )


def _stall_end(situation: Situation, now: datetime) -> _AttemptEnd | None:
    since = stalled_since(situation, now)
    if since is None or now - since < STALL_TIMEOUT:
        return None
    minutes = int(STALL_TIMEOUT.total_seconds() / 60)
    return _AttemptEnd(
        "failed", f"no row and no byte moved for {minutes} min (since {since:%H:%M:%SZ})"
    )


def _exit_end(pod: BatchPod, disruption: str | None) -> _AttemptEnd:
    report = run_report(pod.report)
    code = "no exit code" if pod.exit_code is None else f"exit code {pod.exit_code}"
    text = report.message if report is not None else pod.report.strip() or pod.container_message
    if pod.exit_code is None and pod.last_exit is not None:
        # A download or the engine ended for good before the runner began.
        code = f"exit code {pod.last_exit.code} of a container beside the runner"
        text = report_message(pod.last_exit.log_tail)
    message = f"{code}: {text[-_MAX_MESSAGE_LENGTH:]}".strip(": ")
    state = "" if report is None else report.state
    if pod.exit_code == REFUSED_EXIT_CODE:
        if state in (ROWS_REFUSED, INPUT_CHANGED, WORK_MISSING):
            return _AttemptEnd(state, message)
        return _AttemptEnd("refused", message)
    if disruption is not None:
        return _AttemptEnd("interrupted", disruption)
    if state == "stopped":
        return _AttemptEnd("interrupted", message)
    if state in (ROWS_MISSING, BUDGET_EXCEEDED):
        return _AttemptEnd(state, message)
    return _AttemptEnd("failed", message)


def _run_reports(situation: Situation) -> Iterator[tuple[BatchPod, RunReport]]:
    """Yield the reports of attempts; a report of another attempt than its pod is ignored."""
    for pod in sorted(situation.pods, key=lambda pod: (pod.attempt or 0, pod.ref)):
        if pod.attempt is not None and pod.exit_code is not None:
            report = run_report(pod.report)
            if report is not None and report.attempt == pod.attempt:
                yield pod, report


def _current_sample(situation: Situation) -> ProgressSample | None:
    """Return the last progress of the attempt in the status; None if it is of another one."""
    sample, attempt = situation.progress_sample, situation.batch.status.attempt
    if sample is None or attempt is None or sample.progress.attempt != attempt.number:
        return None
    return sample


def _mark_running(
    attempt: AttemptStatus, progress: ProgressStatus, sample: ProgressSample | None
) -> tuple[AttemptStatus, ProgressStatus]:
    """Record when the attempt was first seen to process rows, and how long its start took."""
    if sample is None or sample.progress.state != "running" or attempt.running_since is not None:
        return attempt, progress
    since = max(sample.at.replace(microsecond=0), attempt.started_at)
    update = {"running_since": since, "rows_at_start": sample.progress.done}
    running_attempt = attempt.model_copy(update=update)
    startup_seconds = int((since - attempt.started_at).total_seconds())
    return running_attempt, progress.model_copy(update={"startup_seconds": startup_seconds})


def _latest_progress(situation: Situation, now: datetime) -> ProgressStatus | None:
    """Return the furthest progress of all reports; it decreases only when a volume lost rows."""
    known = situation.batch.status.progress
    if known is None:
        return None
    for _, report in _run_reports(situation):
        counts = report.model_dump(
            exclude={"phase", "attempt", "state", "rows", "input_changed", "message"}
        )
        if report.state in (ROWS_MISSING, WORK_MISSING):
            known = known.model_copy(update={**counts, "at": now})
        known = _furthest(known, counts, now)
    sample = _current_sample(situation)
    if sample is not None:
        progress = sample.progress
        counts = progress.model_dump(exclude={"attempt", "state", "rows", "done", "input_changed"})
        done = progress.done
        counts["completed"] = max(0, done - progress.failed)
        due = (
            sample.at - known.at >= PROGRESS_WRITE_INTERVAL or known.done == 0 or done >= known.rows
        )
        known = _furthest(known, counts, sample.at) if due else known
    return known


def _furthest(known: ProgressStatus, counts: dict[str, int], at: datetime) -> ProgressStatus:
    updated = known.model_copy(update={**counts, "at": at.replace(microsecond=0)})
    return updated if _progress_key(updated) > _progress_key(known) else known


def _progress_key(progress: ProgressStatus) -> tuple[int, int, int]:
    return (progress.done, progress.output_tokens, progress.resent_rows)


def _completion_message(situation: Situation, progress: ProgressStatus) -> str:
    spec = situation.batch.spec
    if spec is None:
        return f"{progress.completed} of {counted(progress.rows, 'row')} answered"
    message = (
        f"spec.output: {progress.completed} of {counted(progress.rows, 'row')} answered in "
        f"{spec.output} on PersistentVolumeClaim/{spec.claim_name}"
    )
    if progress.failed:
        message += f"; {progress.failed} failed, see {errors_path(spec)}"
    return message
