"""The versions of a gated service: which is in force, and what becomes of the edited one.

The version in force is the one whose ControllerRevision has the highest number. A change waits
beside it until its revision gets the next number: by a verdict, by a skipped gate, or since it was
in force a short time ago. So no decision depends on a status that may be lost.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.quality_gate import VerdictStatus
from tessera.api.ref import Ref
from tessera.api.rollout import Rollout
from tessera.domain.observed.gates import ObservedGate, ServiceRevision
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.placement.checks import pooling_task
from tessera.domain.quality.change import changed_fields, gated_digest, version_digest
from tessera.domain.quality.gate_jobs import is_by_terms

# First: no version is recorded yet, so the edited one is in force. Stable: nothing waits.
# Candidate: a change waits for its verdict. Passed, Skipped and RolledBack: it gets the next
# number. Refused: it waits for another edit.
RolloutPhase = Literal["First", "Stable", "Candidate", "Passed", "Skipped", "RolledBack", "Refused"]
_PROMOTED = frozenset({"Passed", "Skipped", "RolledBack"})
_WITH_VECTORS = ("Embed", "Tokens")
NUMBERED_PHASES = _PROMOTED | {"First"}
_DECIDING = frozenset({"Passed", "Failed", "Slower", "Dearer", "Inconclusive"})


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionState:
    """What is decided about the versions of one gated service."""

    service: Ref
    phase: RolloutPhase
    digest: str
    """Of the edited version: of what can change answers, as written."""
    spec: InferenceServiceSpec
    """That of the edited version."""
    update: str | None
    """The annotation `tessera.dev/update` of the edited version."""
    stable: ServiceRevision | None = None
    """The version in force; None before one was recorded."""
    candidate: ServiceRevision | None = None
    """The edited version, where it waits and is recorded."""
    wants_candidate: bool = False
    """A replica of the edited version runs, or would."""
    changes: tuple[str, ...] = ()
    """Full paths of the fields in which the edited version differs from the one in force."""
    verdict: VerdictStatus | None = None
    """That on the edited version, if there is one."""
    obsolete: tuple[Ref, ...] = ()
    """Revisions that are neither in use nor may be gone back to; they are deleted."""
    next_number: int = 1
    vectors_of: str | None = None
    """The new model of an embedding service, as long as its vectors are not expected."""

    @property
    def edited(self) -> ServiceRevision | None:
        """Return the revision of the edited version, if it is recorded."""
        return self.stable if self.phase == "Stable" else self.candidate

    @property
    def revision_name(self) -> str:
        """Return the name that the revision of the edited version has, or gets."""
        return revision_name(self.service.name, self.digest)

    @property
    def promoted(self) -> Ref | None:
        """Return the recorded revision that gets `next_number` now."""
        if self.candidate is None or self.phase not in NUMBERED_PHASES:
            return None
        return self.candidate.ref


def revision_name(service: str, digest: str) -> str:
    """Return the name of the ControllerRevision of a version."""
    return f"{service}-{digest[:10]}"


def is_gated(service: ObservedService) -> bool:
    """Return whether changes of a service that can change answers wait for a gate."""
    return service.spec is not None and service.spec.rollout.strategy == "Gated"


def rollout_state(
    service: ObservedService,
    revisions: Collection[ServiceRevision],
    gate: ObservedGate | None,
    running: Collection[str] = (),
) -> VersionState:
    """Return the state of a gated service, from its revisions and its gate.

    `running` are the digests of versions that have a Deployment, whose revisions stay.
    """
    spec = service.spec
    assert spec is not None  # noqa: S101 - it is gated
    own = [each for each in revisions if each.service_uid == service.uid]
    ranked = sorted((each for each in own if each.number), key=lambda each: -each.number)
    stable = next(iter(ranked), None)
    update = _requested_update(service, stable)
    digest = gated_digest(spec, update)
    edited = next((each for each in own if each.digest == digest), None)
    recent = ranked[1 : 1 + spec.rollout.rollback_window]
    in_use = {digest, *running, *(each.digest for each in (*ranked[:1], *recent))}
    verdict = _verdict(service.ref.name, gate, edited, stable)
    phase = _phase(service, spec.rollout, digest, stable, recent, _outcome(gate, verdict))
    has_gate = gate is not None and gate.spec is not None and gate.ref.name == spec.rollout.gate_ref
    vectors_of = _unexpected_vectors(stable, spec) if stable and phase == "Candidate" else None
    may_try = phase == "Candidate" and has_gate and vectors_of is None
    return VersionState(
        service=service.ref,
        phase=phase,
        digest=digest,
        spec=spec,
        update=update,
        stable=stable,
        candidate=None if phase == "Stable" else edited,
        wants_candidate=(may_try and spec.fixed_replicas != 0)
        # What it loads is resolved first, and what runs of it stays.
        or (phase in _PROMOTED and (digest in running or edited is None)),
        changes=changed_fields(stable.spec, spec) if stable is not None else (),
        verdict=verdict,
        obsolete=tuple(sorted(each.ref for each in own if each.digest not in in_use)),
        next_number=stable.number + 1 if stable is not None else 1,
        vectors_of=vectors_of,
    )


def _unexpected_vectors(stable: ServiceRevision, edited: InferenceServiceSpec) -> str | None:
    """Return the other model of an embedding service, unless the edit expects its vectors."""
    spec, known = stable.spec, stable.model.shape if stable.model is not None else None
    if spec.model.shape is None and known is not None:
        model = spec.model.model_copy(update={"shape": known})
        spec = spec.model_copy(update={"model": model})
    before, after = (
        f"{model.uri}@{model.revision}" if model.revision else model.uri
        for model in (spec.model, edited.model)
    )
    is_expected = after in (before, edited.rollout.vectors_of)
    return after if not is_expected and pooling_task(spec) in _WITH_VECTORS else None


def _requested_update(service: ObservedService, stable: ServiceRevision | None) -> str | None:
    """Return the annotation; removing it requests nothing, so the last one stays in force."""
    if service.update is None and stable is not None:
        return stable.update
    return service.update


def _phase(
    service: ObservedService,
    rollout: Rollout,
    digest: str,
    stable: ServiceRevision | None,
    recent: Sequence[ServiceRevision],
    outcome: Literal["Passed", "Refused"] | None,
) -> RolloutPhase:
    if stable is None:
        return "First"
    if stable.digest == digest:
        return "Stable"
    if any(each.digest == digest for each in recent):
        return "RolledBack"
    if rollout.skip_gate is not None:
        return "Skipped"
    records = service.status.rollouts
    is_refused = any(each.is_refused and each.digest == digest for each in records)
    return outcome or ("Refused" if is_refused else "Candidate")


def _verdict(
    service: str,
    gate: ObservedGate | None,
    edited: ServiceRevision | None,
    stable: ServiceRevision | None,
) -> VerdictStatus | None:
    """Return the verdict on the edited version beside the one in force, by the gate of today."""
    spec, suite = (gate.spec, gate.status.suite) if gate is not None else (None, None)
    if gate is None or spec is None or suite is None or edited is None or stable is None:
        return None
    pair = digest_of(edited), digest_of(stable)
    verdicts = (
        each
        for each in gate.status.verdicts
        if each.service == service
        and (each.candidate, each.baseline) == pair
        and each.suite == (spec.suite.digest or suite.digest)
        and is_by_terms(each.scorer, spec)
        and each.reason in _DECIDING
    )
    return next(verdicts, None)


def digest_of(revision: ServiceRevision) -> str:
    """Return the digest by which verdicts on a version go."""
    return version_digest(
        revision.digest, revision.model, revision.precisions, revision.builder_version
    )


def _outcome(
    gate: ObservedGate | None, verdict: VerdictStatus | None
) -> Literal["Passed", "Refused"] | None:
    if verdict is None or gate is None or gate.spec is None:
        return None
    is_open = verdict.reason == "Inconclusive" and gate.spec.require == "NotWorse"
    return "Passed" if verdict.reason == "Passed" or is_open else "Refused"
