"""Gated services as they are planned: the version in force, and beside it the one that is tried.

The version that is tried is planned as a small service of its own, with one replica that serves no
user. So sizing, budgets, placement and files treat it as any other, and the version in force knows
nothing of it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TypeVar

from tessera.api.ref import Ref
from tessera.domain.hardware.pools import admits
from tessera.domain.incremental import reused
from tessera.domain.model.fetched import fetched_files
from tessera.domain.model.names import model_job_name
from tessera.domain.model.precision_files import (
    listed_precisions,
    open_precisions,
    spec_in,
    with_one_precision,
)
from tessera.domain.observed.gates import ServiceRevision
from tessera.domain.observed.model_jobs import ObservedModelJob
from tessera.domain.observed.snapshot import Node, ObservedService, Pod, Snapshot, Workload
from tessera.domain.quality.rollout_state import is_gated
from tessera.domain.quality.split_service import (
    Identity,
    SplitService,
    SplitTerms,
    by_service,
    split_service,
)
from tessera.domain.service.pinned_revision import PinnedRevision, pinned_spec
from tessera.domain.service.preparation.precisions import shape_job_names
from tessera.domain.service.preparation.shape import draft_as_model, with_known_files
from tessera.domain.steps import Step

NOTHING_KNOWN: Mapping[Ref, ServiceRevision] = {}
MovedT = TypeVar("MovedT", Pod, Workload)


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


def split_candidates(
    observed: Snapshot,
    builder_version: int,
    is_demanded: Callable[[str, str], bool] = lambda *_: False,
    last: Mapping[Ref, ServiceRevision] = NOTHING_KNOWN,
) -> GatedFleet:
    """Return the fleet with the version in force of each service, and those that are tried.

    The latter come after all services. `builder_version` is what new templates are made with. A
    gate `is_demanded` of services by namespace and class. `last` has their versions in force as
    they were known last.
    """
    gated = _gated_services(observed.services)
    if not gated:
        return GatedFleet(snapshot=observed)
    refs = {service.ref for service in gated}
    revisions = by_service(each for each in observed.revisions if each.service in refs)
    workloads = by_service(each for each in observed.workloads if each.service in refs)
    gates = {gate.ref: gate for gate in observed.gates}
    serving = {
        (pod.service, pod.variant, pod.template_digest)
        for pod in observed.pods
        if pod.service in refs and pod.takes_requests
    }
    services, errors = dict[Ref, SplitService](), dict[Ref, Exception]()
    for service in gated:
        ref, own, spec = service.ref, workloads.get(service.ref, ()), service.spec
        assert spec is not None  # noqa: S101 - it is gated
        identities = {each.ref: (ref, each.variant, each.template_digest) for each in own}
        serves = frozenset(each for each, identity in identities.items() if identity in serving)
        split = split_service(
            service,
            revisions.get(ref, ()),
            gates,
            (own, serves),
            SplitTerms(
                builder_version, is_demanded(ref.namespace, spec.service_class), last.get(ref)
            ),
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


def _moved(objects: tuple[MovedT, ...], targets: Mapping[Identity, Ref]) -> tuple[MovedT, ...]:
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
    if split.state.phase == "Stable":
        return candidate
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
        variants = {each.name: each for each in split.observed.status.all_variants}
        is_full = not any(left.total() > 0 for left in chain(*free.values()))
        spot = {
            each.name
            for each in variants.values()
            if each.pool in pools and pools[each.pool].tier == "Spot"
        }
        firm = sum(count for name, count in counts.items() if name not in spot)
        # Those of the floor that no spot node may have lend no device.
        stable = split.service.spec
        lends_spot = is_full and stable is not None and firm <= stable.scaling.floor
        variant = min(
            counts, key=lambda name: (lends_spot and name not in spot, -counts[name], name)
        )
        most = variants.get(variant)
        name = most.pool if most is not None else ""
        if most is not None and not any("spec.precision" in path for path in split.state.changes):
            candidate = _with_precision(candidate, most.precision)
        devices = Counter(next(pod.devices for pod in replicas if pod.variant == variant))
        # Where no device is free anywhere, the version in force may lend one.
        if (is_full and name in pools) or any(devices <= left for left in free.get(name, ())):
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
    """Return the version in one precision alone, if it has that."""
    spec = candidate.spec
    assert spec is not None  # noqa: S101 - it is tried
    if precision not in listed_precisions(spec.precision):
        return candidate
    return replace(candidate, spec=with_one_precision(spec, precision))


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
        *(tried_jobs(candidates[ref.candidate], jobs) for ref, jobs in by_service.items())
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


def _tried_jobs(split: SplitService, jobs: Sequence[ObservedModelJob]) -> frozenset[str]:
    """Return the UIDs of the Jobs that are not for files of the version in force."""
    names = _job_names(split.service)
    tried = {job.ref.name for job in jobs} - names
    if split.state.phase == "Stable" and split.candidate is not None:
        # Those of former versions are not of a precision that may be tried next.
        tried &= _job_names(split.candidate)
    return frozenset(job.uid for job in jobs if job.ref.name in tried)


tried_jobs = Step(_tried_jobs, lambda *_: frozenset[str]())


def _job_names(service: ObservedService) -> frozenset[str]:
    """Return the names of the Jobs for the files of the version in force."""
    known = with_known_files(service)
    spec = known.spec
    assert spec is not None  # noqa: S101 - it is gated
    pinned = pinned_spec(spec, PinnedRevision(service.status.model))
    precisions, draft = open_precisions(spec.precision), spec.engine.draft
    drafts = () if draft is None else (draft_as_model(spec, draft),)
    name, uid = service.ref.name, service.uid
    return frozenset(
        {
            *(model_job_name(name, uid, "draft", each) for each in drafts),
            *shape_job_names(service, spec),
            model_job_name(name, uid, "shape", pinned.model),
            *(
                files.job_name
                for precision in precisions
                for files in fetched_files(spec_in(pinned, None, precision))
            ),
        }
    )
