"""What a model needs before its engines: its shape, and its files where they are asked for."""

from dataclasses import dataclass, replace

from tessera.api.engine_options import DraftModel
from tessera.api.inference_service import DraftModelStatus, InferenceServiceSpec, Model, ModelStatus
from tessera.api.model_files import CacheStatus, ModelShape, is_stored
from tessera.api.reasons import Accepted, Progressing, StatusVerdict
from tessera.api.ref import Ref
from tessera.domain.health.startup_failure import hub_access_advice
from tessera.domain.incremental import reused
from tessera.domain.observed.model_reports import FetchReport, parse_report
from tessera.domain.observed.snapshot import ObservedService, Snapshot
from tessera.domain.perf.engine_terms import draft_shape
from tessera.domain.placement.checks import shape_of, unknown_draft_denial, unknown_model_denial
from tessera.domain.service.pinned_revision import PinnedRevision, pinned_spec
from tessera.domain.service.preparation.claims import ModelClaim
from tessera.domain.service.preparation.jobs import (
    ModelJob,
    ModelJobOutcome,
    ModelJobStatus,
    assess_job_of_files,
    assess_model_job,
    refusal_message,
)
from tessera.domain.service.preparation.precisions import (
    PrecisionCheck,
    check_precisions,
    has_own_files,
    shape_job_names,
    with_known_precisions,
    with_usable,
)
from tessera.domain.service.speculation import without_losing_speculation
from tessera.domain.steps import Step

# A status is written for each of so many steps of a fetch, not for each answer.
_PROGRESS_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """How far a model is, and what is to be done for it."""

    spec: InferenceServiceSpec
    """With the shape that was found."""
    status: ModelStatus
    missing_shape: StatusVerdict[Accepted] | None = None
    """Why there is no shape, or not yet."""
    missing_files: StatusVerdict[Progressing] | None = None
    """Why the files are not there, or not yet."""
    precisions: tuple[PrecisionCheck, ...] | None = None
    """Of the listed precisions with files of their own; None before they are looked at."""
    job_to_create: ModelJob | None = None
    """The Job to make."""
    obsolete_jobs: tuple[Ref, ...] = ()
    """Jobs that may go."""
    progress_address: str | None = None
    """Address of the pod to ask how far the fetch is."""

    @property
    def pending(self) -> bool:
        """Something is under way, or left to do: Jobs, their pods and the time count."""
        waits = self.missing_shape is not None or self.missing_files is not None
        waits |= any(check.is_open or check.is_reread for check in self.precisions or ())
        return waits or self.job_to_create is not None or bool(self.obsolete_jobs)


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
    snapshot: Snapshot, service: ObservedService, spec: InferenceServiceSpec
) -> Preparation:
    """Look for the shape in the service's status and in the report of its Job."""
    known = _known_status(service)
    pinned_revision = PinnedRevision(known)
    pinned, siblings = pinned_spec(spec, pinned_revision), shape_job_names(service, spec)
    job_status = assess_model_job(snapshot, service, pinned, "shape", siblings)
    if shape_of(spec) is not None:
        preparation = Preparation(spec=spec, status=known, obsolete_jobs=job_status.jobs)
        return _with_draft(snapshot, service, preparation)
    if (read := job_status.read_shape) is not None:
        update = {"shape": read.shape, "source": read.source(spec.model.uri)}
        preparation = Preparation(
            spec=with_shape(spec, read.shape),
            status=known.model_copy(update=update),
            obsolete_jobs=job_status.obsolete_jobs,
        )
        return _with_draft(snapshot, service, preparation)
    return Preparation(
        spec=spec,
        status=known,
        missing_shape=missing_shape_verdict(spec, job_status),
        job_to_create=job_status.job_to_create,
        obsolete_jobs=job_status.obsolete_jobs,
    )


def with_precisions(
    snapshot: Snapshot, service: ObservedService, preparation: Preparation
) -> Preparation:
    """Leave the listed precisions whose files were read and match, and have the others read."""
    checks = check_precisions(snapshot, service, preparation.spec)
    jobs = (check.job_to_create for check in checks if check.job_to_create is not None)
    obsolete_jobs = [job for check in checks for job in check.obsolete_jobs]
    return replace(
        preparation,
        spec=with_usable(preparation.spec, checks),
        precisions=checks,
        job_to_create=preparation.job_to_create or next(jobs, None),
        obsolete_jobs=(*preparation.obsolete_jobs, *obsolete_jobs),
    )


