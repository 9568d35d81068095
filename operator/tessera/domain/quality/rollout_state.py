"""The versions of a gated service: which is in force, and what becomes of the edited one.

The version in force is the one whose ControllerRevision has the highest number. A change waits
beside it until its revision gets the next number: by a verdict, by a skipped gate, or since it was
in force a short time ago. So no decision depends on a status that may be lost.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.precision import CHECKPOINT
from tessera.api.quality_gate import VerdictStatus
from tessera.api.ref import Ref
from tessera.api.rollout import Rollout
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.model.precision_files import listed_precisions
from tessera.domain.observed.gates import ObservedGate, Readiness, ServiceRevision
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.placement.checks import pooling_task
from tessera.domain.quality.change import (
    answers_digest,
    changed_fields,
    digest_in,
    gated_digest,
    version_digest,
)
from tessera.domain.quality.gate_jobs import is_by_terms

# First: no version is recorded yet, so the edited one is in force. Stable: nothing waits.
# Candidate: a change waits for its verdict, or a first version whose gate has a `minScore`. Passed,
# Skipped, RolledBack, and NoBaseline, where the version in force is down without answers: it gets
# the next number. Refused: it waits for another edit.
RolloutPhase = Literal[
    "First",
    "Stable",
    "Candidate",
    "Passed",
    "Skipped",
    "RolledBack",
    "NoBaseline",
    "Refused",
]
_PROMOTED = frozenset({"Passed", "Skipped", "RolledBack", "NoBaseline"})
_WITH_VECTORS = ("Embed", "Tokens")
NUMBERED_PHASES = _PROMOTED | {"First"}
_DECIDING = frozenset({"Passed", "Failed", "Slower", "Dearer", "Inconclusive"})


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionState:
    """What is decided about the versions of one gated service."""

    service: Ref
    phase: RolloutPhase
    digest: str
    """Of the edited version: of what waits for a gate, as written. Of a precision of the version
    in force that is tried, with the precision behind `/`."""
    spec: InferenceServiceSpec
    """That of the edited version."""
    update: str | None
    """The annotation `tessera.dev/update` of the edited version."""
    stable: ServiceRevision | None = None
    """The version in force; None before one was recorded."""
    candidate: ServiceRevision | None = None
    """The edited version, where it waits and is recorded."""
    wants_candidate: bool = False
    """A replica of the edited version is tried, or would be."""
    changes: tuple[str, ...] = ()
    """Full paths of the fields in which the edited version differs from the one in force."""
    verdict: VerdictStatus | None = None
    """That on the edited version, if there is one."""
    precision: str = CHECKPOINT
    """That on which the verdict is."""
    untried: frozenset[str] = frozenset()
    """Precisions of the version in force that no user may get yet."""
    refused: frozenset[str] = frozenset()
    """Those of them that are not tried again."""
    obsolete: tuple[Ref, ...] = ()
    """Revisions that are neither in use nor may be gone back to; they are deleted."""
    next_number: int = 1
    vectors_of: str | None = None
    """The new model of an embedding service, as long as its vectors are not expected."""
    lacks_baseline: bool = False
    """The version in force does not run, and has no answers for an edit to be compared with."""
    is_lost: bool = False
    """The version in force is not known."""
    is_demanded: bool = False
    """The platform demands a gate of the service, so no edit goes on without a baseline."""

    def trying(self, precision: str) -> "VersionState":
        """Return the state while a precision of the version in force is tried."""
        return replace(
            self,
            phase="Candidate",
            digest=f"{self.digest}/{precision}",
            candidate=self.stable,
            precision=precision,
            changes=(f"spec.precision: {precision}",),
        )

    @property
    def is_closed(self) -> bool:
        """Whether it is a first version that serves no users: its gate did not let it pass."""
        return self.stable is None and self.phase in {"Candidate", "Refused"}

    @property
    def edited(self) -> ServiceRevision | None:
        """Return the revision of the edited version, if it is recorded."""
        return self.stable if self.phase == "Stable" else self.candidate

    @property
    def revision_name(self) -> str:
        """Return the name that the revision of the edited version has, or gets."""
        return revision_name(self.service.name, self.digest)

    @property
    def is_of_precision(self) -> bool:
        """Return whether the spec is as it was, and a precision that it lists is tried."""
        return self.candidate is not None and self.candidate is self.stable

    @property
    def promoted(self) -> ServiceRevision | None:
        """Return the recorded revision as it is once the edited version is in force."""
        edited, stable = self.candidate, self.stable
        if edited is None or self.phase not in NUMBERED_PHASES:
            return None
        if stable is not None and self.is_of_precision:
            return replace(stable, tried=tried_precisions(stable) | {self.precision})
        tried = edited.tried
        if self.phase == "Passed":
            unchanged = _unchanged(stable, edited) if stable is not None else frozenset[str]()
            tried = unchanged | {self.precision}
        # Its replicas have their time from now on.
        readiness: Readiness = "Ready" if edited.has_served else "Pending"
        return replace(edited, number=self.next_number, tried=tried, readiness=readiness)


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
    *,
    is_demanded: bool = False,
    is_lost: bool = False,
) -> VersionState:
    """Return the state of a gated service, from its revisions and its gate.

    `running` are the versions that have a Deployment, whose revisions stay: their digests, and
    behind `/` the precision. The platform may have demanded a gate. Where the version in force is
    lost, only a skipped gate or the way back to one before it goes on.
    """
    spec = service.spec
    assert spec is not None  # noqa: S101 - it is gated
    own = [each for each in revisions if each.service_uid == service.uid]
    ranked = sorted((each for each in own if each.number), key=lambda each: -each.number)
    latest = next(iter(ranked), None)
    update = _requested_update(service, latest)
    digest = gated_digest(spec, update)
    edited = next((each for each in own if each.digest == digest), None)
    served = [each for each in ranked[0 if is_lost else 1 :] if each.has_served]
    recent, stable = served[: spec.rollout.rollback_window], None if is_lost else latest
    if stable is not None and latest is not None and latest.readiness == "Overdue" and served:
        known = {latest.digest, *(each.digest for each in recent)}
        # It protects nobody, so an edit of it is compared with what served before.
        stable = latest if digest in known else served[0]
    deployed = {each.partition("/")[0] for each in running}
    in_use = {digest, *deployed, *(each.digest for each in (*ranked[:1], *served[:1], *recent))}
    lacks_baseline = stable is not None and stable.is_down and not has_answered(gate, stable)
    verdict, precision = _verdict(
        service.ref.name, gate, edited, stable, lacks_baseline=lacks_baseline
    )
    phase: RolloutPhase = "First"
    if stable is not None or is_lost or _needs_score(service.status, gate):
        phase = _phase(service, spec.rollout, digest, stable, recent, _outcome(gate, verdict))
    has_gate = gate is not None and gate.spec is not None and gate.ref.name == spec.rollout.gate_ref
    vectors_of = None
    if stable is not None and stable.readiness != "Overdue" and phase == "Candidate":
        vectors_of = _unexpected_vectors(stable, spec)
    may_try = has_gate and vectors_of is None and spec.fixed_replicas != 0
    if lacks_baseline and not _has_min_score(gate):
        may_try = False
        is_let = stable is not None and not (is_demanded and stable.has_served)
        if phase == "Candidate" and has_gate and vectors_of is None and is_let:
            phase = "NoBaseline"
    state = VersionState(
        service=service.ref,
        phase=phase,
        digest=digest,
        spec=spec,
        update=update,
        stable=stable,
        candidate=None if phase == "Stable" else edited,
        wants_candidate=(may_try and phase == "Candidate")
        # What it loads is resolved first, and what runs of it stays.
        or (phase in _PROMOTED and (digest in deployed or edited is None)),
        changes=changed_fields(stable.spec, spec) if stable is not None else (),
        verdict=verdict,
        precision=precision,
        untried=_untried(stable) if stable is not None else frozenset(),
        obsolete=tuple(sorted(each.ref for each in own if each.digest not in in_use)),
        next_number=latest.number + 1 if latest is not None else 1,
        vectors_of=vectors_of,
        lacks_baseline=lacks_baseline,
        is_lost=is_lost,
        is_demanded=is_demanded,
    )
    return _of_precisions(state, service, gate, running, may_try=may_try and not lacks_baseline)


def _of_precisions(
    state: VersionState,
    service: ObservedService,
    gate: ObservedGate | None,
    running: Collection[str],
    *,
    may_try: bool,
) -> VersionState:
    """Return the state with what becomes of untried precisions, which are tried by themselves
    where no edit waits. One that has a Deployment is tried, else the one that would be chosen."""
    stable, verdicts = state.stable, dict[str, VerdictStatus]()
    if stable is None or not state.untried:
        return state
    records = {each.digest for each in service.status.rollouts if each.is_refused}
    refused = {each for each in state.untried if f"{stable.digest}/{each}" in records}
    for each in state.untried:
        verdict, _ = _verdict(service.ref.name, gate, stable, stable, each)
        if verdict is not None:
            verdicts[each] = verdict
        if _outcome(gate, verdict) == "Refused":
            refused.add(each)
    state = replace(state, refused=frozenset(refused))
    if state.phase != "Stable":
        return state
    tried = sorted(each for each in state.untried if f"{stable.digest}/{each}" in running)
    if not tried:
        return replace(state, wants_candidate=may_try and bool(state.untried - refused))
    # More than one has a Deployment only if somebody else wrote it.
    precision = next((each for each in tried if each not in refused), tried[0])
    outcome = _outcome(gate, verdicts.get(precision))
    phase: RolloutPhase = "Refused" if precision in refused else outcome or "Candidate"
    return replace(
        state.trying(precision),
        phase=phase,
        verdict=verdicts.get(precision),
        wants_candidate=phase == "Passed" or (may_try and phase == "Candidate"),
    )


def _needs_score(status: InferenceServiceStatus, gate: ObservedGate | None) -> bool:
    """Return whether a version without a stable one is tried by its score before it serves.

    A gate that is not there, or cannot be read, may ask for a score. What served before the gate
    did serves on.
    """
    served = status.pod_template_version is not None and status.candidate_revision is None
    is_new = status.stable_revision is None and not served
    return is_new and (gate is None or gate.spec is None or gate.spec.min_score is not None)


def _has_min_score(gate: ObservedGate | None) -> bool:
    return gate is not None and gate.spec is not None and gate.spec.min_score is not None


def has_answered(gate: ObservedGate | None, stable: ServiceRevision) -> bool:
    """Return whether the answers of the version in force are known, or no gate asks for them."""
    if gate is None or gate.spec is None:
        return True
    suite = gate.status.suite
    digests = {digest_of(stable, each) for each in tried_precisions(stable)}
    digest = gate.spec.suite.digest or (suite.digest if suite is not None else "")
    return any(each.digest in digests and each.suite == digest for each in gate.status.answers)


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
    if stable is not None and stable.digest == digest:
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
    *precisions: str,
    lacks_baseline: bool = False,
) -> tuple[VerdictStatus | None, str]:
    """Return the verdict on the edited version beside the one in force, by the gate of today, and
    on which of these precisions it is; without any, on any that the version lists."""
    spec, suite = (gate.spec, gate.status.suite) if gate is not None else (None, None)
    if gate is None or spec is None or suite is None or edited is None:
        return None, CHECKPOINT
    candidates = {digest_of(edited, each): each for each in precisions or _listed(edited)}
    baselines = {""} if stable is None or lacks_baseline else set[str]()
    if stable is not None:
        baselines |= {digest_of(stable, each) for each in tried_precisions(stable)}
    verdicts = (
        each
        for each in gate.status.verdicts
        if each.service == service
        and each.candidate in candidates
        and each.baseline in baselines
        and each.suite == (spec.suite.digest or suite.digest)
        and is_by_terms(each.scorer, spec)
        and each.reason in _DECIDING
    )
    verdict = next(verdicts, None)
    return verdict, candidates[verdict.candidate] if verdict is not None else CHECKPOINT


def digest_of(revision: ServiceRevision, precision: str = CHECKPOINT) -> str:
    """Return the digest by which verdicts on a version in one precision go."""
    return version_digest(
        revision.digest, revision.model, revision.precisions, revision.builder_version, precision
    )


def answers_of(revision: ServiceRevision, precision: str = CHECKPOINT) -> str:
    """Return the same of what makes its answers: those of versions that have it are alike."""
    written = answers_digest(revision.spec, revision.update)
    files, builder = revision.precisions, revision.builder_version
    return version_digest(written, revision.model, files, builder, precision)


def _listed(revision: ServiceRevision) -> tuple[str, ...]:
    return listed_precisions(revision.spec.precision)


def _untried(revision: ServiceRevision) -> frozenset[str]:
    """Return the precisions that may not serve; none if that is not recorded, or names no other."""
    untried = frozenset(_listed(revision)) - (revision.tried or frozenset())
    is_known = revision.tried is not None and len(untried) < len(_listed(revision))
    return untried if is_known else frozenset()


def tried_precisions(revision: ServiceRevision) -> frozenset[str]:
    """Return the precisions of a version that may serve users."""
    return frozenset(_listed(revision)) - _untried(revision)


def _unchanged(stable: ServiceRevision, edited: ServiceRevision) -> frozenset[str]:
    """Return the precisions in which an edited version is the one in force, where they serve."""
    before, after = (
        {each: _content(revision, each) for each in _listed(revision)}
        for revision in (stable, edited)
    )
    return frozenset(each for each in tried_precisions(stable) if before[each] == after.get(each))


def _content(revision: ServiceRevision, precision: str) -> str:
    """Return a digest of all that makes the answers of a version in one precision."""
    written = digest_in(revision.spec, revision.update, precision)
    files = [each for each in revision.precisions if each.precision == precision]
    return version_digest(written, revision.model, files, revision.builder_version)


def _outcome(
    gate: ObservedGate | None, verdict: VerdictStatus | None
) -> Literal["Passed", "Refused"] | None:
    if verdict is None or gate is None or gate.spec is None:
        return None
    return "Passed" if gate.spec.lets_pass(verdict.reason) else "Refused"
