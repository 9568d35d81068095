"""What shapes, precisions and files leave to do before the engines of a model."""

from dataclasses import dataclass, replace

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import Accepted, Progressing, StatusVerdict
from tessera.api.ref import Ref
from tessera.api.service_status import ModelStatus
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.service.preparation.jobs import ModelJob, ModelJobs
from tessera.domain.service.preparation.precisions import (
    PrecisionCheck,
    check_precisions,
    with_usable,
)


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


def with_precisions(
    model_jobs: ModelJobs, service: ObservedService, preparation: Preparation
) -> Preparation:
    """Leave the listed precisions whose files were read and match, and have the others read."""
    checks = check_precisions(model_jobs, service, preparation.spec)
    jobs = (check.job_to_create for check in checks if check.job_to_create is not None)
    obsolete_jobs = [job for check in checks for job in check.obsolete_jobs]
    return replace(
        preparation,
        spec=with_usable(preparation.spec, checks),
        precisions=checks,
        job_to_create=preparation.job_to_create or next(jobs, None),
        obsolete_jobs=(*preparation.obsolete_jobs, *obsolete_jobs),
    )
