"""The device of a version that is tried, and its plan beside that of the version in force.

A free one is taken, wherever the service may run and as long as nothing else wants it. Within
`spec.rollout.gateWindow` the version in force lends one, as for a rollout in place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from tessera.api.ref import Ref
from tessera.domain.budget.state import Grant
from tessera.domain.incremental import reused_per_object
from tessera.domain.names import deployment_name
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.placement.candidates import free_replicas
from tessera.domain.planning.service_plan import GatedPlan, ServicePlan, VariantPlan
from tessera.domain.quality.candidates import GatedFleet, SplitService
from tessera.domain.rollout.template_rollout import START_TOLERANCE
from tessera.domain.scaling.starts import expected_lead
from tessera.domain.schedules import in_window
from tessera.domain.service.proposal import Proposal
from tessera.domain.service.variant_counts import VariantCount


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateDevices:
    """Which versions that are tried have a device, and what the others wait for."""

    proposals: Mapping[Ref, Proposal]
    """Those of all services, without the replicas that lend their device."""
    missing: Mapping[Ref, str] = field(default_factory=dict)
    """Why a version has no device, by the name that it is planned under; the others have one."""


def candidate_devices(
    fleet: GatedFleet,
    proposals: Mapping[Ref, Proposal],
    grants: Mapping[Ref, Grant | Exception],
    allocated: Mapping[tuple[str, str], int],
) -> CandidateDevices:
    """Return the devices of the versions that are tried, after all that was proposed.

    `allocated` has the devices of all services, by pool and resource.
    """
    lending, missing = dict[Ref, Proposal](), dict[Ref, str]()
    for ref, split in fleet.candidates.items():
        proposal, stable = proposals[ref], proposals[split.service.ref]
        grant = grants.get(ref)
        if not proposal.counts or isinstance(grant, Exception):
            missing[ref] = proposal.placement.verdict.message
            continue
        if grant is not None and not grant.replicas:
            missing[ref] = grant.shortage or proposal.placement.verdict.message
            continue
        count = proposal.counts[0]
        if _has_free_device(count, allocated):
            continue
        lent = None
        if not isinstance(other := grants.get(stable.service.ref), Exception):
            is_short = other is not None and other.shortage is not None
            lent = None if is_short else _lent(split, stable, proposal, fleet.snapshot.at)
        if lent is not None:
            lending[stable.service.ref] = lent
            continue
        missing[ref] = _no_device(split, stable, count, fleet.snapshot.at)
    if not lending:
        return CandidateDevices(proposals=proposals, missing=missing)
    return CandidateDevices(proposals={**proposals, **lending}, missing=missing)


def _has_free_device(count: VariantCount, allocated: Mapping[tuple[str, str], int]) -> bool:
    """Return whether the replica has a device that nothing else has or wants."""
    offer = count.choice.offer
    key = offer.pool, offer.hardware.resource
    others = max(0, allocated.get(key, 0) - max(1, count.existing) * offer.hardware.devices)
    # No node is started for it.
    return free_replicas(offer, {key: others}) - offer.startable_replicas >= 1


def _lent(split: SplitService, stable: Proposal, tried: Proposal, at: datetime) -> Proposal | None:
    """Return the proposal of the version in force with one replica less, if it may lend a device.

    One replica is away then, as in a rollout in place, and never the last one that is ready.
    """
    offer = tried.counts[0].choice.offer
    index = next(
        (
            index
            for index, count in enumerate(stable.counts)
            if (count.choice.offer.pool, count.choice.offer.hardware)
            == (offer.pool, offer.hardware)
            and count.replicas
        ),
        None,
    )
    if index is None or not _may_lend(split, stable, tried, at):
        return None
    count, floor = stable.counts[index], stable.disruptions.floor
    counts = list(stable.counts)
    counts[index] = count._replace(replicas=count.replicas - 1)
    return replace(
        stable,
        counts=tuple(counts),
        disruptions=stable.disruptions._replace(floor=max(1, min(floor, stable_pods(stable) - 1))),
    )


def stable_pods(stable: Proposal) -> int:
    """Return the replicas that the version in force is to have."""
    return sum(count.replicas for count in stable.counts)


def _may_lend(split: SplitService, stable: Proposal, tried: Proposal, at: datetime) -> bool:
    objects, desired = stable.objects, stable_pods(stable)
    healthy, floor = len(stable.disruptions.healthy), stable.disruptions.floor
    if desired < 2 or any(objects.replaces_template(c.choice.variant) for c in stable.counts):
        return False
    if any(pod.node is not None for pod in tried.objects.pods):
        # It runs: the device goes back where another replica is away.
        return healthy >= max(1, floor - 1)
    if not _is_open(split, at):
        return False
    is_leaving = any(pod.draining_since is not None for pod in objects.pods)
    is_lowered = sum(workload.replicas for workload in objects.workloads) < desired
    if is_leaving or is_lowered:
        return healthy >= max(1, min(floor, desired) - 1)
    starts = any(pod.node is None or not pod.takes_requests for pod in objects.pods)
    return healthy >= max(2, floor) and not starts


def _is_open(split: SplitService, at: datetime) -> bool:
    spec = split.service.spec
    window = spec.rollout.gate_window if spec is not None else None
    return window is not None and in_window(window, at)


def _no_device(split: SplitService, stable: Proposal, count: VariantCount, at: datetime) -> str:
    """Return which of the ways to a device is closed."""
    spec, offer = split.service.spec, count.choice.offer
    window = spec.rollout.gate_window if spec is not None else None
    free = f"no {offer.hardware.resource} of AcceleratorPool/{offer.pool} is free"
    if window is None:
        return f"{free}, and spec.rollout.gateWindow is not set: add a node, or set it"
    if not _is_open(split, at):
        return f"{free}, and spec.rollout.gateWindow ({window.cron} {window.time_zone}) is closed"
    healthy = len(stable.disruptions.healthy)
    return (
        f"{free}, and none of the {healthy} ready replicas of {stable_pods(stable)} may lend its "
        "device now"
    )


def with_candidates(
    fleet: GatedFleet, devices: CandidateDevices, service_plans: Mapping[Ref, ServicePlan]
) -> Mapping[Ref, ServicePlan]:
    """Return the plans of services, each with that of the version that is tried."""
    if not fleet.services:
        return service_plans
    joined = {ref: each for ref, each in service_plans.items() if ref == ref.base}
    for ref, split in fleet.services.items():
        if (service_plan := service_plans.get(ref)) is None:
            continue
        tried = service_plans.get(ref.candidate) if split.candidate is not None else None
        joined[ref] = _joined(
            ref,
            split,
            service_plan,
            tried,
            devices.missing.get(ref.candidate),
            _is_overdue(split, service_plan, tried, fleet.snapshot),
        )
    return joined


@reused_per_object
def _joined(
    _ref: Ref,
    split: SplitService,
    service_plan: ServicePlan,
    tried: ServicePlan | None,
    missing: str | None,
    is_overdue: bool,
) -> ServicePlan:
    candidate = _as_written(split, service_plan, tried, missing) if tried is not None else None
    edited = candidate or service_plan
    pods = (
        sorted(candidate.pods, key=lambda pod: (not pod.containers_ready, pod.ref))
        if (candidate is not None)
        else []
    )
    gated = GatedPlan(
        state=split.state,
        builder_version=edited.service.gated.builder_version if edited.service.gated else 1,
        is_resolved=_is_resolved(edited)
        and (candidate is not None or split.state.phase in {"First", "Stable"}),
        pod=next((pod for pod in pods if not pod.terminating), None),
        missing_device=missing if candidate is not None else None,
        is_overdue=is_overdue,
    )
    return replace(
        service_plan,
        # What was observed is compared with what is written.
        service=replace(service_plan.service, status=split.observed.status),
        gated=gated,
        candidate=candidate,
        removable_deployments=(*service_plan.removable_deployments, *split.former),
        is_moving=service_plan.is_moving or candidate is not None,
    )


def _as_written(
    split: SplitService, service_plan: ServicePlan, tried: ServicePlan, missing: str | None
) -> ServicePlan:
    """Return the plan of the version that is tried with the names and owner of its service.

    Its Deployment is the one that a rollout of the version would create.
    """
    spec, written = tried.service.spec, split.state.spec
    if spec is not None:
        names = ("replicas", "scaling", "placement")
        spec = spec.model_copy(update={name: getattr(written, name) for name in names})
    service = replace(tried.service, ref=split.service.ref, spec=spec)
    users = {split.service.ref: service_plan.service}
    return replace(
        tried,
        service=service,
        # Its replica is closed to users, and no disruption budget counts it.
        drain=replace(tried.drain, draining=tuple(pod.ref for pod in tried.pods), drained=()),
        claims=tuple(
            replace(
                claim,
                users=tuple(
                    {each.ref.base: users.get(each.ref.base, each) for each in claim.users}.values()
                ),
            )
            for claim in tried.claims
        ),
        variants=tuple(
            _variant_as_written(split, service_plan, variant, missing) for variant in tried.variants
        ),
    )


def _variant_as_written(
    split: SplitService, service_plan: ServicePlan, variant: VariantPlan, missing: str | None
) -> VariantPlan:
    ref, name = split.service.ref, variant.choice.variant
    # The first name stays with the version in force, and the new template has its digest.
    older = {each.ref for each in service_plan.workloads if each.variant == name}
    older.add(Ref(ref.namespace, deployment_name(ref.name, name)))
    replicas = 0 if missing is not None else min(1, variant.drain.replicas)
    return replace(
        variant,
        drain=replace(variant.drain, replicas=replicas),
        older=tuple(sorted(older)),
        waits=variant.waits or (variant.workload is None and not replicas),
    )


def _is_resolved(service_plan: ServicePlan) -> bool:
    """Return whether it is known what a version loads: commit, shape, and listed precisions."""
    preparation = service_plan.preparation
    return (
        bool(service_plan.variants)
        and service_plan.pinned_revision.query is None
        and (preparation is None or preparation.missing_shape is None)
        and not any(check.is_open for check in (preparation and preparation.precisions) or ())
    )


def _is_overdue(
    split: SplitService, service_plan: ServicePlan, tried: ServicePlan | None, snapshot: Snapshot
) -> bool:
    """Return whether the replica that is tried did not get ready in time."""
    if tried is None:
        return False
    lead = expected_lead(service_plan.pods, split.observed.status.start, _variant_of(service_plan))
    return any(
        pod.bound is not None
        and not pod.containers_ready
        and not pod.terminating
        and snapshot.at - pod.bound >= lead + START_TOLERANCE
        for pod in tried.pods
    )


def _variant_of(service_plan: ServicePlan) -> str:
    return service_plan.choice.variant if service_plan.choice is not None else ""
