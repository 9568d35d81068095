"""The commit of a model revision, resolved once and pinned.

The hub is asked for a new service, after a change of the model, and on the annotation
`tessera.dev/update`. Until it responds or fails, the Deployment stays unchanged; the result then
stays too, also when the hub is back, since another revision would roll the pods.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import RevisionReason
from tessera.api.service_status import ModelStatus
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
    uri, revision = spec.model.uri, spec.model.revision
    if not uri.startswith(_HUB):
        return PinnedRevision()
    recorded = _recorded(service, workload, last_pin)
    current = recorded_for_spec(spec, recorded)
    if (
        current
        and current.reason != RevisionReason.RESOLVING_REVISION
        and not is_update_requested(service, current.observed_update)
    ):
        return PinnedRevision(current)
    pin = partial(_model_status, service, spec)
    unpinned = (
        f"spec.model.revision {revision} is used as given"
        if revision
        else "the default branch is used, which may change between two starts"
    )
    if revision is not None and _COMMIT.fullmatch(revision):
        message = f"{uri} at {revision}"
        return PinnedRevision(pin(RevisionReason.COMMIT_SPECIFIED, message, revision))
    is_older = recorded is None and workload is not None  # than pinned revisions
    if is_older or resolutions is None:
        reason = RevisionReason.UNPINNED if is_older else RevisionReason.RESOLUTION_DISABLED
        hint = f"; kubectl tessera update {service.ref.name} pins it" if is_older else ""
        return PinnedRevision(pin(reason, f"{unpinned}{hint}"))
    query = RevisionQuery(uri.removeprefix(_HUB), revision or _DEFAULT_BRANCH, service.update)
    if (resolution := resolutions.get(query)) is None:
        message = f"resolving revision {query.revision}"
        pending = pin(RevisionReason.RESOLVING_REVISION, message)
        return PinnedRevision(pending if workload is None else recorded, query)
    commit, message = resolution.commit, resolution.message
    if commit is None and current is not None and current.revision is not None:
        # A failed resolution keeps the pinned commit.
        commit = current.revision
        message = f"{message}; the commit stays {commit}"
    elif commit is None:
        message = f"{message}; {unpinned}"
    return PinnedRevision(pin(resolution.reason, message, commit))


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
