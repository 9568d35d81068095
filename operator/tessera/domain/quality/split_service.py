"""One gated service as it is planned: its version in force, and the one that is tried."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple, TypeVar

from tessera.api.gate_reasons import LATE_REFUSALS
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.ref import Ref
from tessera.api.service_status import (
    CandidateStatus,
    InferenceServiceStatus,
    ModelStatus,
    PrecisionStatus,
)
from tessera.domain.incremental import reused_per_object
from tessera.domain.model.precision_files import (
    listed_precisions,
    with_closed,
    with_one_precision,
)
from tessera.domain.observed.gates import GatedVersion, ObservedGate, ServiceRevision
from tessera.domain.observed.snapshot import ObservedService, Workload
from tessera.domain.quality.change import digest_in, in_force
from tessera.domain.quality.lost_revision import (
    RevisionMissingError,
    found_revision,
    lost_revision,
    missing_text,
)
from tessera.domain.quality.rollout_state import (
    VersionState,
    has_answered,
    is_gated,
    revision_name,
    rollout_state,
    tried_precisions,
)
from tessera.domain.schedules import in_window
from tessera.domain.service.template_version import template_digest
from tessera.domain.steps import Step

# Variant and template digest of the Deployment that replicas belong to.
Identity = tuple[Ref, str, str]
# Those of a service, and which of them serve users.
_Deployments = tuple[tuple[Workload, ...], frozenset[Ref]]


class SplitTerms(NamedTuple):
    """What versions are told apart by beside the objects of a service."""

    builder_version: int = 1
    """Version of the builder that makes new templates."""
    is_demanded: bool = False
    """The platform demands a gate of the service."""
    last: ServiceRevision | None = None
    """The version in force as the operator knew it last."""
    is_lost: bool = False
    """The version in force is not known."""


OwnedT = TypeVar("OwnedT", ServiceRevision, Workload)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitService:
    """A gated service: its version in force, and the one that is tried."""

    observed: ObservedService
    """As it was read."""
    state: VersionState
    service: ObservedService
    """The version in force."""
    candidate: ObservedService | None = None
    """The version that is tried, under a name of its own."""
    tried: frozenset[Ref] = frozenset()
    """Deployments of the version that is tried."""
    former: tuple[Ref, ...] = ()
    """Deployments of versions that were tried and are not wanted any more; they serve no user."""
    moved: tuple[tuple[Identity, Ref], ...] = ()
    """Under which name the replicas of both are planned."""
    own: frozenset[Ref] = frozenset()
    """Deployments of the version in force, as their records say."""
    is_restored: bool = False
    """The record of the version in force was lost, and is written again."""
    is_window_open: bool = False
    """A replica of the version in force may lend its device."""


def by_service(objects: Iterable[OwnedT]) -> Mapping[Ref, tuple[OwnedT, ...]]:
    """Return what belongs to each service, sorted by its own name."""
    owned = defaultdict[Ref, list[OwnedT]](list)
    for each in objects:
        owned[each.service].append(each)
    return {ref: tuple(sorted(own, key=lambda each: each.ref)) for ref, own in owned.items()}


def _split_service(
    service: ObservedService,
    revisions: tuple[ServiceRevision, ...],
    gates: Mapping[Ref, ObservedGate],
    deployments: _Deployments,
    terms: SplitTerms,
    *,
    at: datetime,
) -> SplitService | RevisionMissingError:
    """Return the versions of a service, or that the one in force is not known."""
    spec = service.spec
    assert spec is not None  # noqa: S101 - it is gated
    gate, window = Ref(service.ref.namespace, spec.rollout.gate_ref or ""), spec.rollout.gate_window
    numbered = [each for each in revisions if each.number and each.service_uid == service.uid]
    lost, restored = lost_revision(service, numbered, terms.last), None
    if lost is not None:
        # Without it the edited version would pass as a first one.
        workloads, serving = deployments
        versions = _versions_of(service, [each for each in workloads if each.ref in serving])
        served = frozenset(filter(None, versions.values()))
        restored = found_revision(service, lost, numbered, terms.last, served)
        revisions = tuple(each for each in revisions if each.ref.name != lost)
        revisions += (restored,) if restored is not None else ()
        terms = terms._replace(is_lost=restored is None)
    split = _split(service.ref, service, revisions, gates.get(gate), deployments, terms)
    if lost is not None and restored is None and split.state.phase not in {"Skipped", "RolledBack"}:
        return _missing(service, lost, numbered, deployments)
    is_open = window is not None and in_window(window, at)
    return replace(split, is_window_open=is_open, is_restored=restored is not None)


split_service = Step[..., SplitService | Exception](_split_service, lambda error, *_, **_n: error)


def _missing(
    service: ObservedService,
    lost: str,
    numbered: Sequence[ServiceRevision],
    deployments: _Deployments,
) -> RevisionMissingError:
    """Return that the version in force is not known; what serves users goes on doing so."""
    workloads, serving = deployments
    versions, name = _versions_of(service, workloads), service.ref.name
    closed = frozenset(
        (each.variant, each.template_digest)
        for each in workloads
        if (version := versions[each.ref]) is not None
        and revision_name(name, version) != lost
        and each.ref not in serving
    )
    return RevisionMissingError(missing_text(lost, numbered), closed)


def _versions_of(
    service: ObservedService, workloads: Iterable[Workload]
) -> Mapping[Ref, str | None]:
    return {each.ref: _version_of(each, service.status.candidate) for each in workloads}


@reused_per_object
def _split(
    ref: Ref,
    service: ObservedService,
    revisions: tuple[ServiceRevision, ...],
    gate: ObservedGate | None,
    deployments: _Deployments,
    terms: SplitTerms,
) -> SplitService:
    workloads, serving = deployments
    versions = _versions_of(service, workloads)
    running = frozenset(filter(None, versions.values()))
    state = rollout_state(
        service,
        revisions,
        gate,
        running,
        is_demanded=terms.is_demanded,
        is_lost=terms.is_lost,
    )
    spec, stable, edited = service.spec, state.stable, state.edited
    assert spec is not None  # noqa: S101 - it is gated
    is_undecided = state.phase in {"Candidate", "Stable"} and state.wants_candidate
    refusal = gate.refusal if gate is not None and is_undecided else None
    if refusal is not None and refusal.reason in LATE_REFUSALS:
        # Nothing asks it, so it would be paid for until somebody corrects what is wrong.
        state = replace(state, wants_candidate=False)
    if stable is None:
        return _first_version(service, state, deployments, versions, terms)
    in_force_spec = spec if state.phase == "Stable" else in_force(stable.spec, spec)
    in_force_spec = with_closed(in_force_spec, state.untried, state.refused)
    is_unanswered = is_undecided and not (state.lacks_baseline or has_answered(gate, stable))
    sleeps = spec.scaling.may_sleep and not state.is_of_precision and state.phase != "Stable"
    if is_unanswered and (sleeps or refusal is not None):
        state = replace(state, wants_candidate=False)
    if is_unanswered and spec.scaling.may_sleep and state.phase == "Candidate":
        # It is woken to answer first, so that one device is enough for both.
        scaling = in_force_spec.scaling.model_copy(update={"min_replicas": 1})
        in_force_spec = in_force_spec.model_copy(update={"scaling": scaling})
    edits = {each for each, version in versions.items() if _is_version(version, state.digest)}
    if state.phase == "Candidate" and edits & serving:
        # Rolled out while gates were off, it serves until the version in force does.
        state = replace(state, wants_candidate=False)
    may_serve = _serving_versions(revisions)
    tried = edits if state.wants_candidate and state.phase != "Stable" else set[Ref]()
    former = [
        each
        for each, version in versions.items()
        if version is not None and version not in may_serve and each not in tried | serving
    ]
    builder = edited.builder_version if edited is not None else terms.builder_version
    candidate = ObservedService(
        ref=ref.candidate,
        uid=service.uid,
        created=service.created,
        generation=service.generation,
        spec=_candidate_spec(spec, state, stable, filter(None, map(versions.get, tried))),
        update=state.update,
        gated=GatedVersion(state.digest.partition("/")[0], builder),
        status=_candidate_status(service.status, spec, state),
    )
    return SplitService(
        observed=service,
        state=state,
        service=replace(
            service,
            spec=in_force_spec,
            update=stable.update if state.phase != "Stable" else state.update,
            gated=GatedVersion(stable.digest, stable.builder_version),
            status=_with_pins(service.status, in_force_spec, stable),
        ),
        candidate=candidate if state.wants_candidate else None,
        tried=frozenset(tried),
        former=tuple(sorted(former)),
        own=frozenset(
            each for each, version in versions.items() if _is_version(version, stable.digest)
        ),
        moved=_moved(ref, workloads, former, tried),
    )


def _first_version(
    service: ObservedService,
    state: VersionState,
    deployments: _Deployments,
    versions: Mapping[Ref, str | None],
    terms: SplitTerms,
) -> SplitService:
    """Return a service of which no version was in force yet."""
    workloads, serving = deployments
    assert service.spec is not None  # noqa: S101 - it is gated
    builders = [each.record.builder_version for each in workloads if each.record is not None]
    version = GatedVersion(state.digest, max(builders, default=terms.builder_version))
    # Those of an edit before that were tried are opened by no verdict on this one.
    others = _other_versions(versions, state.digest) - serving
    return SplitService(
        observed=service,
        state=state,
        service=replace(service, spec=_first_spec(service.spec, state), gated=version),
        former=tuple(sorted(others)),
        moved=_moved(service.ref, workloads, others),
    )


def _serving_versions(revisions: Iterable[ServiceRevision]) -> frozenset[str]:
    """Return the versions that may serve users, also with each of their precisions that may."""
    return frozenset(
        version
        for each in revisions
        if each.number
        for version in (each.digest, *(f"{each.digest}/{name}" for name in tried_precisions(each)))
    )


def _other_versions(versions: Mapping[Ref, str | None], digest: str) -> frozenset[Ref]:
    """Return the Deployments of gated versions other than this one."""
    return frozenset(
        each
        for each, version in versions.items()
        if version is not None and not _is_version(version, digest)
    )


def _moved(
    ref: Ref, workloads: Iterable[Workload], former: Collection[Ref], tried: Collection[Ref] = ()
) -> tuple[tuple[Identity, Ref], ...]:
    """Return under which name the replicas of a service's Deployments are planned."""
    return tuple(
        (
            (ref, each.variant, each.template_digest),
            ref.candidate if each.ref in tried else Ref(ref.namespace, f"former/{ref.name}"),
        )
        for each in workloads
        if each.ref in tried or each.ref in former
    )


