"""Model jobs: which Job to create, its outcome, and which Jobs to delete."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto

from tessera.api.inference_service import InferenceServiceSpec, Model
from tessera.api.model_files import ModelShape
from tessera.api.ref import Ref
from tessera.domain.health.startup_failure import (
    hub_access_advice,
    missing_secret_advice,
    refusal_text,
)
from tessera.domain.model.fetched import FetchedFiles
from tessera.domain.model.names import Task, model_job_name
from tessera.domain.observed.batches import POD_CREATION_TIME
from tessera.domain.observed.model_jobs import ObservedModelJob
from tessera.domain.observed.model_reports import ShapeReport, parse_report, report_message
from tessera.domain.observed.runner_reports import REFUSED_EXIT_CODE
from tessera.domain.observed.snapshot import ObservedService, Pod

# What failed for a reason that may pass is tried again after this time.
_RETRY_DELAY = timedelta(seconds=30)
_MAX_MESSAGE_LENGTH = 600


class ModelJobOutcome(Enum):
    """Outcome of a model job."""

    DONE = auto()
    MODEL_REJECTED = auto()
    OPEN = auto()


# Of other exit codes a job is tried again.
_OUTCOMES: Mapping[int | None, ModelJobOutcome] = {
    0: ModelJobOutcome.DONE,
    REFUSED_EXIT_CODE: ModelJobOutcome.MODEL_REJECTED,
}


@dataclass(frozen=True, slots=True)
class ModelJobs:
    """Jobs that may be of a model, with their pods, at one moment."""

    at: datetime
    jobs: Sequence[ObservedModelJob]
    pods: Sequence[Pod]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelJob:
    """A Job to make for the model of a service or of a batch."""

    task: Task
    name: str
    spec: InferenceServiceSpec
    """As it is carried out: of the commit, if one is pinned."""
    files: FetchedFiles | None = None
    """What is downloaded; None for the read of a shape."""


@dataclass(frozen=True, slots=True)
class ReadShape:
    """What a Job read in a model's `config.json`."""

    shape: ModelShape
    commit: str
    """That of the file; empty where the source has none."""

    def source(self, uri: str) -> str:
        """Return where it was read."""
        return config_source(uri, self.commit)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelJobStatus:
    """State of a model job."""

    name: str
    """Of its Job."""
    namespace: str
    outcome: ModelJobOutcome = ModelJobOutcome.OPEN
    report: str = ""
    message: str = ""
    """What holds it up, in words."""
    refusal: str | None = None
    """Why the API server refuses its pod."""
    job_to_create: ModelJob | None = None
    obsolete_jobs: tuple[Ref, ...] = ()
    """Jobs that came to nothing, or served another spec."""
    jobs: tuple[Ref, ...] = ()
    """All Jobs of the task."""
    address: str | None = None
    """Of its pod, while it runs."""

    @property
    def read_shape(self) -> ReadShape | None:
        """Return the shape that it read; None if it did not, or not yet."""
        report = parse_report(ShapeReport, self.report)
        if self.outcome is not ModelJobOutcome.DONE or report is None or report.shape is None:
            return None
        return ReadShape(report.shape, report.commit)

    @property
    def report_text(self) -> str:
        """Return the message of a read, or what stands in place of its report."""
        report = parse_report(ShapeReport, self.report)
        return self.report if report is None else report.message

    @property
    def details_command(self) -> str:
        """Return how to see more of the Job: without a pod it has no log."""
        if self.refusal is not None:
            return f"kubectl describe job -n {self.namespace} {self.name}"
        return f"kubectl logs -n {self.namespace} job/{self.name}"

    @property
    def retry_command(self) -> str:
        """Return how to have a refused Job tried again, which its changed spec would do alone."""
        return f"kubectl delete job -n {self.namespace} {self.name}"

    def reading_message(self, uri: str) -> str:
        """Return what holds up a read of `config.json`, or that it goes on."""
        return self.message or f"Job {self.name} reads the config.json of {uri}"


def podless_jobs(observed: ModelJobs) -> Sequence[ObservedModelJob]:
    """Return the Jobs whose pods should exist by now."""
    if not observed.jobs:
        return ()
    owners = {pod.model_job_run.job_uid for pod in observed.pods if pod.model_job_run is not None}
    return [
        job
        for job in observed.jobs
        if job.uid not in owners
        and not job.failed
        and job.created is not None
        and observed.at - job.created >= POD_CREATION_TIME
    ]


