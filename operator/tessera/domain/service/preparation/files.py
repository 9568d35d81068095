"""Files of models on their claims: which are there, and which Job downloads the next ones."""

from dataclasses import replace

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_files import CacheStatus, is_stored
from tessera.api.reasons import Progressing, StatusVerdict
from tessera.api.ref import Ref
from tessera.api.service_status import ModelStatus
from tessera.domain.health.startup_failure import hub_access_advice, refusal_reason
from tessera.domain.observed.model_reports import FetchReport, parse_report
from tessera.domain.observed.snapshot import ObservedService, Snapshot
from tessera.domain.service.preparation.claims import ModelClaim
from tessera.domain.service.preparation.jobs import (
    ModelJob,
    ModelJobOutcome,
    ModelJobs,
    ModelJobStatus,
    assess_job_of_files,
)
from tessera.domain.service.preparation.preparation import Preparation

# A status is written for each of so many steps of a fetch, not for each answer.
_PROGRESS_STEPS = 100


def with_files(
    snapshot: Snapshot,
    service: ObservedService,
    preparation: Preparation,
    claims: tuple[ModelClaim, ...],
    spec: InferenceServiceSpec,
) -> Preparation:
    """Are the files of the pinned spec on their claims? They are downloaded one after another."""
    caches, recorded = [], _recorded_caches(preparation.status)
    model_jobs = ModelJobs(snapshot.at, snapshot.model_jobs, snapshot.pods)
    for claim in claims:
        cache = _cache_status(claim, recorded)
        name = claim.files.job_name
        model_job = ModelJob(task="fetch", name=name, spec=spec, files=claim.files)
        job_status = assess_job_of_files(model_jobs, service.ref.namespace, model_job)
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
            f"{refusal} ({job_status.details_command}). After a change outside the spec: "
            f"{job_status.retry_command}"
        )
        return StatusVerdict(Progressing.MODEL_FETCH_FAILED, message)
    if job_status.message:
        reason = Progressing.FETCHING_MODEL
        if job_status.refusal is not None:
            reason = refusal_reason(job_status.refusal)
        return StatusVerdict(reason, f"spec.model.cache: {job_status.message}")
    total = cache.bytes_total
    share = f" of {total / 1e9:.1f}" if total else ""
    percent = f" ({cache.bytes_done * 100 // total}%)" if total else ""
    return StatusVerdict(
        Progressing.FETCHING_MODEL,
        f"spec.model.cache: {cache.bytes_done / 1e9:.1f}{share} GB{percent} of {claim.files.uri} "
        f"are on claim {cache.claim_name}; {job_status.details_command}",
    )