def _first_spec(spec: InferenceServiceSpec, state: VersionState) -> InferenceServiceSpec:
    """Return the spec of a first version: with one replica until its gate let it pass."""
    if state.is_closed:
        return _with_replicas(spec, int(state.wants_candidate))
    if state.phase != "Passed":
        return spec
    return with_one_precision(spec, state.precision)


def _version_of(workload: Workload, last: CandidateStatus | None) -> str | None:
    """Return the version of a Deployment, with its precision, if its selector proves it.

    By its record, or by that of the version that was tried last: the operator alone writes the
    status, so who edits the annotation opens no replica to users.
    """
    records = (workload.record, last.pod_template_version if last is not None else None)
    proven = (
        record.gated
        for record in records
        if record is not None and template_digest(record) == workload.template_digest
    )
    return next(proven, None)


def _is_version(version: str | None, digest: str) -> bool:
    """Return whether a Deployment is of a version, in any precision if the digest names none."""
    return version is not None and digest in {version, version.partition("/")[0]}


def _candidate_spec(
    spec: InferenceServiceSpec,
    state: VersionState,
    stable: ServiceRevision,
    running: Iterable[str],
) -> InferenceServiceSpec:
    """Return the spec with one replica, and no new slices for it.

    It stays in the precision that is `running`. No replica of an untried precision of the version
    in force is wanted before one would be chosen.
    """
    names = {*listed_precisions(spec.precision)}
    present = {precision for each in running if (precision := each.partition("/")[2])}
    if present:
        closed = names - {min(present)}
    elif state.phase == "Stable":
        closed = names - state.untried | state.refused
    else:
        # The edit changes nothing in these, so it is not judged by them.
        closed = {
            each
            for each in names & state.untried
            if digest_in(spec, state.update, each) == digest_in(stable.spec, stable.update, each)
        }
    if closed < names:
        spec = with_closed(spec, closed)
    placement = spec.placement.model_copy(update={"mig": "Existing"})
    replicas = 0 if state.phase == "Stable" else 1
    return _with_replicas(spec, replicas).model_copy(update={"placement": placement})