def config_source(uri: str, commit: str | None) -> str:
    """Return where the shape of a model was read."""
    return f"config.json of {uri}" + (f" at {commit}" if commit else "")


def refusal_message(model: Model, report_text: str) -> str:
    """Return why a Job cannot read a model: a known remedy, else the end of its report."""
    return hub_access_advice(model, report_text) or report_text[-_MAX_MESSAGE_LENGTH:]


def assess_model_job(
    observed: ModelJobs,
    service: ObservedService,
    spec: InferenceServiceSpec,
    task: Task,
    siblings: Collection[str] = (),
) -> ModelJobStatus:
    """Assess the Job that reads a model of a service; `siblings` are Jobs for other files."""
    name = model_job_name(service.ref.name, service.uid, task, spec.model)
    model_jobs = [
        job
        for job in observed.jobs
        if job.service == service.ref and job.task == task and job.ref.name not in siblings
    ]
    model_job = ModelJob(task=task, name=name, spec=spec)
    status = _assess(observed, service.ref.namespace, model_job, model_jobs)
    others = tuple(ref for ref in status.jobs if ref.name != name)
    return replace(status, obsolete_jobs=(*others, *status.obsolete_jobs))


def assess_job_of_files(observed: ModelJobs, namespace: str, model_job: ModelJob) -> ModelJobStatus:
    """Assess a Job for certain files, of any owner; all other Jobs stay alone."""
    ref = Ref(namespace, model_job.name)
    model_jobs = [job for job in observed.jobs if job.ref == ref]
    return _assess(observed, namespace, model_job, model_jobs)


def _assess(
    observed: ModelJobs,
    namespace: str,
    model_job: ModelJob,
    model_jobs: Sequence[ObservedModelJob],
) -> ModelJobStatus:
    jobs = tuple(sorted(job.ref for job in model_jobs))
    name, spec = model_job.name, model_job.spec
    job = next((candidate for candidate in model_jobs if candidate.ref.name == name), None)
    status = ModelJobStatus(name=name, namespace=namespace, jobs=jobs)
    if job is None:
        return replace(status, job_to_create=model_job)
    pods = [
        pod
        for pod in observed.pods
        if pod.model_job_run is not None and pod.model_job_run.job_uid == job.uid
    ]
    pod = max(pods, key=lambda candidate: (candidate.created, candidate.ref), default=None)
    if pod is None or pod.model_job_run is None:
        return _without_pod(status, job)
    code, text = pod.model_job_run.exit_code, pod.model_job_run.report
    if code is None and pod.ended is None:
        return replace(status, message=_pod_problem(spec, pod), address=pod.address)
    if (outcome := _OUTCOMES.get(code)) is not None:
        return replace(status, report=text, outcome=outcome)
    retry_due = observed.at - (pod.ended or pod.created) >= _RETRY_DELAY
    words = report_message(text) or pod.container_message
    message = (
        f"exit code {code}: {words[-_MAX_MESSAGE_LENGTH:]}; retrying after {_RETRY_DELAY.seconds} s"
    )
    return replace(status, obsolete_jobs=(job.ref,) if retry_due else (), message=message)


def _without_pod(status: ModelJobStatus, job: ObservedModelJob) -> ModelJobStatus:
    if job.failed:
        return replace(status, obsolete_jobs=(job.ref,))
    if job.refusal is None:
        return status
    refusal = job.refusal[:_MAX_MESSAGE_LENGTH]
    message = f"Job/{status.name} has no pod: {refusal_text(refusal)}"
    return replace(status, message=message, refusal=refusal)


def _pod_problem(spec: InferenceServiceSpec, pod: Pod) -> str:
    waiting_reason = pod.waiting_reason
    if waiting_reason is not None:
        advice = missing_secret_advice(spec, pod)
        words = f"{pod.ref.name}: {waiting_reason}: {pod.container_message[-_MAX_MESSAGE_LENGTH:]}"
        return f"{advice}; {words}" if advice else words
    if pod.unschedulable is not None:
        return f"{pod.ref.name} waits for a node: {pod.unschedulable}"
    return ""
