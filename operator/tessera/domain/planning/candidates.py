"""The device of a version that is tried, and its plan beside that of the version in force.

A free one is taken, wherever the service may run and as long as nothing else wants it. Else the
version in force lends that of a replica which neither its floor nor the load of the last half hour
needs, and within `spec.rollout.gateWindow` one of the floor, as for a rollout in place.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from tessera.api.precision import CHECKPOINT
from tessera.api.ref import Ref
from tessera.api.service_status import CandidateStatus
from tessera.api.text import counted, differ_in_more_than_amounts
from tessera.domain.budget.state import Grant
from tessera.domain.incremental import reused_per_object
from tessera.domain.placement.candidates import free_replicas
from tessera.domain.placement.cover import Need
from tessera.domain.placement.variant_cost import served_by
from tessera.domain.planning.service_plan import GatedPlan, ServicePlan, VariantPlan
from tessera.domain.quality.candidates import GatedFleet
from tessera.domain.quality.readiness import VersionReadiness, version_readiness
from tessera.domain.quality.split_service import SplitService
from tessera.domain.rollout.devices import ready_nodes
from tessera.domain.rollout.template_rollout import START_TOLERANCE
from tessera.domain.scaling.decisions import needed_lately
from tessera.domain.scaling.starts import expected_lead
from tessera.domain.service.proposal import Proposal
from tessera.domain.service.variant_counts import VariantCount
from tessera.domain.steps import Step, error_text


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateDevices:
    """Which versions that are tried have a device, and what the others wait for."""

    proposals: Mapping[Ref, Proposal]
    """Those of all services, without the replicas that lend their device."""
    grants: Mapping[Ref, Grant | Exception]
    """The grants, with what sets a service aside."""
    missing: Mapping[Ref, str] = field(default_factory=dict)
    """Why a version has no device, by the name that it is planned under; the others have one."""


class _Device(NamedTuple):
    """The device of one version, or what it waits for."""

    key: tuple[str, str] = ("", "")
    """Pool and resource."""
    devices: int = 0
    missing: str | None = None
    lent: Proposal | None = None
    """The proposal of the version in force that lends it."""


class _Timely(NamedTuple):
    """What passing time decides of a service and of the version that is tried."""

    is_overdue: bool
    readiness: VersionReadiness | None


def proposals_in_force(
    fleet: GatedFleet, proposals: Mapping[Ref, Proposal]
) -> Mapping[Ref, Proposal]:
    """Return the proposals without those of versions that are tried."""
    candidates = fleet.candidates
    if not candidates:
        return proposals
    return {ref: each for ref, each in proposals.items() if ref not in candidates}


def candidate_devices(
    fleet: GatedFleet,
    proposals: Mapping[Ref, Proposal],
    grants: Mapping[Ref, Grant | Exception],
    allocated: Mapping[tuple[str, str], int],
) -> CandidateDevices:
    """Return the devices of the versions that are tried, after all that was proposed.

    `allocated` has the devices of all services, by pool and resource. What is tried takes what is
    left of them, what runs first and then by name.
    """
    if not fleet.services and not fleet.errors:
        return CandidateDevices(proposals=proposals, grants=grants)
    lending, missing, used = dict(proposals), dict[Ref, str](), dict(allocated)
    candidates = {
        ref: split for ref, split in fleet.candidates.items() if is_wanted(split, proposals[ref])
    }
    missing.update(dict.fromkeys(fleet.candidates.keys() - candidates.keys(), ""))
    for ref in candidates:
        wanted = wanted_devices(proposals[ref], grants.get(ref))
        used[wanted.key] = used.get(wanted.key, 0) - wanted.devices
    for ref in sorted(candidates, key=lambda ref: (not proposals[ref].objects.pods, ref)):
        split, stable = candidates[ref], proposals[ref.base]
        device = candidate_device(
            split,
            stable,
            proposals[ref],
            (grants.get(ref.base), grants.get(ref)),
            used,
            at=fleet.snapshot.at,
        )
        if device.missing is not None:
            missing[ref] = device.missing
            continue
        used[device.key] = used.get(device.key, 0) + device.devices
        if device.lent is not None:
            lending[ref.base] = device.lent
    return CandidateDevices(proposals=lending, grants={**grants, **fleet.errors}, missing=missing)


def _is_wanted(split: SplitService, proposal: Proposal) -> bool:
    """Return whether a replica is wanted; of a precision only if it would be chosen."""
    spec = proposal.service.spec
    return split.state.phase != "Stable" or spec is None or spec.fixed_replicas != 0


is_wanted = Step(_is_wanted, lambda *_: False)


def _wanted_devices(proposal: Proposal, grant: Grant | Exception | None) -> _Device:
    """Return what was allocated for the replica of a version that is tried."""
    if not proposal.counts:
        return _Device()
    count, offer = proposal.counts[0], proposal.counts[0].choice.offer
    is_granted = grant is None or (isinstance(grant, Grant) and bool(grant.replicas))
    replicas = max(count.existing, int(is_granted))
    return _Device((offer.pool, offer.hardware.resource), replicas * offer.hardware.devices)


wanted_devices = Step(_wanted_devices, lambda *_: _Device())


def _candidate_device(
    split: SplitService,
    stable: Proposal,
    tried: Proposal,
    granted: tuple[Grant | Exception | None, Grant | Exception | None],
    used: Mapping[tuple[str, str], int],
    *,
    at: datetime,
) -> _Device:
    """Return the device; `granted` is what the version in force and the one that is tried got."""
    stable_grant, grant = granted
    if not tried.counts or isinstance(grant, Exception):
        verdict = tried.placement.verdict
        is_valid = tried.accepted.reason.is_true
        return _Device(missing=verdict.message if is_valid else tried.accepted.message)
    if grant is not None and not grant.replicas:
        return _Device(missing=grant.shortage or tried.placement.verdict.message)
    offer = tried.counts[0].choice.offer
    key, devices = (offer.pool, offer.hardware.resource), offer.hardware.devices
    # No node is started for it.
    if free_replicas(offer, used) - offer.startable_replicas >= 1:
        return _Device(key, devices)
    is_short = isinstance(stable_grant, Exception) or (
        stable_grant is not None and stable_grant.shortage is not None
    )
    lent = None if is_short else _lent(split, stable, tried, at)
    if lent is None:
        return _Device(missing=_no_device(split, stable, tried, at))
    return _Device(key, 0, lent=lent)


candidate_device = Step(
    _candidate_device,
    lambda error, *_, **_n: _Device(missing=f"planning raised {error_text(error)}"),
)


def _lent(split: SplitService, stable: Proposal, tried: Proposal, at: datetime) -> Proposal | None:
    """Return the proposal of the version in force with one replica less, if it may lend a device.

    One that its load does not need leaves the floor as it is. Within a window one of the floor may
    be away, as in a rollout in place, and never the last one that is ready. What is down lends
    that of a replica which is not.
    """
    lender, floor = _lender(stable, tried), stable.disruptions.floor
    if lender is None or not (
        _is_of_none(split, stable, lender) or _may_lend(split, stable, tried, lender, at)
    ):
        return None
    fewer = lender._replace(replicas=lender.replicas - 1)
    return replace(
        stable,
        counts=tuple(fewer if each is lender else each for each in stable.counts),
        disruptions=stable.disruptions._replace(floor=max(1, min(floor, stable_pods(stable) - 1))),
    )


def _lender(stable: Proposal, tried: Proposal) -> VariantCount | None:
    """Return the replicas of the version in force on the hardware of the one that is tried.

    Once one of them is away, it is wanted wherever there may be room.
    """
    offer = tried.counts[0].choice.offer
    lenders = [each for each in stable.counts if each.replicas]
    same = [
        each
        for each in lenders
        if (each.choice.offer.pool, each.choice.offer.hardware) == (offer.pool, offer.hardware)
    ]
    if any(workload.replicas for workload in tried.objects.workloads):
        ready = Counter(pod.variant for pod in stable.objects.pods if pod.takes_requests)
        same += [each for each in lenders if each.replicas > ready[each.choice.variant]]
        same.sort(key=lambda each: each.replicas <= ready[each.choice.variant])
    return same[0] if same else None


def _is_of_none(split: SplitService, stable: Proposal, lender: VariantCount) -> bool:
    """Return whether the device serves no user: the version is down, and a replica is not ready."""
    version, variant = split.state.stable, lender.choice.variant
    ready = sum(pod.takes_requests and pod.variant == variant for pod in stable.objects.pods)
    return version is not None and version.is_down and ready < lender.replicas


def stable_pods(stable: Proposal) -> int:
    """Return the replicas that the version in force is to have."""
    return sum(count.replicas for count in stable.counts)


def _may_lend(
    split: SplitService, stable: Proposal, tried: Proposal, lender: VariantCount, at: datetime
) -> bool:
    objects, desired = stable.objects, stable_pods(stable)
    healthy, floor = len(stable.disruptions.healthy), stable.disruptions.floor
    is_rolling = any(objects.replaces_template(each.choice.variant) for each in stable.counts)
    runs = any(pod.node is not None for pod in tried.objects.pods)
    is_leaving = any(pod.draining_since is not None for pod in objects.pods)
    is_lowered = sum(workload.replicas for workload in objects.workloads) < desired
    is_away = runs or is_leaving or is_lowered
    if desired < 2 or is_rolling:
        return False
    if not split.is_window_open:
        is_lent = is_away and any(workload.replicas for workload in tried.objects.workloads)
        if not _is_needless(stable, lender, at, is_lent=is_lent):
            return False
    if runs:
        # It runs: the device goes back where another replica is away.
        return healthy >= max(1, floor - 1)
    if is_away:
        return healthy >= max(1, min(floor, desired) - 1)
    starts = any(pod.node is None or not pod.takes_requests for pod in objects.pods)
    return healthy >= max(2, floor) and not starts


def _is_needless(
    stable: Proposal, lender: VariantCount, at: datetime, *, is_lent: bool = False
) -> bool:
    """Return whether neither floor nor the load of the last half hour need the one that would lend.

    Once it `is_lent`, the load of now decides, and one that is not known asks for nothing: so a
    restart of the operator ends no gate.
    """
    history, healthy = stable.scale.history, stable.disruptions.healthy
    needed = needed_lately(history, at)
    if is_lent:
        needed = history.needs[-1].replicas if history.needs else 0
    if needed is None or history.unit is None:
        return False
    left = Counter(pod.variant for pod in stable.objects.pods if pod.ref in healthy)
    if not is_lent or len(healthy) >= stable_pods(stable):
        left[lender.choice.variant] -= 1
    served = served_by((each.choice, left[each.choice.variant]) for each in stable.counts)
    capacity = needed * history.unit.capacity
    need = Need(capacity, stable.disruptions.floor, stable.need.firm_pods)
    return need.beside(served).is_met


def _no_device(split: SplitService, stable: Proposal, tried: Proposal, at: datetime) -> str:
    """Return why each of the ways to a device is closed."""
    spec, offer = split.service.spec, tried.counts[0].choice.offer
    window = spec.rollout.gate_window if spec is not None else None
    healthy, pods = len(stable.disruptions.healthy), stable_pods(stable)
    lender = _lender(stable, tried)
    free = f"no {offer.hardware.resource} of AcceleratorPool/{offer.pool} is free"
    needless = f"the load of the last 30 minutes needs the {counted(pods, 'replica')}"
    if lender is None:
        needless = "no replica of the service has one"
    elif not stable.disruptions.allowed:
        needless = f"{stable.disruptions.desired_healthy} of {healthy} ready replicas stay anyway"
    elif not stable.scale.history.needs:
        needless = "the load of the last 30 minutes is not known"
    elif _is_needless(stable, lender, at):
        needless = "the replica that the load does not need may not go now"
    if window is None:
        return f"{free}, {needless}, and spec.rollout.gateWindow is not set: add a node, or set it"
    if not split.is_window_open:
        closed = f"spec.rollout.gateWindow ({window.cron} {window.time_zone}) is closed"
        return f"{free}, {needless}, and {closed}"
    return f"{free}, and none of the {healthy} ready replicas of {pods} may lend its device now"


def with_candidates(
    fleet: GatedFleet, devices: CandidateDevices, service_plans: Mapping[Ref, ServicePlan]
) -> Mapping[Ref, ServicePlan]:
    """Return the plans of services, each with that of the version that is tried."""
    if not fleet.services:
        return service_plans
    joined = {ref: each for ref, each in service_plans.items() if ref == ref.base}
    with_kubelet = ready_nodes("", fleet.snapshot.nodes)
    for ref, split in fleet.services.items():
        tried, missing = service_plans.get(ref.candidate), devices.missing.get(ref.candidate)
        if split.state.phase == "Stable" and missing is not None:
            # No edit waits for it, so nothing is said of the device that it has not.
            tried = None
        joined[ref] = joined_plan(
            split, joined[ref], tried, missing, with_kubelet, fleet.snapshot.at
        )
    return joined


def _joined_plan(
    split: SplitService,
    service_plan: ServicePlan,
    tried: ServicePlan | None,
    missing: str | None,
    with_kubelet: frozenset[str],
    at: datetime,
) -> ServicePlan:
    timely = _Timely(
        is_overdue=tried is not None and _is_overdue(split, service_plan, tried, at),
        readiness=_readiness(split, service_plan, with_kubelet, at),
    )
    return _joined(split.service.ref, split, service_plan, tried, missing, timely)


def _readiness(
    split: SplitService, service_plan: ServicePlan, with_kubelet: frozenset[str], at: datetime
) -> VersionReadiness | None:
    """Return what is known of the version in force; None before there is one."""
    stable, own = split.state.stable, _own_templates(split, service_plan)
    if stable is None:
        return None
    pods = [pod for pod in service_plan.pods if (pod.variant, pod.template_digest) in own]
    known = version_readiness(
        stable.readiness,
        service_plan.service.spec,
        pods,
        with_kubelet,
        expected_lead(service_plan.pods, split.observed.status.start, _variant_of(service_plan)),
        at,
    )
    if known.readiness == "Pending" and any(each.is_withdrawn for each in service_plan.variants):
        # A rollout took back the devices of a template that was not ready in time.
        return known._replace(readiness="Overdue", down_at=None)
    return known


def _as_said(missing: str | None, last: CandidateStatus | None) -> str | None:
    """Return what a device waits for, in the words of the status while only sums moved.

    They move in every cycle, and the status would be written as often.
    """
    said = last.missing_device if last is not None else None
    if missing is None or said is None:
        return missing
    # The status has the first 1,024 characters.
    return missing if differ_in_more_than_amounts(said, missing[:1024]) else said


def _own_templates(split: SplitService, service_plan: ServicePlan) -> frozenset[tuple[str, str]]:
    """Return variant and template digest of the Deployments of the version in force.

    They are those of its newest templates, and others that a record says are of it.
    """
    newest = {each.workload.ref for each in service_plan.variants if each.workload is not None}
    return frozenset(
        (each.variant, each.template_digest)
        for each in service_plan.workloads
        if each.ref in newest | split.own
    )


joined_plan = Step(_joined_plan, lambda _error, _split, service_plan, *_: service_plan)


@reused_per_object
def _joined(
    ref: Ref,
    split: SplitService,
    service_plan: ServicePlan,
    tried: ServicePlan | None,
    missing: str | None,
    timely: _Timely,
) -> ServicePlan:
    candidate = _as_written(split, service_plan, tried, missing) if tried is not None else None
    edited, state = candidate or service_plan, split.state
    if state.phase == "Stable" and tried is not None and tried.choice is not None:
        state = state.trying(tried.choice.fit.precision or CHECKPOINT)
    is_tried = candidate is not None or state.is_closed
    pods = sorted(edited.pods, key=lambda pod: (not pod.containers_ready, pod.ref))
    if state.is_closed:
        # No replica is open to users until the gate lets a first version pass; gates may ask it.
        closed = tuple(replace(pod, service=ref.candidate) for pod in service_plan.pods)
        drain = replace(service_plan.drain, draining=tuple(pod.ref for pod in closed))
        # The names of its Deployments say which version they are of.
        variants = tuple(replace(each, is_first=False) for each in service_plan.variants)
        service_plan = replace(service_plan, drain=drain, pods=closed, variants=variants)
    gated = GatedPlan(
        state=state,
        builder_version=edited.service.gated.builder_version if edited.service.gated else 1,
        is_resolved=_is_resolved(edited)
        and (candidate is not None or state.stable is None or state.phase == "Stable"),
        pod=next((pod for pod in pods if is_tried and not pod.terminating), None),
        missing_device=_as_said(missing, split.observed.status.candidate)
        if candidate is not None
        else None,
        is_overdue=timely.is_overdue,
        readiness=timely.readiness,
        is_restored=split.is_restored,
        own_templates=_own_templates(split, service_plan),
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
            _closed_variant(variant, has_device=missing is None) for variant in tried.variants
        ),
    )


def _closed_variant(variant: VariantPlan, *, has_device: bool) -> VariantPlan:
    replicas = min(1, variant.drain.replicas) if has_device else 0
    return replace(
        variant,
        drain=replace(variant.drain, replicas=replicas),
        waits=variant.waits or (variant.workload is None and not replicas),
        is_first=False,
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
    split: SplitService, service_plan: ServicePlan, tried: ServicePlan, at: datetime
) -> bool:
    """Return whether the replica that is tried did not get ready in time."""
    lead = expected_lead(service_plan.pods, split.observed.status.start, _variant_of(service_plan))
    return any(
        pod.bound is not None
        and not pod.containers_ready
        and not pod.terminating
        and at - pod.bound >= lead + START_TOLERANCE
        for pod in tried.pods
    )


def _variant_of(service_plan: ServicePlan) -> str:
    return service_plan.choice.variant if service_plan.choice is not None else ""
