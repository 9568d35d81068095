"""What a budget refuses a service that has no replica: a start, slices, and its model's files."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import PlacementReason, Progressing, ScalingReason, StatusVerdict
from tessera.api.ref import Ref
from tessera.domain.budget.state import RESERVED_DURATION, BudgetState, Grant
from tessera.domain.hardware.pools import PoolView, admits
from tessera.domain.incremental import reused_per_object
from tessera.domain.layout.shares import TenantShare
from tessera.domain.money import Tariff
from tessera.domain.placement.placement import PlacementDecision
from tessera.domain.service.preparation.claims import ModelClaim
from tessera.domain.service.preparation.preparation import Preparation
from tessera.domain.service.proposal import Proposal, guaranteed_replicas, termination_time

_NOT_PAID = (ScalingReason.BUDGET_EXHAUSTED, ScalingReason.GPU_QUOTA_EXCEEDED)


class PaidService(NamedTuple):
    """A service, and what its budget has left; without a budget nothing is refused."""

    proposal: Proposal
    grant: Grant | None
    state: BudgetState | None
    with_surge_capacity: frozenset[str]
    share: TenantShare | None
    views: Sequence[PoolView]


class BudgetRefusals(NamedTuple):
    """What a budget does not pay for."""

    surges: frozenset[str] = frozenset()
    """See `ServicePlanInputs`, as for the next two."""
    start: str | None = None
    preparation: str | None = None


@reused_per_object
def budget_refusals(_ref: Ref, paid: PaidService) -> BudgetRefusals:
    """Return what the budget of a service refuses it once all grants are made."""
    proposal, grant, state, variants, share, views = paid
    if state is None:
        return BudgetRefusals()
    return BudgetRefusals(
        unpaid_surges(proposal, grant, state, variants),
        start_refusal(proposal, grant, state, share),
        preparation_refusal(proposal, grant, state, views),
    )


def unpaid_surges(
    proposal: Proposal, grant: Grant | None, state: BudgetState, variants: Collection[str]
) -> frozenset[str]:
    """Return those of the variants of which a budget grants no replica beyond the desired ones.

    One that runs is reserved with all that run.
    """
    spec = proposal.service.spec
    desired = [count.replicas for count in proposal.counts] if grant is None else grant.counts
    if spec is None:
        return frozenset()
    span = max(RESERVED_DURATION, termination_time(spec))
    return frozenset(
        count.choice.variant
        for count, replicas in zip(proposal.counts, desired, strict=True)
        if count.choice.variant in variants
        and count.existing <= replicas
        and not state.has_room(count.choice.offer.tariff.paid_for(proposal.service.ref), span)
    )


def start_refusal(
    proposal: Proposal, grant: Grant | None, state: BudgetState, share: TenantShare | None
) -> str | None:
    """Return why a request would start no replica of a service that may have none and has none.

    None where the budget would pay for one of any of its variants. Of a service that waits for a
    layout, it is why none is planned for it.
    """
    spec, awaited = proposal.service.spec, proposal.placement.awaited
    if spec is None:
        return None
    if awaited is not None and share is not None and share.paid_replicas == 0:
        tariff = awaited.offer.tariff.paid_for(proposal.service.ref)
        floor = state.refuse_min_replica(tariff) if guaranteed_replicas(spec) else None
        refusal = state.refuse_always(tariff) or floor
        return refusal or _refusal(state, [tariff], _span_of(spec)) or _floor_refusal(state)
    if grant is None or grant.replicas or not proposal.counts:
        return None
    if spec.fixed_replicas is not None or guaranteed_replicas(spec):
        return None
    return _refusal(state, _tariffs(proposal), _span_of(spec))


def preparation_refusal(
    proposal: Proposal, grant: Grant | None, state: BudgetState, views: Sequence[PoolView]
) -> str | None:
    """Return why neither Jobs nor claims are made for the model of a service.

    None where it has or may have a replica. One that is not placed may have one where the budget
    would pay for the cheapest hardware that it may use.
    """
    spec = proposal.service.spec
    if spec is None or proposal.objects.pods:
        return None
    if grant is not None and grant.replicas:
        return None
    if not proposal.counts:
        return pool_refusal(proposal.service.ref.namespace, spec.placement.pools, state, views)
    if grant is not None and grant.shortage is not None and grant.reason in _NOT_PAID:
        return grant.shortage
    return _refusal(state, _tariffs(proposal), _span_of(spec))


def with_layout_refusal(placement: PlacementDecision, refusal: str | None) -> PlacementDecision:
    """Return the placement of a service for which no layout is planned, since none is paid."""
    if placement.awaited is None or refusal is None:
        return placement
    message = f"spec.placement.mig: no slice is planned and no node is started: {refusal}"
    return replace(placement, verdict=StatusVerdict(PlacementReason.BUDGET_EXHAUSTED, message))


def reading_refusal(proposal: Proposal, refusal: str | None) -> str | None:
    """Return why no Job is created that reads the shape of a model which is not known."""
    preparation = proposal.preparation
    if refusal is None or preparation is None or preparation.job_to_create is None:
        return None
    if preparation.missing_shape is None:
        return None
    uri = preparation.spec.model.uri
    return f"spec.model.uri: no Job reads the config.json of {uri}: {refusal}"


def without_unpaid(
    preparation: Preparation, claims: tuple[ModelClaim, ...], refusal: str | None
) -> tuple[Preparation, tuple[ModelClaim, ...]]:
    """Return what is made for the model of a service: of an unpaid one only what exists, as it is.

    Its Jobs that run go on, and no claim of it is created or grows.
    """
    if refusal is None:
        return preparation, claims
    existing = tuple(
        replace(claim, gib=claim.volume.gib) for claim in claims if claim.volume is not None
    )
    if preparation.job_to_create is None and len(existing) == len(claims):
        return preparation, existing
    missing = preparation.missing_files
    if missing is not None:
        message = f"no file of {preparation.spec.model.uri} is downloaded: {refusal}"
        missing = StatusVerdict(Progressing.BUDGET_EXHAUSTED, message)
    return replace(preparation, job_to_create=None, missing_files=missing), existing


def pool_refusal(
    namespace: str, pools: Sequence[str], state: BudgetState, views: Sequence[PoolView]
) -> str | None:
    """Return why the budget pays for a replica in none of the pools that a namespace may use."""
    tariffs = [
        offer.tariff
        for view in views
        if admits(view.pool.spec, namespace) and (not pools or view.pool.name in pools)
        for offer in view.offers
    ]
    return _refusal(state, tariffs, RESERVED_DURATION)


def _span_of(spec: InferenceServiceSpec) -> timedelta:
    """Return the time for which a replica is paid before it is added."""
    return max(RESERVED_DURATION, termination_time(spec))


def _tariffs(proposal: Proposal) -> Sequence[Tariff]:
    service = proposal.service.ref
    return [count.choice.offer.tariff.paid_for(service) for count in proposal.counts]


def _refusal(state: BudgetState, tariffs: Sequence[Tariff], span: timedelta) -> str | None:
    """Return why the budget pays for a replica at none of the tariffs, without rising amounts."""
    if not tariffs:
        return state.closed.message if state.closed is not None else None
    refusals = [state.refuse_start(tariff, span) for tariff in tariffs]
    return refusals[0] if None not in refusals else None


def _floor_refusal(state: BudgetState) -> str:
    return (
        f"TenantBudget/{state.name} leaves too little for 1 replica of spec.scaling.minReplicas "
        "until the end of its windows. Raise spec.limits, or lower what other services of the "
        "tenant need."
    )
