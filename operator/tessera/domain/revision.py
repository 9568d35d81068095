"""Which weights does a service load? The commit that its revision meant when it was asked.

A hub is asked once: for a new service, after a change of the model, and when the annotation
`tessera.dev/update` asks. Until it has answered, or could not, the Deployment is left as it is;
what came of it then stays, also when the hub is back, since another revision would roll the pods.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tessera.api.inference_service import InferenceServiceSpec, ModelStatus
from tessera.domain.reasons import Pinned
from tessera.domain.recipe import asked_for
from tessera.domain.snapshot import Question, Resolution, Service, Workload

_HUB = "hf://"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DEFAULT = "main"
"""The default branch of every model on the hub."""
_LONGEST = 1024


@dataclass(frozen=True, slots=True)
class Pin:
    """Which weights, as the status says it; None where there is no revision, as on a claim."""

    status: ModelStatus | None = None
    question: Question | None = None
    """What has to be asked before anything is made."""


def pin(
    service: Service,
    spec: InferenceServiceSpec,
    workload: Workload | None,
    resolutions: Mapping[Question, Resolution] | None,
) -> Pin:
    """Keep what is pinned, or pin what the hub said."""
    kept, revision = service.status.model, spec.model.revision
    if not spec.model.uri.startswith(_HUB):
        return Pin()
    mine = _mine(spec, kept)
    if mine and mine.reason != Pinned.RESOLVING and not asked_for(service, mine.update):
        return Pin(mine)
    if (known := _unasked(service, spec, workload)) is not None:
        return Pin(known)
    if resolutions is None:
        return Pin(_told(service, spec, Pinned.NOT_ASKED, _as_given(spec)))
    repository = spec.model.uri.removeprefix(_HUB)
    question = Question(repository, revision or _DEFAULT, service.update)
    if (found := resolutions.get(question)) is not None:
        return Pin(_answered(service, spec, mine, found))
    asking = f"the hub is asked which commit {question.revision} means"
    waiting = _told(service, spec, Pinned.RESOLVING, asking) if workload is None else kept
    return Pin(waiting, question)


def pinned_spec(spec: InferenceServiceSpec, pin: Pin) -> InferenceServiceSpec:
    """The spec with the commit as its revision."""
    if pin.status is None or pin.status.revision is None:
        return spec
    model = spec.model.model_copy(update={"revision": pin.status.revision})
    return spec.model_copy(update={"model": model})


def _mine(spec: InferenceServiceSpec, kept: ModelStatus | None) -> ModelStatus | None:
    """What was found out for the model as the spec names it."""
    if kept is None or kept.reason is None:
        return None
    same = (kept.uri, kept.asked) == (spec.model.uri, spec.model.revision)
    return kept if same else None


def _unasked(
    service: Service, spec: InferenceServiceSpec, workload: Workload | None
) -> ModelStatus | None:
    """What no hub need be asked for."""
    revision = spec.model.revision
    if revision is not None and _COMMIT.fullmatch(revision):
        told = f"{spec.model.uri} at {revision}"
        return _told(service, spec, Pinned.GIVEN, told, revision)
    if service.status.model is None and workload is not None:
        told = f"{_as_given(spec)}; kubectl tessera update {service.ref.name} pins it"
        return _told(service, spec, Pinned.UNPINNED, told)
    return None


def _answered(
    service: Service, spec: InferenceServiceSpec, mine: ModelStatus | None, found: Resolution
) -> ModelStatus:
    """A hub that could not say leaves what was pinned before for the same revision."""
    if found.commit is None and mine is not None and mine.revision is not None:
        told = f"{found.message}; the commit stays {mine.revision}"
        return _told(service, spec, found.reason, told, mine.revision)
    if found.commit is None:
        return _told(service, spec, found.reason, f"{found.message}; {_as_given(spec)}")
    return _told(service, spec, found.reason, found.message, found.commit)


def _as_given(spec: InferenceServiceSpec) -> str:
    asked = spec.model.revision
    return (
        f"spec.model.revision {asked} is used as given"
        if asked
        else "the hub's default branch is used, and may change between two starts"
    )


def _told(
    service: Service,
    spec: InferenceServiceSpec,
    reason: Pinned,
    message: str,
    commit: str | None = None,
) -> ModelStatus:
    return ModelStatus(
        uri=spec.model.uri,
        asked=spec.model.revision,
        revision=commit,
        reason=reason,
        message=message[:_LONGEST],
        update=service.update,
    )
