"""Gated services as they are planned: the version in force, and beside it the one that is tried.

The version that is tried is planned as a small service of its own, with one replica that serves no
user. So sizing, budgets, placement and files treat it as any other, and the version in force knows
nothing of it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from tessera.api.gate_reasons import GateAccepted
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.ref import Ref
from tessera.api.service_status import (
    CandidateStatus,
    InferenceServiceStatus,
    ModelStatus,
    PrecisionStatus,
)
from tessera.domain.hardware.pools import admits
from tessera.domain.incremental import reused, reused_per_object
from tessera.domain.model.fetched import fetched_files
from tessera.domain.model.names import model_job_name
from tessera.domain.model.precision_files import spec_in
from tessera.domain.observed.gates import GatedVersion, ObservedGate, ServiceRevision
from tessera.domain.observed.model_jobs import ObservedModelJob
from tessera.domain.observed.snapshot import Node, ObservedService, Pod, Snapshot, Workload
from tessera.domain.quality.change import in_force
from tessera.domain.quality.rollout_state import (
    VersionState,
    digest_of,
    is_gated,
    rollout_state,
)
from tessera.domain.schedules import in_window
from tessera.domain.service.pinned_revision import PinnedRevision, pinned_spec
from tessera.domain.service.preparation.precisions import shape_job_names
from tessera.domain.service.preparation.shape import with_known_files
from tessera.domain.service.template_version import template_digest
from tessera.domain.steps import Step

# Variant and template digest of the Deployment that replicas belong to.
_Identity = tuple[Ref, str, str]
# Those of a service, and which of them serve users.
_Deployments = tuple[tuple[Workload, ...], frozenset[Ref]]
MovedT = TypeVar("MovedT", Pod, Workload)


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
    moved: tuple[tuple[_Identity, Ref], ...] = ()
    """Under which name the replicas of both are planned."""
    is_window_open: bool = False
    """A replica of the version in force may lend its device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedFleet:
    """The fleet as it is planned, with what was decided on the versions of gated services."""

    snapshot: Snapshot
    services: Mapping[Ref, SplitService] = field(default_factory=dict)
    errors: Mapping[Ref, Exception] = field(default_factory=dict)
    """What was raised for a service, which is set aside: all of its objects stay as they are."""

    @property
    def candidates(self) -> Mapping[Ref, SplitService]:
        """Return the services of which a version is tried, by the name of that version."""
        return {
            each.candidate.ref: each
            for each in self.services.values()
            if each.candidate is not None
        }


def split_candidates(observed: Snapshot, builder_version: int) -> GatedFleet:
    """Return the fleet with the version in force of each service, and those that are tried.

    The latter come after all services. `builder_version` is what new templates are made with.
    """
    gated = _gated_services(observed.services)
    if not gated:
        return GatedFleet(snapshot=observed)
    refs = {service.ref for service in gated}
    revisions = _by_service(each for each in observed.revisions if each.service in refs)
    workloads = _by_service(each for each in observed.workloads if each.service in refs)
    gates = {gate.ref: gate for gate in observed.gates}
    serving = {
        (pod.service, pod.variant, pod.template_digest)
        for pod in observed.pods
        if pod.service in refs and pod.takes_requests
    }
    services, errors = dict[Ref, SplitService](), dict[Ref, Exception]()
    for service in gated:
        ref, own = service.ref, workloads.get(service.ref, ())
        identities = {each.ref: (ref, each.variant, each.template_digest) for each in own}
        serves = frozenset(each for each, identity in identities.items() if identity in serving)
        split = split_service(
            service,
            revisions.get(ref, ()),
            gates,
            (own, serves),
            builder_version,
            at=observed.at,
        )
        if isinstance(split, SplitService):
            services[ref] = split
        else:
            errors[ref] = split
    planned = tuple(
        services[each.ref].service if each.ref in services else each for each in observed.services
    )
    fleet = GatedFleet(
        snapshot=replace(observed, services=planned), services=services, errors=errors
    )
    moved = dict(each for split in services.values() for each in split.moved)
    candidates = fleet.candidates
    if not moved and not candidates:
        return fleet
    pods = _moved(observed.pods, moved)
    snapshot = replace(
        fleet.snapshot,
        services=(*planned, *(aimed(each, observed, pods) for each in candidates.values())),
        pods=pods,
        workloads=_moved(observed.workloads, moved),
    )
    return replace(fleet, snapshot=_with_jobs(snapshot, candidates))


