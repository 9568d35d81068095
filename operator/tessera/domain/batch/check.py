"""The input check of a batch, which needs no GPU and precedes every attempt."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from tessera.api.batch_inference import BatchInferenceSpec, CheckStatus
from tessera.api.batch_reasons import BatchComplete, BatchRunning
from tessera.api.reasons import StatusVerdict
from tessera.api.text import counted
from tessera.domain.batch.attempt_state import STALL_TIMEOUT, pod_refusal_message, unmoved_since
from tessera.domain.batch.names import job_name
from tessera.domain.batch.situation import Situation
from tessera.domain.hardware.spot_nodes import disruption_message
from tessera.domain.observed.batches import BatchJob
from tessera.domain.observed.runner_reports import (
    CHECK_NUMBER,
    REFUSED_EXIT_CODE,
    check_report,
)
from tessera.domain.observed.snapshot import BatchPod

# Delay before a check with a transient failure is retried.
_RETRY_DELAY = timedelta(seconds=30)
_MAX_SHOWN_FAULTS = 10
_MAX_MESSAGE_LENGTH = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class InputCheck:
    """State of the check: passed, refused or pending, and the Jobs to create or delete."""

    running: StatusVerdict[BatchRunning]
    passed: CheckStatus | None = None
    refused: StatusVerdict[BatchComplete] | None = None
    create: bool = False
    """There is no Job yet."""
    recreate: bool = False
    """The Job failed and is deleted, so that the next one can be created."""


def evaluate_check(situation: Situation, spec: BatchInferenceSpec, now: datetime) -> InputCheck:
    """Assess the check by its pod and its Job."""
    pods = [pod for pod in situation.pods if pod.attempt is None]
    for report in (check_report(pod.report) for pod in pods if pod.exit_code == 0):
        if report is not None and report.ok:
            message = f"spec.input: {counted(report.rows, 'row')} checked"
            passed = CheckStatus(
                rows=report.rows,
                url=report.url,
                input_tokens=report.input_tokens,
                answers=report.answers,
                files=report.files[:2],
            )
            return InputCheck(
                running=StatusVerdict(BatchRunning.VALIDATION_JOB_RUNNING, message), passed=passed
            )
    job, pod = situation.job_of(None), check_pod(situation)
    if pod is not None and pod.exit_code == REFUSED_EXIT_CODE:
        running = StatusVerdict(BatchRunning.FINISHED, "spec.input is invalid, so 0 attempts run")
        return InputCheck(running=running, refused=_refusal_verdict(situation, spec, pod))
    stalled = None if pod is None or pod.finished else _stalled_since(situation, pod, now)
    running = _running_verdict(situation, spec, pod, stalled)
    recreate = _must_recreate(situation, job, pod, now)
    if stalled is not None and now - stalled >= STALL_TIMEOUT:
        recreate = True
    return InputCheck(running=running, create=job is None, recreate=recreate)


def check_pod(situation: Situation) -> BatchPod | None:
    """Return the last pod of the check's Job."""
    job = situation.job_of(None)
    return None if job is None else situation.last_pod(None, job)


def _stalled_since(situation: Situation, pod: BatchPod, now: datetime) -> datetime | None:
    """Return when the check last moved, if it does not; an answer of an earlier pod counts not."""
    sample = situation.progress_sample
    if sample is None or sample.progress.attempt != CHECK_NUMBER or sample.at < pod.created:
        return None
    return unmoved_since(sample, now)


def _refusal_verdict(
    situation: Situation, spec: BatchInferenceSpec, pod: BatchPod
) -> StatusVerdict[BatchComplete]:
    report = check_report(pod.report)
    log_hint = f"see kubectl logs -n {situation.batch.ref.namespace} {pod.ref.name} for all faults"
    if report is None:
        text = pod.report.strip() or pod.container_message
        return StatusVerdict(
            BatchComplete.INVALID_INPUT, f"spec.input: {text[-_MAX_MESSAGE_LENGTH:]}; {log_hint}"
        )
    faults = "; ".join(
        f"{f'lines {fault.lines}' if fault.lines else f'line {fault.line}'}: {fault.message}"
        for fault in report.errors[:_MAX_SHOWN_FAULTS]
    )
    message = f"spec.input, {spec.input}: {report.message}"
    if report.error_count:
        rows = counted(report.rows, "row")
        # An empty file is a fault without a row.
        count = f"{report.error_count} of {rows} invalid: " if report.rows else ""
        message = f"spec.input, {spec.input}: {count}{faults or report.message}"
    return StatusVerdict(BatchComplete.INVALID_INPUT, f"{message}; {log_hint} (0 tokens spent)")


def _must_recreate(
    situation: Situation, job: BatchJob | None, pod: BatchPod | None, now: datetime
) -> bool:
    if job is None or pod is None:
        return job is not None and job.failed
    if pod.finished:
        return now - (pod.ended or pod.created) >= _RETRY_DELAY
    return disruption_message(pod, situation.nodes) is not None


def _running_verdict(
    situation: Situation, spec: BatchInferenceSpec, pod: BatchPod | None, stalled: datetime | None
) -> StatusVerdict[BatchRunning]:
    name = job_name(situation.batch.ref.name, None)
    subject = f"spec.input, {spec.input} on {spec.claim_name}"
    if (refusal := pod_refusal_message(situation, None)) is not None:
        return StatusVerdict(BatchRunning.FAILED_CREATE, f"{subject}: {refusal}")
    if pod is not None and pod.finished:
        report = check_report(pod.report)
        text = report.message if report is not None else pod.report.strip() or pod.container_message
        retry_hint = f"retry after {_RETRY_DELAY.seconds} s"
        return StatusVerdict(
            BatchRunning.VALIDATION_JOB_FAILED,
            f"{subject}: exit code {pod.exit_code}: {text[-_MAX_MESSAGE_LENGTH:]}; {retry_hint}",
        )
    if pod is not None and pod.waiting_reason is not None:
        message = (
            f"{subject}: the check Job cannot start: {pod.waiting_reason}: "
            f"{pod.container_message[-_MAX_MESSAGE_LENGTH:]}"
        )
        return StatusVerdict(
            BatchRunning.VALIDATION_JOB_FAILED,
            f"{message}; see kubectl describe pod {pod.ref.name}",
        )
    if stalled is not None:
        message = (
            f"{subject}: no row of Job/{name} moved since {stalled:%H:%M:%SZ}; it is replaced "
            f"after {STALL_TIMEOUT // timedelta(minutes=1)} min. See kubectl logs job/{name} and "
            "the volume"
        )
        return StatusVerdict(BatchRunning.STALLED, message)
    if pod is not None and pod.unschedulable is not None:
        message = f"{subject}: Job/{name} waits for a node: {pod.unschedulable}"
        return StatusVerdict(BatchRunning.VALIDATION_JOB_RUNNING, message)
    action = f"checks every row without a GPU; see kubectl logs job/{name}"
    if pod is not None and pod.runner_since is None:
        action = f"starts; see kubectl describe pod {pod.ref.name}"
    message = f"{subject}: Job/{name} {action}"
    return StatusVerdict(BatchRunning.VALIDATION_JOB_RUNNING, message)
