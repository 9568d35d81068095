"""Grants of budgets to services and batches."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TypeAlias

from tessera.domain.batch import batches
from tessera.domain.batch.names import billing_ref
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.budget.meter import SpendMeter
from tessera.domain.budget.namespaces import group_by_namespace, in_namespaces
from tessera.domain.budget.state import (
    RESERVED_DURATION,
    BudgetState,
    Grant,
    GrantRequest,
    grant_requests,
    joined_grants,
)
from tessera.domain.incremental import reused_per_object
from tessera.domain.observed.snapshot import Pod, Ref
from tessera.domain.placement.placement import CLASS_RANKS
from tessera.domain.scaling.state import ScalingHistory
from tessera.domain.service.current_objects import pods_of_variant
from tessera.domain.service.proposal import Proposal, guaranteed_replicas, termination_time
from tessera.domain.service.replica_count import history_from_status
from tessera.domain.service.variant_counts import VariantCount
from tessera.domain.steps import Step

_Member: TypeAlias = Proposal | batches.ProposedBatch


def grant_replicas(
    proposals: Mapping[Ref, Proposal],
    batch_proposals: Mapping[Ref, batches.ProposedBatch],
    unclaimed: Mapping[str, Sequence[Pod]],
    budgets: Sequence[BudgetView],
    scaling_history: Mapping[Ref, ScalingHistory],
) -> tuple[Mapping[Ref, Grant | Exception], tuple[BudgetView, ...]]:
    """Return the grants of all services and batches for which a budget, open or closed, decides,
    and the budgets with what is left after them.

    An exception in place of a grant sets its service or batch aside: nothing is added to it. What
    `unclaimed` pods cost, by namespace, is committed as long as they run.
    """
    if not budgets:
        return {}, ()
    services = group_by_namespace((ref, proposals[ref]) for ref in sorted(proposals))
    runs = group_by_namespace((ref, batch_proposals[ref]) for ref in sorted(batch_proposals))
    grants, granted = dict[Ref, Grant | Exception](), list[BudgetView]()
    for budget in budgets:
        view, names = budget, budget.namespaces
        members: tuple[_Member, ...] = (
            *in_namespaces(names, services),
            *in_namespaces(names, runs),
        )
        others = tuple(in_namespaces(names, unclaimed))
        if members or others:
            histories = {
                ref: scaling_history[ref]
                for ref in map(_billed_ref, members)
                if ref in scaling_history
            }
            own, view = granted_of_tenant(names, view, members, others, histories)
            grants |= own
        granted.append(view)
    return grants, tuple(granted)


@reused_per_object
def _granted(
    _namespaces: tuple[str, ...],
    view: BudgetView,
    members: tuple[_Member, ...],
    unclaimed: tuple[Pod, ...],
    scaling_history: Mapping[Ref, ScalingHistory],
) -> tuple[Mapping[Ref, Grant | Exception], BudgetView]:
    """Return the grants of one tenant, and its budget with what is left."""
    view = replace(view, state=deepcopy(view.state))
    for pod in unclaimed:
        running = view.meter.running.get(pod.uid)
        if running is not None and pod.terminating:
            view.state.reserve_termination(running.tariff, RESERVED_DURATION, 1)
        elif running is not None:
            view.state.reserve_min_replicas(running.tariff, 1)
    return grant_tenant(view.meter, view.state, members, scaling_history), view


granted_of_tenant = Step(
    _granted,
    lambda error, _names, view, members, *_: (
        {_billed_ref(member): error for member in members},
        view,
    ),
)


def _grant_members(
    meter: SpendMeter,
    state: BudgetState,
    members: Sequence[_Member],
    scaling_history: Mapping[Ref, ScalingHistory],
) -> Mapping[Ref, Grant | Exception]:
    """Return the grants of one tenant: its services by class and name, then its batches."""
    requests: list[GrantRequest] = []
    errors: dict[Ref, Grant | Exception] = {}
    # Classes for which people wait are granted first, then names decide.
    for member in sorted(members, key=_class_rank):
        claims = claims_of(member, meter, state, scaling_history)
        if isinstance(claims, Exception):
            errors[_billed_ref(member)] = claims
        else:
            requests += claims
    grants: dict[Ref, dict[int, Grant]] = defaultdict(dict)
    for request, grant in zip(requests, grant_requests(state, requests), strict=True):
        grants[request.ref][request.index] = grant
    return errors | {
        ref: joined_grants([parts[index] for index in sorted(parts)])
        for ref, parts in grants.items()
    }


def _class_rank(member: _Member) -> int:
    if not isinstance(member, Proposal):
        return len(CLASS_RANKS)
    if member.service.ref != member.service.ref.base:
        return len(CLASS_RANKS) + 1  # a version that is tried serves no user
    spec = member.service.spec
    return CLASS_RANKS[spec.service_class] if spec is not None else 0


grant_tenant = Step(
    _grant_members,
    lambda error, _meter, _state, members, _history: {
        _billed_ref(member): error for member in members
    },
)


def _billed_ref(member: _Member) -> Ref:
    if isinstance(member, Proposal):
        return member.service.ref
    return billing_ref(member.situation.batch.ref)


def _read_claims(
    member: _Member,
    meter: SpendMeter,
    state: BudgetState,
    scaling_history: Mapping[Ref, ScalingHistory],
) -> tuple[GrantRequest, ...]:
    """Return what a service or batch requests; what it holds beside that is committed."""
    if isinstance(member, Proposal):
        _commit_running(member, meter, state)
        return _grant_requests(member, scaling_history.get(member.service.ref))
    member.charge_live_pods(meter, state)
    return member.claims


claims_of = Step(_read_claims, lambda error, *_: error)


def _commit_running(proposal: Proposal, meter: SpendMeter, budget_state: BudgetState) -> None:
    """Commit what running pods cost beside the request of their service.

    Pods of a service without a choice stay unchanged, and pods of a previous variant run until the
    new one is ready: those within the minimum for as long as it takes.
    """
    guaranteed = {pod.ref for pod in _guaranteed_previous(proposal)}
    variants = {count.choice.variant for count in proposal.counts}
    for pod in proposal.objects.pods:
        running = meter.running.get(pod.uid)
        if running is not None and (not variants or pod.ref in guaranteed):
            budget_state.reserve_min_replicas(running.tariff, 1, proposal.service.ref)
        elif running is not None and pod.variant not in variants:
            budget_state.reserve_termination(
                running.tariff, RESERVED_DURATION, 1, proposal.service.ref
            )


def _grant_requests(
    proposal: Proposal, known_history: ScalingHistory | None
) -> tuple[GrantRequest, ...]:
    """Return the requests of a service, one for each variant, in the order of what they cost."""
    spec = proposal.service.spec
    if spec is None:
        return ()
    history = known_history or history_from_status(proposal.service.status)
    counts, pods_by_index = proposal.counts, _pods_by_index(proposal)
    minimums = _minimums(
        counts, pods_by_index, guaranteed_replicas(spec) - len(_guaranteed_previous(proposal))
    )
    requests = []
    for index in sorted(range(len(counts)), key=lambda index: _by_cost(counts[index])):
        count, pods, minimum = counts[index], pods_by_index[index], minimums[index]
        # What is ready within the minimum goes on, whatever the last cycle knew of the variant; but
        # what a rollout has started beside the others would be one more for good.
        decided, ready = _running(proposal, count, history), min(minimum, _count_ready(pods))
        is_rolling = proposal.objects.replaces_template(count.choice.variant)
        running = decided if decided is not None and is_rolling else max(decided or 0, ready)
        requests.append(
            GrantRequest(
                ref=proposal.service.ref,
                index=index,
                tariff=count.choice.offer.tariff.paid_for(proposal.service.ref),
                min_replicas=minimum,
                desired=count.replicas,
                running=running,
                existing_pods=len(pods),
                termination_time=termination_time(spec),
            )
        )
    return tuple(requests)


def _pods_by_index(proposal: Proposal) -> Sequence[Sequence[Pod]]:
    return [pods_of_variant(proposal.objects.pods, count.choice) for count in proposal.counts]


def _count_ready(pods: Sequence[Pod]) -> int:
    return sum(pod.takes_requests for pod in pods)


def _minimums(
    counts: Sequence[VariantCount], pods: Sequence[Sequence[Pod]], missing: int
) -> Sequence[int]:
    """Return how many replicas of each variant are within the minimum of their service.

    Those that are ready come first, then those that are there, then new ones; the cheapest first.
    So a replica that starts to replace a ready one is beyond it until it is ready.
    """
    minimums = [0] * len(counts)
    order = sorted(range(len(counts)), key=lambda index: _by_cost(counts[index]))
    existing = [sum(not pod.terminating for pod in each) for each in pods]
    desired = [count.replicas for count in counts]
    for most in ([_count_ready(each) for each in pods], existing, desired):
        for index in order:
            added = min(most[index], desired[index]) - minimums[index]
            added = max(0, min(added, missing))
            minimums[index] += added
            missing -= added
    return minimums


def _guaranteed_previous(proposal: Proposal) -> Sequence[Pod]:
    """Return the ready pods of previous variants that the minimum of their service keeps."""
    spec, variants = proposal.service.spec, {count.choice.variant for count in proposal.counts}
    if spec is None:
        return ()
    pods = [
        pod for pod in proposal.objects.pods if pod.variant not in variants and pod.takes_requests
    ]
    pods.sort(key=lambda pod: pod.ref)
    return pods[: guaranteed_replicas(spec)]


def _by_cost(count: VariantCount) -> tuple[int, int]:
    """Order by tier, as nodes that are paid anyway come first, then by price."""
    choice = count.choice
    tiers = ("Reserved", "OnDemand", "Spot")
    return tiers.index(choice.offer.tier), choice.hourly.nanos


def _running(proposal: Proposal, count: VariantCount, history: ScalingHistory) -> int | None:
    """Return the replicas of a variant that the last cycle desired; None of one that is new."""
    objects, reference = proposal.objects, proposal.counts[0].choice.variant
    # What was decided last, if that is known: the owner of the namespace may scale a Deployment.
    decided = {}
    if history.decisions:
        decided[reference] = history.decisions[-1].replicas
    if len(proposal.counts) > 1 and history.counts:
        decided = dict(history.counts)
    if decided:
        return decided.get(count.choice.variant)
    if len(proposal.counts) == 1:
        return max((workload.replicas for workload in objects.workloads), default=0)
    workload = objects.workload_of(count.choice.variant)
    return workload.replicas if workload is not None else 0
