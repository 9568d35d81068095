"""Shapes of models and of draft models: as in the spec, as read before, or read by a Job."""

from dataclasses import replace

from tessera.api.engine_options import DraftModel
from tessera.api.inference_service import InferenceServiceSpec, Model
from tessera.api.model_files import ModelShape
from tessera.api.reasons import Accepted, StatusVerdict
from tessera.api.service_status import DraftModelStatus, ModelStatus
from tessera.domain.incremental import reused
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.perf.engine_terms import draft_shape
from tessera.domain.placement.checks import shape_of, unknown_draft_denial, unknown_model_denial
from tessera.domain.service.pinned_revision import PinnedRevision, pinned_spec
from tessera.domain.service.preparation.jobs import (
    ModelJobOutcome,
    ModelJobs,
    ModelJobStatus,
    assess_model_job,
    refusal_message,
)
from tessera.domain.service.preparation.precisions import (
    has_own_files,
    shape_job_names,
    with_known_precisions,
)
from tessera.domain.service.preparation.preparation import Preparation
from tessera.domain.service.speculation import without_losing_speculation
from tessera.domain.steps import Step

_WRITE_SHAPE = "write the shape there"


def _with_known_shape(service: ObservedService) -> ObservedService:
    """Return the service as it is planned: as if its spec had what was read and decided before.

    That are the shapes of its model and of its draft model, and whether speculation is off.
    """
    spec = service.spec
    if spec is None:
        return service
    known = _known_status(service)
    if known.shape is not None and shape_of(spec) is None:
        spec = with_shape(spec, known.shape)
    if known.draft is not None and _lacks_draft_shape(spec):
        spec = _with_draft_shape(spec, known.draft)
    spec = without_losing_speculation(spec, service.status.speculation)
    return service if spec is service.spec else replace(service, spec=spec)


with_known_shape = Step(_with_known_shape, lambda _, service: service)


def _with_known_files(service: ObservedService) -> ObservedService:
    """Return the service with what was read before, of its model and of listed precisions."""
    service = _with_known_shape(service)
    if service.spec is None or not has_own_files(service.spec):
        return service
    return replace(service, spec=with_known_precisions(service.spec, service.status))


with_known_files = Step(_with_known_files, lambda _, service: service)


@reused
def with_known_shapes(services: tuple[ObservedService, ...]) -> tuple[ObservedService, ...]:
    """Return the services with the shapes that were read before."""
    return tuple([with_known_shape(service) for service in services])


def prepare_model(
    model_jobs: ModelJobs, service: ObservedService, spec: InferenceServiceSpec
) -> Preparation:
    """Look for the shape in the service's status and in the report of its Job."""
    known = _known_status(service)
    pinned_revision = PinnedRevision(known)
    pinned, siblings = pinned_spec(spec, pinned_revision), shape_job_names(service, spec)
    job_status = assess_model_job(model_jobs, service, pinned, "shape", siblings)
    if shape_of(spec) is not None:
        preparation = Preparation(spec=spec, status=known, obsolete_jobs=job_status.jobs)
        return _with_draft(model_jobs, service, preparation)
    if (read := job_status.read_shape) is not None:
        update = {"shape": read.shape, "source": read.source(spec.model.uri)}
        preparation = Preparation(
            spec=with_shape(spec, read.shape),
            status=known.model_copy(update=update),
            obsolete_jobs=job_status.obsolete_jobs,
        )
        return _with_draft(model_jobs, service, preparation)
    return Preparation(
        spec=spec,
        status=known,
        missing_shape=missing_shape_verdict(spec, job_status),
        job_to_create=job_status.job_to_create,
        obsolete_jobs=job_status.obsolete_jobs,
    )


def _with_draft(
    model_jobs: ModelJobs, service: ObservedService, preparation: Preparation
) -> Preparation:
    """Look for the shape of the draft model as for that of the model, once that one is known."""
    spec, draft = preparation.spec, preparation.spec.engine.draft
    if draft is None or not _lacks_draft_shape(spec):
        jobs = [job for job in model_jobs.jobs if job.service == service.ref]
        obsolete_jobs = tuple(sorted(job.ref for job in jobs if job.task == "draft"))
        return replace(preparation, obsolete_jobs=(*preparation.obsolete_jobs, *obsolete_jobs))
    draft_spec = spec.model_copy(update={"model": draft_as_model(spec, draft)})
    job_status = assess_model_job(model_jobs, service, draft_spec, "draft")
    obsolete_jobs = (*preparation.obsolete_jobs, *job_status.obsolete_jobs)
    if (read := job_status.read_shape) is not None:
        status = DraftModelStatus(
            uri=draft.uri,
            requested_revision=draft.revision,
            shape=read.shape,
            source=read.source(draft.uri),
        )
        return replace(
            preparation,
            spec=_with_draft_shape(spec, status),
            status=preparation.status.model_copy(update={"draft": status}),
            obsolete_jobs=obsolete_jobs,
        )
    return replace(
        preparation,
        missing_shape=_missing_draft_verdict(draft_spec, job_status),
        job_to_create=job_status.job_to_create,
        obsolete_jobs=obsolete_jobs,
    )