def _with_draft(
    snapshot: Snapshot, service: ObservedService, preparation: Preparation
) -> Preparation:
    """Look for the shape of the draft model as for that of the model, once that one is known."""
    spec, draft = preparation.spec, preparation.spec.engine.draft
    if draft is None or not _lacks_draft_shape(spec):
        jobs = [job for job in snapshot.model_jobs if job.service == service.ref]
        obsolete_jobs = tuple(sorted(job.ref for job in jobs if job.task == "draft"))
        return replace(preparation, obsolete_jobs=(*preparation.obsolete_jobs, *obsolete_jobs))
    model = Model(
        uri=draft.uri,
        revision=draft.revision,
        token_secret_ref=spec.model.token_secret_ref,
        store=spec.model.store,
    )
    draft_spec = spec.model_copy(update={"model": model})
    job_status = assess_model_job(snapshot, service, draft_spec, "draft")
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
    uri, logs_command = draft_spec.model.uri, job_status.logs_command
    if job_status.outcome is ModelJobOutcome.MODEL_REJECTED:
        cause = f"{refusal_message(draft_spec.model, job_status.report_text)} ({logs_command})"
        denial = unknown_draft_denial(uri, cause)
        return StatusVerdict(denial.reason, denial.sentence)
    message = job_status.reading_message(uri)
    return StatusVerdict(
        Accepted.READING_MODEL,
        f"spec.engine.speculation.model.shape: {message}. Wait, or write the shape there; "
        f"{logs_command}",
    )


def with_files(
    snapshot: Snapshot,
    service: ObservedService,
    preparation: Preparation,
    claims: tuple[ModelClaim, ...],
    spec: InferenceServiceSpec,
) -> Preparation:
    """Are the files of the pinned spec on their claims? They are downloaded one after another."""
    caches, recorded = [], _recorded_caches(preparation.status)
    for claim in claims:
        cache = _cache_status(claim, recorded)
        name = claim.files.job_name
        model_job = ModelJob(task="fetch", name=name, spec=spec, files=claim.files)
        job_status = assess_job_of_files(snapshot, service.ref.namespace, model_job)
        owned_jobs = _owned_jobs(snapshot, service, job_status)
        if not cache.fetched and preparation.missing_files is None:
            cache = _with_progress(snapshot, service, claim, cache)
            cache, preparation = _assess_files(spec, preparation, claim, cache, job_status)
        elif cache.fetched:
            preparation = replace(
                preparation, obsolete_jobs=(*preparation.obsolete_jobs, *owned_jobs)
            )
        caches.append(cache)
    wanted = {claim.files.job_name for claim in claims}
    abandoned = tuple(
        job.ref
        for job in snapshot.model_jobs
        if job.service == service.ref and job.task == "fetch" and job.ref.name not in wanted
    )
    is_model = bool(claims) and claims[0].files.uri == spec.model.uri
    update = {
        "cache": caches[0] if is_model else None,
        "other_caches": tuple(caches[1:] if is_model else caches),
    }
    return replace(
        preparation,
        status=preparation.status.model_copy(update=update),
        obsolete_jobs=(*preparation.obsolete_jobs, *sorted(abandoned)),
    )


def _recorded_caches(status: ModelStatus) -> tuple[CacheStatus, ...]:
    return (*((status.cache,) if status.cache is not None else ()), *status.other_caches)


def _cache_status(claim: ModelClaim, recorded: tuple[CacheStatus, ...]) -> CacheStatus:
    """Return what is known of the files: by this service, or by another that has them."""
    uid = claim.volume.uid if claim.volume is not None else ""
    blank = CacheStatus(claim_name=claim.ref.name, claim_uid=uid, path=claim.files.folder)
    place = (uid, claim.files.folder)
    known = (cache for cache in recorded if (cache.claim_uid, cache.path) == place)
    cache = next(known, blank)
    return cache if cache.fetched else claim.fetched_status() or cache


def _owned_jobs(
    snapshot: Snapshot, service: ObservedService, job_status: ModelJobStatus
) -> tuple[Ref, ...]:
    """Return the Jobs that this service began: who else uses the files leaves them alone."""
    owned = {job.ref for job in snapshot.model_jobs if job.service == service.ref}
    return tuple(ref for ref in job_status.jobs if ref in owned)