@reused
def _gated_services(services: tuple[ObservedService, ...]) -> tuple[ObservedService, ...]:
    return tuple([service for service in services if is_gated(service)])


OwnedT = TypeVar("OwnedT", ServiceRevision, Workload)


def _by_service(objects: Iterable[OwnedT]) -> Mapping[Ref, tuple[OwnedT, ...]]:
    by_service = defaultdict[Ref, list[OwnedT]](list)
    for each in objects:
        by_service[each.service].append(each)
    return {ref: tuple(sorted(own, key=lambda each: each.ref)) for ref, own in by_service.items()}


def _split_service(
    service: ObservedService,
    revisions: tuple[ServiceRevision, ...],
    gates: Mapping[Ref, ObservedGate],
    deployments: _Deployments,
    builder_version: int,
    *,
    at: datetime,
) -> SplitService:
    spec = service.spec
    assert spec is not None  # noqa: S101 - it is gated
    known, stable = {each.ref.name for each in revisions}, service.status.stable_revision
    if stable is not None and stable not in known:
        # Without it the edited version would pass as a first one.
        raise ValueError(
            f"ControllerRevision/{stable}, which is in force, is not there or not read"
        )
    gate, window = Ref(service.ref.namespace, spec.rollout.gate_ref or ""), spec.rollout.gate_window
    split = _split(service.ref, service, revisions, gates.get(gate), deployments, builder_version)
    return replace(split, is_window_open=window is not None and in_window(window, at))


split_service = Step[..., SplitService | Exception](_split_service, lambda error, *_, **_n: error)


@reused_per_object
def _split(
    ref: Ref,
    service: ObservedService,
    revisions: tuple[ServiceRevision, ...],
    gate: ObservedGate | None,
    deployments: _Deployments,
    builder_version: int,
) -> SplitService:
    workloads, serving = deployments
    versions = {each.ref: _version_of(each, service.status.candidate) for each in workloads}
    running = frozenset(filter(None, versions.values()))
    state = rollout_state(service, revisions, gate, running)
    spec, stable, edited = service.spec, state.stable, state.candidate
    assert spec is not None  # noqa: S101 - it is gated
    if stable is None:
        builders = [each.record.builder_version for each in workloads if each.record is not None]
        version = GatedVersion(state.digest, max(builders, default=builder_version))
        return SplitService(observed=service, state=state, service=replace(service, gated=version))
    in_force_spec = spec if state.phase == "Stable" else in_force(stable.spec, spec)
    is_undecided = state.phase == "Candidate" and state.wants_candidate
    is_unanswered = is_undecided and not _has_answered(gate, stable)
    refusal = gate.refusal if gate is not None and is_undecided else None
    is_misjudged = refusal is not None and refusal.reason is GateAccepted.JUDGE_UNRELIABLE
    if is_misjudged or (is_unanswered and (spec.scaling.may_sleep or refusal is not None)):
        # Nothing asks it, so it would be paid for until somebody corrects suite or judge.
        state = replace(state, wants_candidate=False)
    if is_unanswered and spec.scaling.may_sleep:
        # It is woken to answer first, so that one device is enough for both.
        scaling = in_force_spec.scaling.model_copy(update={"min_replicas": 1})
        in_force_spec = in_force_spec.model_copy(update={"scaling": scaling})
    if state.phase == "Candidate" and state.digest in map(versions.get, serving):
        # Rolled out while gates were off, it serves until the version in force does.
        state = replace(state, wants_candidate=False)
    numbered = {each.digest for each in revisions if each.number}
    tried = {each for each, version in versions.items() if version == state.digest}
    tried = tried if state.wants_candidate else set()
    former = [
        each
        for each, version in versions.items()
        if version is not None and version not in numbered and each not in tried | serving
    ]
    builder = edited.builder_version if edited is not None else builder_version
    candidate = ObservedService(
        ref=ref.candidate,
        uid=service.uid,
        created=service.created,
        generation=service.generation,
        spec=_candidate_spec(spec),
        update=state.update,
        gated=GatedVersion(state.digest, builder),
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
        moved=tuple(
            (
                (ref, each.variant, each.template_digest),
                ref.candidate if each.ref in tried else Ref(ref.namespace, f"former/{ref.name}"),
            )
            for each in workloads
            if each.ref in tried or each.ref in former
        ),
    )