def draft_as_model(spec: InferenceServiceSpec, draft: DraftModel) -> Model:
    """Return the draft model of a service as its files are read."""
    model = spec.model
    access = {"token_secret_ref": model.token_secret_ref, "store": model.store}
    return Model(uri=draft.uri, revision=draft.revision, **access)


def _lacks_draft_shape(spec: InferenceServiceSpec) -> bool:
    return spec.engine.draft is not None and draft_shape(spec.engine) is None


def _with_draft_shape(spec: InferenceServiceSpec, known: DraftModelStatus) -> InferenceServiceSpec:
    """Add the draft's shape as an unset field, if it is that of the draft that the spec names."""
    speculation, draft = spec.engine.speculation, spec.engine.draft
    if speculation is None or draft is None:
        return spec
    if (draft.uri, draft.revision) != (known.uri, known.requested_revision):
        return spec
    fields = draft.model_fields_set
    shaped = DraftModel.model_construct(fields, **dict(draft, shape=known.shape))
    speculation = speculation.model_copy(update={"model": shaped})
    engine = spec.engine.model_copy(update={"speculation": speculation})
    return spec.model_copy(update={"engine": engine})


def _missing_draft_verdict(
    draft_spec: InferenceServiceSpec, job_status: ModelJobStatus
) -> StatusVerdict[Accepted]:
    uri = draft_spec.model.uri
    if job_status.outcome is ModelJobOutcome.MODEL_REJECTED:
        words = refusal_message(draft_spec.model, job_status.report_text)
        denial = unknown_draft_denial(uri, f"{words} ({job_status.details_command})")
        return StatusVerdict(denial.reason, denial.sentence)
    return _reading_verdict("spec.engine.speculation.model.shape", uri, job_status)


def _known_status(service: ObservedService) -> ModelStatus:
    """Return the recorded model status, or a blank one if it is that of another model."""
    spec, recorded = service.spec, service.status.model
    if spec is None:
        return ModelStatus(uri="")
    uri, revision = spec.model.uri, spec.model.revision
    if recorded is not None and (recorded.uri, recorded.requested_revision) == (uri, revision):
        return recorded
    return ModelStatus(uri=uri, requested_revision=revision)


def with_shape(spec: InferenceServiceSpec, shape: ModelShape) -> InferenceServiceSpec:
    """Add the shape as an unset field, so that no replica is new once Tessera ships the shape."""
    model = Model.model_construct(spec.model.model_fields_set, **dict(spec.model, shape=shape))
    return spec.model_copy(update={"model": model})


def missing_shape_verdict(
    spec: InferenceServiceSpec,
    job_status: ModelJobStatus,
    alternative: str = _WRITE_SHAPE,
) -> StatusVerdict[Accepted]:
    """Return why a model has no shape, or not yet, and what else to do."""
    details_command = job_status.details_command
    if job_status.outcome is ModelJobOutcome.MODEL_REJECTED:
        cause = f"{refusal_message(spec.model, job_status.report_text)} ({details_command})"
        denial = unknown_model_denial(spec, cause)
        if denial is not None:
            return StatusVerdict(denial.reason, denial.sentence)
    return _reading_verdict("spec.model.shape", spec.model.uri, job_status, alternative)


def _reading_verdict(
    field: str, uri: str, job_status: ModelJobStatus, alternative: str = _WRITE_SHAPE
) -> StatusVerdict[Accepted]:
    reason, advice = Accepted.READING_MODEL, "Wait"
    if job_status.refusal is not None:
        reason, advice = Accepted.FAILED_CREATE, "Let the namespace have such a pod"
    message = job_status.reading_message(uri)
    return StatusVerdict(
        reason, f"{field}: {message}. {advice}, or {alternative}; {job_status.details_command}"
    )