def _assess_files(
    spec: InferenceServiceSpec,
    preparation: Preparation,
    claim: ModelClaim,
    cache: CacheStatus,
    job_status: ModelJobStatus,
) -> tuple[CacheStatus, Preparation]:
    """Take the outcome of the Job, or report how far it is."""
    obsolete_jobs = (*preparation.obsolete_jobs, *job_status.obsolete_jobs)
    preparation = replace(preparation, obsolete_jobs=obsolete_jobs)
    report = parse_report(FetchReport, job_status.report)
    is_done = job_status.outcome is ModelJobOutcome.DONE
    if claim.volume is not None and is_done and report is not None and report.ok:
        update = {"fetched": True, "bytes_done": report.bytes, "bytes_total": report.bytes}
        return cache.model_copy(update=update | {"commit": report.commit or None}), preparation
    report_text = report.message if report else job_status.report
    return cache, replace(
        preparation,
        missing_files=_missing_files(spec, claim, job_status, cache, report_text),
        job_to_create=(job_status.job_to_create if claim.volume is not None else None)
        or preparation.job_to_create,
        progress_address=job_status.address,
    )


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
    alternative: str = "write the shape there",
) -> StatusVerdict[Accepted]:
    """Return why a model has no shape, or not yet, and what else to do."""
    logs_command = job_status.logs_command
    if job_status.outcome is ModelJobOutcome.MODEL_REJECTED:
        cause = f"{refusal_message(spec.model, job_status.report_text)} ({logs_command})"
        denial = unknown_model_denial(spec, cause)
        if denial is not None:
            return StatusVerdict(denial.reason, denial.sentence)
    message = job_status.reading_message(spec.model.uri)
    return StatusVerdict(
        Accepted.READING_MODEL,
        f"spec.model.shape: {message}. Wait, or {alternative}; {logs_command}",
    )


def _with_progress(
    snapshot: Snapshot, service: ObservedService, claim: ModelClaim, cache: CacheStatus
) -> CacheStatus:
    """Add the progress of the fetch, rounded down; without a total size, to 1 GiB."""
    users = (user for user in claim.users if user.ref == service.ref or _fetches(user, cache))
    reports = (snapshot.fetch_progress.get(user.ref) for user in users)
    progress = next((report for report in reports if report is not None), None)
    if progress is None:
        return cache
    step = max(1, progress.total // _PROGRESS_STEPS) if progress.total else 2**30
    update = {"bytes_done": progress.done // step * step, "bytes_total": progress.total}
    return cache.model_copy(update=update)


def _fetches(user: ObservedService, cache: CacheStatus) -> bool:
    """Return whether the next files of a user are these: they come one after another."""
    if user.status.model is None:
        return False
    caches = _recorded_caches(user.status.model)
    following = next((each for each in caches if not each.fetched), None)
    place = (cache.claim_name, cache.path)
    return following is not None and (following.claim_name, following.path) == place


def _missing_files(
    spec: InferenceServiceSpec,
    claim: ModelClaim,
    job_status: ModelJobStatus,
    cache: CacheStatus,
    report_text: str,
) -> StatusVerdict[Progressing]:
    if job_status.outcome is ModelJobOutcome.MODEL_REJECTED:
        is_of_hub = not is_stored(claim.files.uri)
        advice = hub_access_advice(spec.model, report_text) if is_of_hub else None
        refusal = advice or f"spec.model: {report_text[-600:]}"
        message = (
            f"{refusal} ({job_status.logs_command}). After a change outside the spec: "
            f"{job_status.retry_command}"
        )
        return StatusVerdict(Progressing.MODEL_FETCH_FAILED, message)
    if job_status.message:
        return StatusVerdict(Progressing.FETCHING_MODEL, f"spec.model.cache: {job_status.message}")
    total = cache.bytes_total
    share = f" of {total / 1e9:.1f}" if total else ""
    percent = f" ({cache.bytes_done * 100 // total}%)" if total else ""
    return StatusVerdict(
        Progressing.FETCHING_MODEL,
        f"spec.model.cache: {cache.bytes_done / 1e9:.1f}{share} GB{percent} of {claim.files.uri} "
        f"are on claim {cache.claim_name}; {job_status.logs_command}",
    )