def _with_replicas(spec: InferenceServiceSpec, replicas: int) -> InferenceServiceSpec:
    """Return the spec with at most one replica, for which no budget is bound to pay."""
    bounds = {
        "mode": "Native",
        "min_replicas": 0,
        "max_replicas": 1,
        "schedules": (),
        "paused": None,
    }
    scaling = spec.scaling.model_copy(update=bounds)
    return spec.model_copy(update={"replicas": replicas, "scaling": scaling})


def _candidate_status(
    status: InferenceServiceStatus, spec: InferenceServiceSpec, state: VersionState
) -> InferenceServiceStatus:
    """Return what is known of the version that is tried: what it shares is resolved already."""
    last, edited = status.candidate, state.candidate
    if last is not None and last.digest != state.digest:
        last = None
    models = [
        *((last.model,) if last is not None else ()),
        *((edited.model,) if edited is not None else ()),
        status.model,
    ]
    model = next(filter(None, (_of_spec(each, spec) for each in models)), None)
    model = _with_draft(model, models, spec)
    precisions = [
        *(last.precisions if last is not None else ()),
        *(edited.precisions if edited is not None else ()),
        *status.precisions,
    ]
    return InferenceServiceStatus(
        model=model,
        precisions=_distinct(precisions),
        variant=last.variant if last is not None else None,
        templates=last.templates if last is not None else (),
        start=status.start,
    )


