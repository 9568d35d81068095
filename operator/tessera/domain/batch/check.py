"""The check of a batch's input, which needs no GPU and comes before anything is spent."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from tessera.api.batch_inference import BatchInferenceSpec, CheckStatus
from tessera.domain.batch.facts import BatchJob, BatchPod
from tessera.domain.batch.names import job_name
from tessera.domain.batch.reasons import BatchComplete, BatchRunning
from tessera.domain.batch.reports import CheckReport, check_report
from tessera.domain.batch.situation import Situation
from tessera.domain.reasons import StatusVerdict
from tessera.domain.spot import notice

_AGAIN = timedelta(seconds=30)
"""A check that failed for a reason that may pass is tried again after this time."""
_REFUSED = 3
_SHOWN_FAULTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How far the check is: passed, refused, or still to be waited for."""

    running: StatusVerdict[BatchRunning]
    passed: CheckStatus | None = None
    refused: StatusVerdict[BatchComplete] | None = None
    create: bool = False
    """There is no Job, and one is wanted."""
    again: bool = False
    """The Job came to nothing and has to go, so that a new one can be made."""


def checked(situation: Situation, spec: BatchInferenceSpec, now: datetime) -> Check:
    """Judge the check by its pod and its Job."""
    job = next((job for job in situation.jobs if job.attempt is None), None)
    pods = [pod for pod in situation.pods if pod.attempt is None]
    for report in (check_report(pod.report) for pod in pods if pod.exit_code == 0):
        if report is not None and report.ok:
            return _passed(report)
    own = [pod for pod in pods if job is not None and pod.owner == job.uid]
    pod = max(own, key=lambda one: (one.created, one.ref), default=None)
    if pod is not None and pod.exit_code == _REFUSED:
        running = StatusVerdict(BatchRunning.FINISHED, "spec.input: 0 attempts are made")
        return Check(running=running, refused=_refused(situation, spec, pod))
    name = job_name(situation.batch.ref.name, None)
    running = _told(spec, name, pod)
    return Check(running=running, create=job is None, again=_lost(situation, job, pod, now))


def _passed(report: CheckReport) -> Check:
    return Check(
        running=StatusVerdict(
            BatchRunning.VALIDATING, f"spec.input: {report.rows} rows are checked"
        ),
        passed=CheckStatus(rows=report.rows, url=report.url, input_tokens=report.input_tokens),
    )


def _refused(
    situation: Situation, spec: BatchInferenceSpec, pod: BatchPod
) -> StatusVerdict[BatchComplete]:
    """The faults by their lines, as many as a person reads."""
    report = check_report(pod.report)
    where = f"kubectl logs -n {situation.batch.ref.namespace} {pod.ref.name} has all of it"
    if report is None:
        text = pod.report.strip() or pod.last_words
        return StatusVerdict(BatchComplete.INVALID_INPUT, f"spec.input: {text[-600:]}; {where}")
    faults = "; ".join(
        f"line {fault.line}: {fault.message}" for fault in report.errors[:_SHOWN_FAULTS]
    )
    told = f"spec.input, {spec.input}: {report.message}"
    if report.error_count:
        told = f"spec.input, {spec.input}: {report.error_count} of {report.rows} rows have faults"
        told = f"{told}: {faults or report.message}"
    return StatusVerdict(BatchComplete.INVALID_INPUT, f"{told}; {where}, and 0 tokens were spent")


def _lost(situation: Situation, job: BatchJob | None, pod: BatchPod | None, now: datetime) -> bool:
    """Nothing more will come of this Job."""
    if job is None or pod is None:
        return job is not None and job.failed
    if pod.over:
        return now - (pod.ended or pod.created) >= _AGAIN
    return notice(pod, situation.nodes) is not None


def _told(spec: BatchInferenceSpec, name: str, pod: BatchPod | None) -> StatusVerdict[BatchRunning]:
    where = f"spec.input, {spec.input} on {spec.claim}"
    if pod is not None and pod.over:
        report = check_report(pod.report)
        text = report.message if report is not None else pod.report.strip() or pod.last_words
        again = f"it is tried again {_AGAIN.seconds} s later"
        return StatusVerdict(
            BatchRunning.VALIDATION_JOB_FAILED,
            f"{where}: exit code {pod.exit_code}: {text[-600:]}; {again}",
        )
    if pod is not None and pod.trouble is not None:
        told = f"{where}: the check cannot start: {pod.trouble}: {pod.last_words[-600:]}"
        return StatusVerdict(
            BatchRunning.VALIDATION_JOB_FAILED, f"{told}; kubectl describe pod {pod.ref.name}"
        )
    if pod is not None and pod.unschedulable is not None:
        told = f"{where}: Job {name} waits for a node: {pod.unschedulable}"
        return StatusVerdict(BatchRunning.VALIDATING, told)
    told = f"{where}: Job {name} checks every row, without a GPU; kubectl logs job/{name}"
    return StatusVerdict(BatchRunning.VALIDATING, told)
