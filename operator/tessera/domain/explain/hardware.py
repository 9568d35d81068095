"""Explanation of the placement: the chosen hardware, and what would change the choice."""

from collections.abc import Iterator, Sequence
from decimal import Decimal

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.meta import Condition
from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.domain.explain.alternatives import alternatives, exclusion_reason, pool_exclusion
from tessera.domain.explain.decision import Decision, Numbers
from tessera.domain.explain.free_capacity import pool_view, required_replicas
from tessera.domain.hardware.pools import PoolView
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.placement.checks import shape_of
from tessera.domain.placement.free_hardware import cheapest_free, replicas_free_now
from tessera.domain.placement.placement import (
    HardwareCandidate,
    HardwareChoice,
    hardware_candidates,
    price_order,
)
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.sizing.sizing import ReplicaFit


def explain_placed(
    snapshot: Snapshot, plan: Plan, service_plan: ServicePlan, placed: Condition
) -> Decision:
    """Return the decision about the hardware, with all other hardware of the fleet."""
    spec, choice = service_plan.service.spec, service_plan.choice
    candidates = (
        _all_candidates(plan, spec)
        if spec is not None and service_plan.accepted.reason.is_true
        else []
    )
    return Decision(
        topic="placed",
        reason=placed.reason,
        message=placed.message,
        numbers=() if choice is None else _numbers(snapshot, plan, choice, service_plan),
        alternatives=tuple(alternatives(snapshot, plan, service_plan, candidates)),
        would_change=(placed.message,)
        if choice is None
        else tuple(_would_change(snapshot, plan, service_plan, candidates, choice)),
    )


def _numbers(
    snapshot: Snapshot, plan: Plan, choice: HardwareChoice, service_plan: ServicePlan
) -> Numbers:
    offer, view = choice.offer, pool_view(plan, choice.offer.pool)
    replicas = service_plan.scale.replicas
    total_hourly = choice.hourly.times(replicas)
    return (
        ("hardware", f"{offer.hardware.name} of {offer.hardware.product}"),
        ("pool", f"{offer.pool} ({offer.tier})"),
        ("price per replica", f"{choice.hourly.formatted(4)} per hour"),
        (
            "total price",
            f"{total_hourly.formatted(4)} per hour for {counted(replicas, 'replica')}",
        ),
        (
            "free capacity",
            f"{replicas_free_now(snapshot, view, offer)} of "
            f"{counted(offer.replicas, 'replica')} in the pool",
        ),
        *_layout_reasons(view, service_plan.service.ref),
    )


def _layout_reasons(view: PoolView, service: Ref) -> Iterator[tuple[str, str]]:
    """Yield why the pool's layout plan assigns the service its slices, if it does."""
    status = view.pool.status.mig
    target = status.target if status is not None else None
    for assignment in target.services if target is not None else ():
        if assignment.service == str(service) and assignment.message:
            yield "layouts", assignment.message


def _all_candidates(plan: Plan, spec: InferenceServiceSpec) -> list[HardwareCandidate]:
    """Return the model on all hardware of all pools, allowed or not."""
    shape = shape_of(spec)
    if shape is None:
        return []
    return hardware_candidates(spec, shape, [offer for view in plan.pools for offer in view.offers])


def _would_change(
    snapshot: Snapshot,
    plan: Plan,
    service_plan: ServicePlan,
    candidates: Sequence[HardwareCandidate],
    chosen: HardwareChoice,
) -> Iterator[str]:
    """Yield what the chosen pool lacks, then what would make other pools the choice."""
    spec = service_plan.service.spec
    if spec is None:
        return
    if unschedulable := sum(pod.unschedulable is not None for pod in service_plan.pods):
        yield (
            f"{unschedulable} more free {chosen.offer.hardware.name} in {chosen.offer.pool}, or "
            f"{counted(unschedulable, 'replica')} fewer"
        )
        if free := cheapest_free(snapshot, service_plan.service, chosen):
            yield (
                f"{free.offer.hardware.name} of {free.offer.pool} at {free.hourly.formatted(4)} "
                "per hour is free, for another service: a running one stays on one kind of hardware"
            )
    choices = sorted(
        (
            HardwareChoice(offer=candidate.offer, fit=candidate.fit)
            for candidate in candidates
            if isinstance(candidate.fit, ReplicaFit)
        ),
        key=price_order,
    )
    compared_pools = {chosen.offer.pool}
    for other_choice in choices:
        pool = other_choice.offer.pool
        if pool not in compared_pools and not exclusion_reason(
            plan, service_plan, other_choice.offer
        ):
            compared_pools.add(pool)
            yield from _changes_for(snapshot, plan, service_plan, chosen, other_choice)
    other_pools = {
        option.offer.pool
        for option in choices
        if not pool_exclusion(plan, service_plan, option.offer)
        and option.offer.pool not in compared_pools
        and option.hourly.currency == chosen.hourly.currency
    }
    if other_pools:
        yield (
            f"{', '.join(sorted(other_pools))} in spec.placement.pools: the model fits there too, "
            "and the cheapest allowed pool is chosen"
        )
    elif compared_pools == {chosen.offer.pool}:
        yield "the model fits in no other pool; a new pool would be compared by price"


def _changes_for(
    snapshot: Snapshot,
    plan: Plan,
    service_plan: ServicePlan,
    chosen: HardwareChoice,
    other_choice: HardwareChoice,
) -> Iterator[str]:
    """Yield what would make the best hardware of another pool the choice."""
    pool = other_choice.offer.pool
    chosen_price = chosen.offer.comparison_price
    other_price = other_choice.offer.comparison_price
    price = pool_view(plan, pool).price
    if other_price.nanos <= chosen_price.nanos:
        yield _cheaper_message(snapshot, plan, service_plan, other_choice)
    elif price is not None:
        limit = price.per_gpu_hour * Decimal(chosen_price.nanos) / other_price.nanos
        moved = "; but a running service is not moved" if service_plan.workload is not None else ""
        yield (
            f"a price below {limit:.2f} {price.currency} per GPU and hour in {pool} (now "
            f"{price.per_gpu_hour}) would make {other_choice.variant} the cheapest{moved}"
        )


def _cheaper_message(
    snapshot: Snapshot, plan: Plan, service_plan: ServicePlan, other_choice: HardwareChoice
) -> str:
    free = replicas_free_now(snapshot, pool_view(plan, other_choice.offer.pool), other_choice.offer)
    required = required_replicas(service_plan)
    if free < required:
        return (
            f"{required - free} more free {other_choice.offer.hardware.name} in "
            f"{other_choice.offer.pool}, at {other_choice.hourly.formatted(4)} per hour, would "
            "be chosen if the service were created again"
        )
    return (
        f"if created again, the service would be placed on {other_choice.variant} at "
        f"{other_choice.hourly.formatted(4)} per hour; while it runs it is not moved"
    )
