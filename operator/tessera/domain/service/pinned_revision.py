"""The commit of a model revision, resolved once and pinned.

The hub is asked for a new service, after a change of the model, and on the annotation
`tessera.dev/update`. Until it responds or fails, the Deployment stays unchanged; the result then
stays too, also when the hub is back, since another revision would roll the pods.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tessera.api.inference_service import InferenceServiceSpec, ModelStatus
from tessera.api.reasons import RevisionReason
from tessera.domain.observed.snapshot import ObservedService, Resolution, RevisionQuery, Workload
from tessera.domain.service.template_version import is_update_requested

_HUB = "hf://"
_COMMIT = re.compile(r"[0-9a-f]{40}")
# The default branch of every model on the hub.
_DEFAULT_BRANCH = "main"
_MAX_MESSAGE_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class PinnedRevision:
    """The pinned commit as in the status; None for models without revisions."""

    status: ModelStatus | None = None
    query: RevisionQuery | None = None
    """The query that comes before any Deployment."""


def pin_revision(
    service: ObservedService,
    spec: InferenceServiceSpec,
    workload: Workload | None,
    resolutions: Mapping[RevisionQuery, Resolution] | None,
    last_pin: ModelStatus | None = None,
) -> PinnedRevision:
    """Return the pinned revision, or pin the hub's resolution.

    `last_pin` is that of the last plan, while the status does not have it.
    """
    recorded, revision = _recorded(service, workload, last_pin), spec.model.revision
    if not spec.model.uri.startswith(_HUB):
        return PinnedRevision()
    current = recorded_for_spec(spec, recorded)
    if (
        current
        and current.reason != RevisionReason.RESOLVING_REVISION
        and not is_update_requested(service, current.observed_update)
    ):
        return PinnedRevision(current)
    if (settled_status := _status_without_query(service, spec, workload, recorded)) is not None:
        return PinnedRevision(settled_status)
    if resolutions is None:
        status = _model_status(
            service, spec, RevisionReason.RESOLUTION_DISABLED, _unpinned_message(spec)
        )
        return PinnedRevision(status)
    repository = spec.model.uri.removeprefix(_HUB)
    query = RevisionQuery(repository, revision or _DEFAULT_BRANCH, service.update)
    if (resolution := resolutions.get(query)) is not None:
        return PinnedRevision(_resolved_status(service, spec, current, resolution))
    message = f"resolving revision {query.revision}"
    pending_status = (
        _model_status(service, spec, RevisionReason.RESOLVING_REVISION, message)
        if workload is None
        else recorded
    )
    return PinnedRevision(pending_status, query)


def pinned_spec(spec: InferenceServiceSpec, pinned: PinnedRevision) -> InferenceServiceSpec:
    """Return the spec with the commit as its revision."""
    if pinned.status is None or pinned.status.revision is None:
        return spec
    model = spec.model.model_copy(update={"revision": pinned.status.revision})
    return spec.model_copy(update={"model": model})


def _recorded(
    service: ObservedService, workload: Workload | None, last_pin: ModelStatus | None
) -> ModelStatus | None:
    """Return the status; of one that was not written, what its Deployment was applied with."""
    is_own = workload is not None and workload.owner_uid in (None, service.uid)
    applied = workload.model if workload is not None and is_own else None
    pins = (service.status.model, last_pin, applied)
    resolved = (pin for pin in pins if pin and pin.reason != RevisionReason.RESOLVING_REVISION)
    return next(resolved, service.status.model)


def recorded_for_spec(
    spec: InferenceServiceSpec, recorded: ModelStatus | None
) -> ModelStatus | None:
    """Return the recorded status if it is of the same model and revision."""
    if recorded is None or recorded.reason is None:
        return None
    same = (recorded.uri, recorded.requested_revision) == (spec.model.uri, spec.model.revision)
    return recorded if same else None


def _status_without_query(
    service: ObservedService,
    spec: InferenceServiceSpec,
    workload: Workload | None,
    recorded: ModelStatus | None,
) -> ModelStatus | None:
    """Return the status where no hub is needed."""
    revision = spec.model.revision
    if revision is not None and _COMMIT.fullmatch(revision):
        message = f"{spec.model.uri} at {revision}"
        return _model_status(service, spec, RevisionReason.COMMIT_SPECIFIED, message, revision)
    if recorded is None and workload is not None:
        message = f"{_unpinned_message(spec)}; kubectl tessera update {service.ref.name} pins it"
        return _model_status(service, spec, RevisionReason.UNPINNED, message)
    return None


def _resolved_status(
    service: ObservedService,
    spec: InferenceServiceSpec,
    current: ModelStatus | None,
    resolution: Resolution,
) -> ModelStatus:
    """Return the status after a resolution; a failed one keeps the pinned commit."""
    if resolution.commit is None and current is not None and current.revision is not None:
        message = f"{resolution.message}; the commit stays {current.revision}"
        return _model_status(service, spec, resolution.reason, message, current.revision)
    if resolution.commit is None:
        return _model_status(
            service, spec, resolution.reason, f"{resolution.message}; {_unpinned_message(spec)}"
        )
    return _model_status(service, spec, resolution.reason, resolution.message, resolution.commit)


def _unpinned_message(spec: InferenceServiceSpec) -> str:
    revision = spec.model.revision
    return (
        f"spec.model.revision {revision} is used as given"
        if revision
        else "the default branch is used, which may change between two starts"
    )


def _model_status(
    service: ObservedService,
    spec: InferenceServiceSpec,
    reason: RevisionReason,
    message: str,
    commit: str | None = None,
) -> ModelStatus:
    return ModelStatus(
        uri=spec.model.uri,
        requested_revision=spec.model.revision,
        revision=commit,
        reason=reason,
        message=message[:_MAX_MESSAGE_LENGTH],
        observed_update=service.update,
    )