def _with_pins(
    status: InferenceServiceStatus, spec: InferenceServiceSpec, stable: ServiceRevision
) -> InferenceServiceStatus:
    """Return the status with what the version in force was resolved to, so that it stays.

    What was found out while it was tried is handed over.
    """
    last = status.candidate
    commit = stable.model.revision if stable.model is not None else None
    models = (status.model, last.model if last is not None else None, stable.model)
    known = (each for each in models if each is not None and _of_spec(each, spec) is not None)
    model = next((each for each in known if commit in (None, each.revision)), status.model)
    model = _with_draft(model, models, spec)
    precisions = _distinct(
        [*status.precisions, *(last.precisions if last is not None else ()), *stable.precisions]
    )
    if model is status.model and precisions == status.precisions:
        return status
    return status.model_copy(update={"model": model, "precisions": precisions})


def _with_draft(
    model: ModelStatus | None, known: Iterable[ModelStatus | None], spec: InferenceServiceSpec
) -> ModelStatus | None:
    """Return a model with what is known of the draft that the spec names, if that is more."""
    draft = spec.engine.draft
    drafts = (each.draft for each in known if each is not None and each.draft is not None)
    if model is None or draft is None:
        return model
    wanted = draft.uri, draft.revision
    read = next((each for each in drafts if (each.uri, each.requested_revision) == wanted), None)
    if read is None or read == model.draft:
        return model
    return model.model_copy(update={"draft": read})


def _of_spec(model: ModelStatus | None, spec: InferenceServiceSpec) -> ModelStatus | None:
    """Return what is known of a model if it is that of the spec."""
    written = spec.model.uri, spec.model.revision
    same = model is not None and (model.uri, model.requested_revision) == written
    return model if same else None


def _distinct(precisions: Sequence[PrecisionStatus]) -> tuple[PrecisionStatus, ...]:
    by_files = dict[tuple[str, str, str | None], PrecisionStatus]()
    for each in precisions:
        by_files.setdefault((each.precision, each.uri, each.requested_revision), each)
    return tuple(by_files.values())


def services_in_force(
    services: Sequence[ObservedService], revisions: Sequence[ServiceRevision]
) -> Sequence[ObservedService]:
    """Return the services with the version in force of those whose changes wait for a gate."""
    if not revisions:
        return services
    own = by_service(revisions)
    return [
        _in_force(service.uid, service, own[service.ref])
        if service.ref in own and is_gated(service)
        else service
        for service in services
    ]


@reused_per_object
def _in_force(
    _uid: str, service: ObservedService, revisions: tuple[ServiceRevision, ...]
) -> ObservedService:
    split = _split(service.ref, service, revisions, None, ((), frozenset()), SplitTerms())
    return split.service if split.state.stable is not None else service
