"""What became of the last attempt, by its pod, its Job and its node."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from tessera.api.batch_inference import AttemptStatus, ProgressStatus
from tessera.domain.batch.facts import Asked, BatchJob, BatchPod
from tessera.domain.batch.names import errors_path, job_name, work_path
from tessera.domain.batch.reasons import BatchComplete
from tessera.domain.batch.reports import RunReport, run_report
from tessera.domain.batch.situation import Situation
from tessera.domain.reasons import StatusVerdict
from tessera.domain.spot import notice

MOST_BARREN = 6
"""So many attempts in a row fail without a new row before a batch is given up,"""
BARREN_FOR = timedelta(hours=2)
"""and for so long: a registry that is away for an hour must not end what has a day."""
FRESH = timedelta(seconds=30)
"""Progress is written down this often; each writing costs a request."""
_PAUSE = timedelta(seconds=5)
_LONGEST_PAUSE = timedelta(minutes=5)
_LONGEST_PAUSE_LOST = timedelta(minutes=1)
_REFUSED = 3
"""Exit code of a runner that found something only the user can change."""
_HOPELESS = frozenset(
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
"""Why containers wait, in the kubelet's words, when waiting longer rarely helps."""
_LONGEST_START = timedelta(minutes=45)
"""An image of 20 GB and the largest weights take less; what is not there by then never comes."""
_WORDS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The last attempt as it stands."""

    attempt: AttemptStatus | None = None
    progress: ProgressStatus | None = None
    pod: BatchPod | None = None
    alive: bool = False
    publishing: bool = False
    """All rows are done, and the runner is at work on the results."""
    over: StatusVerdict[BatchComplete] | None = None
    """The batch is over."""

    @property
    def bound(self) -> bool:
        return self.pod is not None and self.pod.bound is not None

    @property
    def started(self) -> bool:
        """The engine is up, and the runner at work beside it."""
        asked = self.attempt is not None and self.attempt.running_since is not None
        return asked or (self.pod is not None and self.pod.runner_since is not None)


@dataclass(frozen=True, slots=True)
class _End:
    """How an attempt ended."""

    kind: Literal["lost", "failed", "vanished", "refused"]
    words: str


def standing(situation: Situation, now: datetime) -> Standing:
    """Judge the attempt that stands in the status, and take in what runners say."""
    attempt = situation.batch.status.attempt or _forgotten(situation, now)
    progress = _progress(situation, now)
    if attempt is None or progress is None:
        return Standing(attempt=attempt, progress=progress)
    if any(report.state == "completed" for _, report in _reports(situation)):
        return Standing(
            attempt=attempt if attempt.ended_at else ended(attempt, progress, now, "completed"),
            progress=progress,
            over=StatusVerdict(BatchComplete.COMPLETED, _completed(situation, progress)),
        )
    if attempt.ended_at is not None:
        return Standing(attempt=attempt, progress=progress)
    attempt, progress = _at_work(attempt, progress, _answer(situation))
    job = next((job for job in situation.jobs if job.attempt == attempt.number), None)
    pods = [
        pod
        for pod in situation.pods
        if pod.attempt == attempt.number and (job is None or pod.owner == job.uid)
    ]
    pod = max(pods, key=lambda one: (one.created, one.ref), default=None)
    end = _end(situation, pod, job) or _too_slow(pod, now)
    if end is not None:
        return _over(situation, attempt, progress, end, now)
    found = Standing(attempt=attempt, progress=progress, pod=pod, alive=True)
    answer = _answer(situation)
    assembling = answer is not None and answer.shown.state in ("assembling", "publishing")
    rest = found.started and progress.done >= progress.rows
    return replace(found, publishing=assembling or rest)


def highest(situation: Situation) -> int:
    """The highest number that any attempt ever had, as far as anything shows it."""
    attempt = situation.batch.status.attempt
    known = [job.attempt for job in situation.jobs] + [pod.attempt for pod in situation.pods]
    return max(0 if attempt is None else attempt.number, *(number or 0 for number in known), 0)


def ended(
    attempt: AttemptStatus,
    progress: ProgressStatus | None,
    now: datetime,
    words: str,
    *,
    why: Literal["lost", "failed", "let go"] = "let go",
) -> AttemptStatus:
    """The attempt, over now.

    After failures of its own the next one waits: 5 s, doubled with each in a row that brought no
    new row, at most 5 min. One that is lost is followed at once; from the second in a row that
    brought no new row on the next one waits 5 s, doubled with each, at most 1 min.
    """
    fresh = progress is not None and progress.done > attempt.done_before
    barren = 0 if fresh else attempt.barren + (why == "failed")
    lost = 0 if fresh or why == "failed" else attempt.lost + (why == "lost")
    pause = timedelta()
    if why == "failed":
        pause = min(_PAUSE * 2 ** min(barren, MOST_BARREN), _LONGEST_PAUSE)
    elif why == "lost" and lost > 1:
        pause = min(_PAUSE * 2 ** min(lost - 2, MOST_BARREN), _LONGEST_PAUSE_LOST)
    since = (attempt.barren_since or now) if barren else None
    update = {"ended_at": now, "retry_at": now + pause, "lost": lost}
    update |= {"barren": barren, "barren_since": since}
    return attempt.model_copy(update={**update, "last_words": words[-_WORDS:]})


def kept_at(situation: Situation) -> str:
    """Where finished rows are."""
    spec = situation.batch.spec
    claim = spec.claim if spec is not None else "the claim"
    return f"what was finished is kept in {work_path(situation.batch.uid)} on {claim}"


def _forgotten(situation: Situation, now: datetime) -> AttemptStatus | None:
    """An attempt that exists although the status names none: its number must not come again."""
    number = highest(situation)
    if number == 0:
        return None
    name = job_name(situation.batch.ref.name, number)
    found = AttemptStatus(number=number, tier="spot", pool="", variant="", job=name, started_at=now)
    return ended(found, None, now, "the status had lost it")


def _over(
    situation: Situation, attempt: AttemptStatus, progress: ProgressStatus, end: _End, now: datetime
) -> Standing:
    why: Literal["lost", "failed"] = "lost" if end.kind == "lost" else "failed"
    gone = ended(attempt, progress, now, end.words, why=why)
    if end.kind == "vanished":
        gone = gone.model_copy(update={"barren": min(gone.barren, MOST_BARREN - 1)})
    told = Standing(attempt=gone, progress=progress)
    done = f"{progress.done} of {progress.rows} rows are done, and {kept_at(situation)}"
    if end.kind == "refused":
        message = f"spec.input, spec.output: attempt {attempt.number} was refused: {end.words}"
        return replace(
            told, over=StatusVerdict(BatchComplete.USER_ACTION_REQUIRED, f"{message}; {done}")
        )
    if gone.barren >= MOST_BARREN and now - (gone.barren_since or now) >= BARREN_FOR:
        message = f"status.attempt: {gone.barren} attempts in a row failed without a new row"
        return replace(
            told,
            over=StatusVerdict(
                BatchComplete.BACKOFF_LIMIT_EXCEEDED,
                f"{message}, the last one: {end.words}; {done}",
            ),
        )
    return told


def _end(situation: Situation, pod: BatchPod | None, job: BatchJob | None) -> _End | None:
    """How the attempt ended; None while it lasts."""
    if pod is None:
        if job is None:
            refused = situation.refused
            gone = "its Job is gone" if refused is None else f"its Job was refused: {refused}"
            return _End("vanished", gone)
        return _End("lost", "its pod is gone") if job.failed else None
    danger = notice(pod, situation.nodes)
    if pod.over:
        return _ended_by_itself(pod, danger)
    if danger is not None:
        return _End("lost", danger)
    if pod.trouble in _HOPELESS:
        return _End("failed", f"{pod.trouble}: {pod.last_words[-_WORDS:]}")
    return _End("vanished", "its Job is gone") if job is None else None


def _too_slow(pod: BatchPod | None, now: datetime) -> _End | None:
    if pod is None or pod.bound is None or pod.runner_since is not None:
        return None
    if now - pod.bound < _LONGEST_START:
        return None
    limit = int(_LONGEST_START.total_seconds() / 60)
    words = f"its engine was not up within {limit} min; kubectl describe pod {pod.ref.name}"
    return _End("failed", f"{words}: {pod.trouble or 'ContainerCreating'}: {pod.last_words}")


def _ended_by_itself(pod: BatchPod, danger: str | None) -> _End:
    report = run_report(pod.report)
    code = "no exit code" if pod.exit_code is None else f"exit code {pod.exit_code}"
    text = report.message if report is not None else pod.report.strip() or pod.last_words
    words = f"{code}: {text[-_WORDS:]}".strip(": ")
    if pod.exit_code == _REFUSED:
        return _End("refused", words)
    if danger is not None:
        return _End("lost", danger)
    if report is not None and report.state == "stopped":
        return _End("lost", words)
    return _End("failed", words)


def _reports(situation: Situation) -> Iterator[tuple[BatchPod, RunReport]]:
    """What attempts left behind; a report that names another attempt than its pod is none."""
    for pod in sorted(situation.pods, key=lambda one: (one.attempt or 0, one.ref)):
        if pod.attempt is not None and pod.exit_code is not None:
            report = run_report(pod.report)
            if report is not None and report.attempt == pod.attempt:
                yield pod, report


def _answer(situation: Situation) -> Asked | None:
    """The last answer, if it is that of the attempt in the status."""
    asked, attempt = situation.asked, situation.batch.status.attempt
    if asked is None or attempt is None or asked.shown.attempt != attempt.number:
        return None
    return asked


def _at_work(
    attempt: AttemptStatus, progress: ProgressStatus, asked: Asked | None
) -> tuple[AttemptStatus, ProgressStatus]:
    """Note when the attempt was first seen at work on rows, and so how long its start took."""
    if asked is None or asked.shown.state != "running" or attempt.running_since is not None:
        return attempt, progress
    since = max(asked.at.replace(microsecond=0), attempt.started_at)
    begun = attempt.model_copy(update={"running_since": since, "running_from": asked.shown.done})
    took = int((since - attempt.started_at).total_seconds())
    return begun, progress.model_copy(update={"start_seconds": took})


def _progress(situation: Situation, now: datetime) -> ProgressStatus | None:
    """The furthest that is known; it never goes back."""
    known = situation.batch.status.progress
    if known is None:
        return None
    for _, report in _reports(situation):
        counts = report.model_dump(exclude={"phase", "attempt", "state", "rows", "message"})
        known = _further(known, counts, now)
    asked = _answer(situation)
    if asked is not None:
        shown = asked.shown
        counts = shown.model_dump(exclude={"attempt", "state", "rows", "done"})
        counts["completed"] = max(0, shown.done - shown.failed)
        due = asked.at - known.at >= FRESH or known.done == 0 or shown.done >= known.rows
        known = _further(known, counts, asked.at) if due else known
    return known


def _further(known: ProgressStatus, counts: dict[str, int], at: datetime) -> ProgressStatus:
    found = known.model_copy(update={**counts, "at": at.replace(microsecond=0)})
    return found if _reach(found) > _reach(known) else known


def _reach(progress: ProgressStatus) -> tuple[int, int, int]:
    return (progress.done, progress.output_tokens, progress.repaid_rows)


def _completed(situation: Situation, progress: ProgressStatus) -> str:
    spec = situation.batch.spec
    if spec is None:
        return f"{progress.completed} of {progress.rows} rows are answered"
    told = f"spec.output: {progress.completed} of {progress.rows} rows are answered in "
    told += f"{spec.output} on {spec.claim}"
    if progress.failed:
        told += f"; {progress.failed} failed, {errors_path(spec)} says why"
    return told
