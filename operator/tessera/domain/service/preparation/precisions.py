"""The listed precisions of a service that have files of their own: which may be chosen.

The `config.json` of each is read by a Job, like that of the model. The commit that was read is the
one that engines load, until the annotation `tessera.dev/update` has it read again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_files import ModelShape
from tessera.api.precision import PrecisionVariant
from tessera.api.reasons import PrecisionReason
from tessera.api.ref import Ref
from tessera.api.service_status import InferenceServiceStatus, PrecisionStatus
from tessera.domain.hardware.pools import PoolView
from tessera.domain.model.names import model_job_name
from tessera.domain.model.overrides import overridden_shape
from tessera.domain.model.precision_files import CheckedVariant, with_files_of
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.perf.engine_terms import draft_shape
from tessera.domain.placement.checks import (
    max_model_len,
    pooling_task,
    shape_of,
)
from tessera.domain.service.preparation.jobs import (
    ModelJob,
    ModelJobOutcome,
    ModelJobs,
    ModelJobStatus,
    assess_job_of_files,
    config_source,
    refusal_message,
)
from tessera.domain.service.template_version import is_update_requested
from tessera.domain.sizing.precision_check import files_mismatch
from tessera.domain.vllm.extra_args import config_overrides

# Of a new service with a Job in trouble: a download of what it would start with meanwhile is waste.
_PATIENCE = timedelta(minutes=2)
_REFUSED = (PrecisionReason.FILES_MISMATCH, PrecisionReason.FILES_NOT_READ)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionCheck:
    """What is known of the files of one listed precision, and what is to be done for them."""

    status: PrecisionStatus
    variant: PrecisionVariant
    """As listed; checked, with the commit, if it may be chosen."""
    message: str = ""
    """Why it may not be chosen, with the numbers of both file sets where they differ."""
    is_held_up: bool = False
    """Its Job did not run as it should for so long that no new service waits for it."""
    is_refused: bool = False
    """The API server refuses the pod of its Job."""
    is_reread: bool = False
    """A Job reads the files again, while what was read before stays in use."""
    job_to_create: ModelJob | None = None
    obsolete_jobs: tuple[Ref, ...] = ()

    @property
    def is_open(self) -> bool:
        """Return whether the files were not read yet, nor refused."""
        return self.status.reason == PrecisionReason.READING_FILES

    @property
    def is_usable(self) -> bool:
        """Return whether the precision may be chosen."""
        return isinstance(self.variant, CheckedVariant)


def check_precisions(
    model_jobs: ModelJobs, service: ObservedService, spec: InferenceServiceSpec
) -> tuple[PrecisionCheck, ...]:
    """Return the check of each listed precision with files of its own, for a model of known
    shape."""
    shape = shape_of(spec)
    if shape is None:
        return ()
    return tuple(
        _check(model_jobs, service, spec, shape, variant)
        for variant in spec.precision.variants
        if variant.uri is not None
    )


def refusals(checks: Sequence[PrecisionCheck]) -> str:
    """Return which listed precisions are not used, and why; empty if all may be."""
    return "; ".join(
        f"spec.precision.variants: {check.status.precision} is not used: {check.message}"
        for check in checks
        if check.status.reason in _REFUSED
    )


def awaited_check(
    checks: Sequence[PrecisionCheck], current: str | None, views: Sequence[PoolView]
) -> PrecisionCheck | None:
    """Return the check for which a service waits: its replicas have that precision, or none exist.

    `current` is the variant of the replicas.
    """
    for check in checks:
        if not check.is_open:
            continue
        if current is None and not check.is_held_up:
            return check
        names = {
            offer.variant(check.status.precision).name for view in views for offer in view.offers
        }
        if current in names:
            return check
    return None


def is_awaited(checks: Sequence[PrecisionCheck]) -> bool:
    """Return whether a change of precision waits: the files of a better one may be read soon."""
    return any(check.is_open and not check.is_held_up for check in checks)


def with_usable(
    spec: InferenceServiceSpec, checks: Sequence[PrecisionCheck]
) -> InferenceServiceSpec:
    """Return the spec without the precisions whose files may not be used, or not yet."""
    if not has_own_files(spec):
        return spec
    variants = {check.status.precision: check.variant for check in checks}
    usable = tuple(
        variant
        for listed in spec.precision.variants
        if (variant := variants.get(listed.precision, listed)).uri is None
        or isinstance(variant, CheckedVariant)
    )
    precision = spec.precision.model_copy(update={"variants": usable})
    return spec.model_copy(update={"precision": precision})


def with_known_precisions(
    spec: InferenceServiceSpec, status: InferenceServiceStatus
) -> InferenceServiceSpec:
    """Return the spec with the precisions that the status says may be chosen."""
    shape = shape_of(spec)
    if shape is None:
        return spec
    checks = [
        _judged(spec, shape, variant, recorded)
        for variant in spec.precision.variants
        if variant.uri is not None and (recorded := _recorded(status, variant))
    ]
    return with_usable(spec, checks)


def has_own_files(spec: InferenceServiceSpec) -> bool:
    """Return whether a listed precision has files of its own."""
    return any(variant.uri is not None for variant in spec.precision.variants)


def shape_job_names(service: ObservedService, spec: InferenceServiceSpec) -> frozenset[str]:
    """Return the names of the Jobs that read the listed precisions."""
    return frozenset(
        _job_name(service, with_files_of(variant, spec, None))
        for variant in spec.precision.variants
        if variant.uri is not None
    )


def _job_name(service: ObservedService, located: InferenceServiceSpec) -> str:
    return model_job_name(
        service.ref.name, service.uid, "shape", located.model, service.update or ""
    )


def _check(
    model_jobs: ModelJobs,
    service: ObservedService,
    spec: InferenceServiceSpec,
    shape: ModelShape,
    variant: PrecisionVariant,
) -> PrecisionCheck:
    recorded = _recorded(service.status, variant)
    located = with_files_of(variant, spec, shape)
    model_job = ModelJob(task="shape", name=_job_name(service, located), spec=located)
    job_status = assess_job_of_files(model_jobs, service.ref.namespace, model_job)
    if recorded is not None and not is_update_requested(service, recorded.observed_update):
        check = _judged(spec, shape, variant, recorded)
        return replace(check, obsolete_jobs=job_status.jobs)
    if (read_shape := job_status.read_shape) is not None:
        update = {"shape": read_shape.shape, "revision": read_shape.commit or None}
        read = _blank(service, variant).model_copy(update=update)
        return _judged(spec, shape, variant, read)
    if recorded is not None:
        # What was read before stays in use.
        check = _judged(spec, shape, variant, recorded)
        check = replace(check, is_reread=job_status.outcome is ModelJobOutcome.OPEN)
    elif job_status.outcome is ModelJobOutcome.OPEN:
        check = _waiting(service, variant, job_status, model_jobs.at)
    else:
        check = _not_read(service, variant, located, job_status)
    return replace(
        check, job_to_create=job_status.job_to_create, obsolete_jobs=job_status.obsolete_jobs
    )


def _recorded(status: InferenceServiceStatus, variant: PrecisionVariant) -> PrecisionStatus | None:
    """Return what the status says of the files of a variant, if they were read."""
    key = (variant.precision, variant.uri, variant.revision)
    return next(
        (
            entry
            for entry in status.precisions
            if (entry.precision, entry.uri, entry.requested_revision) == key
            and entry.shape is not None
        ),
        None,
    )


def _judged(
    spec: InferenceServiceSpec,
    shape: ModelShape,
    variant: PrecisionVariant,
    read: PrecisionStatus,
) -> PrecisionCheck:
    """Compare what was read with the model, which may be another one since."""
    files, precision = read.shape, variant.precision
    assert files is not None  # noqa: S101 - recorded with a shape alone
    source = config_source(read.uri, read.revision)
    # The engine reads all files with the same overrides.
    overridden = overridden_shape(files, config_overrides(spec.engine))
    difference = files_mismatch(
        precision, overridden, _served_shape(spec, shape), max_model_len(spec, shape)
    )
    if difference is not None:
        message = (
            f"{source} has {difference}; name files of {spec.model.uri} in {precision}, or remove "
            "them from spec.precision.variants"
        )
        status = read.model_copy(update={"reason": PrecisionReason.FILES_MISMATCH})
        return PrecisionCheck(status=status, variant=variant, message=message)
    return PrecisionCheck(
        status=read.model_copy(update={"reason": PrecisionReason.FILES_MATCH}),
        variant=CheckedVariant.model_construct(
            precision=precision,
            uri=variant.uri,
            revision=read.revision or variant.revision,
            shape=files,
        ),
    )


def _served_shape(spec: InferenceServiceSpec, shape: ModelShape) -> ModelShape:
    """Return the shape with what the engine is told, and with the vocabulary of its draft."""
    draft = draft_shape(spec.engine)
    words = shape.vocab_size or (draft.vocab_size if draft is not None else None)
    task = shape.pooling or pooling_task(spec)
    return shape.model_copy(update={"pooling": task, "vocab_size": words})


def _waiting(
    service: ObservedService,
    variant: PrecisionVariant,
    job_status: ModelJobStatus,
    at: datetime,
) -> PrecisionCheck:
    status = _blank(service, variant)
    return PrecisionCheck(
        status=status,
        variant=variant,
        message=f"{job_status.reading_message(status.uri)}; {job_status.details_command}",
        is_refused=job_status.refusal is not None,
        is_held_up=bool(job_status.message) and at - service.created >= _PATIENCE,
    )


def _not_read(
    service: ObservedService,
    variant: PrecisionVariant,
    located: InferenceServiceSpec,
    job_status: ModelJobStatus,
) -> PrecisionCheck:
    cause = refusal_message(located.model, job_status.report_text)
    message = (
        f"{variant.uri}: {cause} ({job_status.details_command}); correct "
        "spec.precision.variants, or have the files read again with kubectl tessera update "
        f"{service.ref.name}"
    )
    status = _blank(service, variant)
    status = status.model_copy(update={"reason": PrecisionReason.FILES_NOT_READ})
    return PrecisionCheck(status=status, variant=variant, message=message)


def _blank(service: ObservedService, variant: PrecisionVariant) -> PrecisionStatus:
    return PrecisionStatus(
        precision=variant.precision,
        uri=variant.uri,
        requested_revision=variant.revision,
        reason=PrecisionReason.READING_FILES,
        observed_update=service.update,
    )