def _has_answered(gate: ObservedGate | None, stable: ServiceRevision) -> bool:
    """Return whether the answers of the version in force are known, or no gate asks for them."""
    if gate is None or gate.spec is None:
        return True
    suite = gate.status.suite
    key = digest_of(stable), gate.spec.suite.digest or (suite.digest if suite is not None else "")
    return any((each.digest, each.suite) == key for each in gate.status.answers)


def _version_of(workload: Workload, last: CandidateStatus | None) -> str | None:
    """Return the digest of the version of a Deployment, if its selector proves it.

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


def _candidate_spec(spec: InferenceServiceSpec) -> InferenceServiceSpec:
    """Return the spec with one replica, for which no budget is bound to pay, and no new slices."""
    bounds = {
        "mode": "Native",
        "min_replicas": 0,
        "max_replicas": 1,
        "schedules": (),
        "paused": None,
    }
    return spec.model_copy(
        update={
            "replicas": 1,
            "scaling": spec.scaling.model_copy(update=bounds),
            "placement": spec.placement.model_copy(update={"mig": "Existing"}),
        }
    )


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
    if model is not None and model.draft is None and status.model is not None:
        model = model.model_copy(update={"draft": status.model.draft})
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
    precisions = _distinct(
        [*status.precisions, *(last.precisions if last is not None else ()), *stable.precisions]
    )
    if model is status.model and precisions == status.precisions:
        return status
    return status.model_copy(update={"model": model, "precisions": precisions})


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


def _moved(objects: tuple[MovedT, ...], targets: Mapping[_Identity, Ref]) -> tuple[MovedT, ...]:
    """Return the objects with those of certain Deployments under another service.

    No service has the name of those of a former version: they hold their devices, no more.
    """
    services = {service for service, _, _ in targets}
    return tuple(
        replace(each, service=target)
        if each.service in services
        and (target := targets.get((each.service, each.variant, each.template_digest)))
        else each
        for each in objects
    )


def _aimed(split: SplitService, observed: Snapshot, pods: Sequence[Pod]) -> ObservedService:
    """Return the version that is tried on the pool where most replicas run, if it has a device.

    There speed and price compare. Otherwise placement decides, also among the nodes of tier Spot
    where no other has a device, whatever the class is: no user waits for the answers.
    """
    candidate = split.candidate
    assert candidate is not None  # noqa: S101 - it is tried
    spec, last = candidate.spec, split.observed.status.candidate
    assert spec is not None  # noqa: S101 - same
    named = spec.placement.pools
    pools = {
        pool.name: pool.spec
        for pool in observed.pools
        if pool.spec is not None
        and admits(pool.spec, candidate.ref.namespace)
        and (not named or pool.name in named)
    }
    if split.tried:
        pool = pools.get(last.variant.pool) if last is not None and last.variant else None
        return _on_spot(candidate) if pool is not None and pool.tier == "Spot" else candidate
    free = {
        name: _free_devices(pool.node_selector, observed.nodes, pods)
        for name, pool in pools.items()
    }
    replicas = [pod for pod in pods if pod.service == split.service.ref and pod.takes_requests]
    if replicas:
        counts = Counter(pod.variant for pod in replicas)
        variant = min(counts, key=lambda name: (-counts[name], name))
        variants = split.observed.status.all_variants
        most = next((each for each in variants if each.name == variant), None)
        name = most.pool if most is not None else ""
        if most is not None and not any("spec.precision" in path for path in split.state.changes):
            candidate = _with_precision(candidate, most.precision)
        devices = Counter(next(pod.devices for pod in replicas if pod.variant == variant))
        if any(devices <= left for left in free.get(name, ())):
            return _with_placement(candidate, pools=(name,))
    tiers = {
        pools[name].tier for name, nodes in free.items() if any(left.total() > 0 for left in nodes)
    }
    if "Spot" in tiers and not tiers & {*spec.placement.tiers}:
        return _on_spot(candidate)
    return candidate


def _free_devices(
    selector: Mapping[str, str], nodes: Sequence[Node], pods: Sequence[Pod]
) -> Sequence[Counter[str]]:
    """Return the devices that no pod holds, of each node of a pool, by resource."""
    free = {
        node.name: Counter(node.allocatable)
        for node in nodes
        if node.schedulable and selector.items() <= node.labels.items()
    }
    for pod in pods:
        if pod.node in free and pod.ended is None:
            free[pod.node].subtract(pod.devices)
    return list(free.values())


def _with_placement(candidate: ObservedService, **placement: object) -> ObservedService:
    spec = candidate.spec
    assert spec is not None  # noqa: S101 - it is tried
    update = {"placement": spec.placement.model_copy(update=placement)}
    return replace(candidate, spec=spec.model_copy(update=update))


def _with_precision(candidate: ObservedService, precision: str) -> ObservedService:
    """Return the version in one precision alone, besides that of the model's files."""
    spec = candidate.spec
    assert spec is not None  # noqa: S101 - it is tried
    listed = tuple(each for each in spec.precision.variants if each.precision == precision)
    update = {"precision": spec.precision.model_copy(update={"variants": listed})}
    return replace(candidate, spec=spec.model_copy(update=update))


def _on_spot(candidate: ObservedService) -> ObservedService:
    """Return the version in a class that may run there, on nodes of tier Spot alone."""
    candidate, spec = _with_placement(candidate, tiers=("Spot",)), candidate.spec
    if spec is None or candidate.spec is None or spec.service_class != "Interactive":
        return candidate
    update = {"service_class": "Standard"}
    return replace(candidate, spec=candidate.spec.model_copy(update=update))


aimed = Step(_aimed, lambda _error, split, *_: split.candidate or split.service)


def _with_jobs(snapshot: Snapshot, candidates: Mapping[Ref, SplitService]) -> Snapshot:
    """Return the snapshot with the Jobs for the files of versions that are tried under these."""
    by_service = defaultdict[Ref, list[ObservedModelJob]](list)
    for job in snapshot.model_jobs:
        if job.service.candidate in candidates:
            by_service[job.service].append(job)
    if not by_service:
        return snapshot
    tried = frozenset[str]().union(
        *(tried_jobs(candidates[ref.candidate].service, jobs) for ref, jobs in by_service.items())
    )
    jobs = tuple(
        replace(job, service=job.service.candidate) if job.uid in tried else job
        for job in snapshot.model_jobs
    )
    pods = tuple(
        replace(pod, model_job_run=replace(run, service=run.service.candidate))
        if (run := pod.model_job_run) is not None and run.job_uid in tried
        else pod
        for pod in snapshot.pods
    )
    return replace(snapshot, model_jobs=jobs, pods=pods)


def _tried_jobs(service: ObservedService, jobs: Sequence[ObservedModelJob]) -> frozenset[str]:
    """Return the UIDs of the Jobs that are not for files of the version in force.

    Speculation acts at once, so the draft model is that of the version in force.
    """
    names = _job_names(service)
    return frozenset(job.uid for job in jobs if job.task != "draft" and job.ref.name not in names)


tried_jobs = Step(_tried_jobs, lambda *_: frozenset[str]())


def _job_names(service: ObservedService) -> frozenset[str]:
    """Return the names of the Jobs for the files of the version in force."""
    known = with_known_files(service)
    spec = known.spec
    assert spec is not None  # noqa: S101 - it is gated
    pinned = pinned_spec(spec, PinnedRevision(service.status.model))
    precisions = (None, *(variant.precision for variant in spec.precision.variants))
    return frozenset(
        {
            *shape_job_names(service, spec),
            model_job_name(service.ref.name, service.uid, "shape", pinned.model),
            *(
                files.job_name
                for precision in precisions
                for files in fetched_files(spec_in(pinned, None, precision))
            ),
        }
    )


def services_in_force(
    services: Sequence[ObservedService], revisions: Sequence[ServiceRevision]
) -> Sequence[ObservedService]:
    """Return the services with the version in force of those whose changes wait for a gate."""
    if not revisions:
        return services
    by_service = _by_service(revisions)
    return [
        _in_force(service.uid, service, by_service[service.ref])
        if service.ref in by_service and is_gated(service)
        else service
        for service in services
    ]


@reused_per_object
def _in_force(
    _uid: str, service: ObservedService, revisions: tuple[ServiceRevision, ...]
) -> ObservedService:
    return _split(service.ref, service, revisions, None, ((), frozenset()), 1).service
