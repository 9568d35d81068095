"""Explanation of the placement: the chosen hardware, and what would change the choice."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.meta import Condition
from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.domain.explain.alternatives import ServiceInFleet, alternatives
from tessera.domain.explain.variants import variant_changes
from tessera.domain.hardware.pools import PoolView
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.placement.candidates import (
    HardwareCandidate,
    HardwareChoice,
    by_price,
    fitting_choices,
    hardware_candidates,
    running_at_best,
)
from tessera.domain.placement.checks import shape_of
from tessera.domain.placement.free_hardware import beside_clause, cheapest_free
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.reporting.decision import Decision, Numbers
from tessera.domain.service.proposals import is_awaited_by_others


def explain_placed(
    snapshot: Snapshot, plan: Plan, service_plan: ServicePlan, placed: Condition
) -> Decision:
    """Return the decision about the hardware, with all other hardware of the fleet."""
    spec, chosen = service_plan.service.spec, service_plan.choice
    decision = Decision(
        topic="placed",
        reason=placed.reason,
        message=placed.message,
        would_change=(placed.message,),
    )
    if spec is None:
        return decision
    service = ServiceInFleet(snapshot=snapshot, plan=plan, service_plan=service_plan, spec=spec)
    running = {choice.variant for choice in service_plan.placement.choices}
    candidates = (
        _all_candidates(plan, spec, running) if service_plan.accepted.reason.is_true else []
    )
    choices = by_price(fitting_choices(candidates))
    decision = replace(decision, alternatives=tuple(alternatives(service, choices, candidates)))
    if chosen is None:
        return decision
    return replace(
        decision,
        numbers=_numbers(service, chosen),
        would_change=tuple(_would_change(service, choices, chosen)),
    )


def _numbers(service: ServiceInFleet, choice: HardwareChoice) -> Numbers:
    offer, service_plan = choice.offer, service.service_plan
    replicas, total = service_plan.desired_pods, service_plan.desired_hourly or choice.hourly
    of_several = ", first of several" if len(service_plan.variants) > 1 else ""
    return (
        ("hardware", f"{offer.hardware.name} of {offer.hardware.product}{of_several}"),
        ("pool", f"{offer.pool} ({offer.tier})"),
        ("price per replica", f"{choice.hourly.formatted(4)} per hour"),
        ("total price", f"{total.formatted(4)} per hour for {counted(replicas, 'replica')}"),
        (
            "free capacity",
            f"{service.free_replicas(offer)} of "
            f"{counted(offer.replicas - offer.startable_replicas, 'replica')} in the pool",
        ),
        *([("nodes", offer.startable.text)] if offer.startable is not None else []),
        *_layout_reasons(service.view_of(offer), service_plan.service.ref),
    )


def _layout_reasons(view: PoolView, service: Ref) -> Iterator[tuple[str, str]]:
    """Yield why the pool's layout plan assigns the service its slices, if it does."""
    status = view.pool.status.mig
    target = status.target if status is not None else None
    for assignment in target.services if target is not None else ():
        if assignment.service == str(service) and assignment.message:
            yield "layouts", assignment.message


def _all_candidates(
    plan: Plan, spec: InferenceServiceSpec, running: Collection[str]
) -> list[HardwareCandidate]:
    """Return the model on all hardware of all pools, allowed or not."""
    shape = shape_of(spec)
    if shape is None:
        return []
    offers = [offer for view in plan.pools for offer in view.offers]
    return [running_at_best(each, running) for each in hardware_candidates(spec, shape, offers)]


def _would_change(
    service: ServiceInFleet, choices: Sequence[HardwareChoice], chosen: HardwareChoice
) -> Iterator[str]:
    """Yield what the chosen pool lacks, then what would make other pools the choice."""
    service_plan = service.service_plan
    unschedulable = sum(pod.unschedulable is not None for pod in service_plan.pods)
    if unschedulable and chosen.offer.startable is not None:
        yield f"a new node in {chosen.offer.pool} ({chosen.offer.startable.text})"
    elif unschedulable:
        yield (
            f"{unschedulable} more free {chosen.offer.hardware.name} in {chosen.offer.pool}, or "
            f"{counted(unschedulable, 'replica')} fewer"
        )
        if free := cheapest_free(service.snapshot, service_plan.service, chosen):
            is_awaited = is_awaited_by_others(
                service.snapshot, service_plan.service.ref, free.offer
            )
            reason = beside_clause(
                service.spec, service_plan.placement, free, is_awaited=is_awaited
            )
            yield (
                f"{free.offer.hardware.name} of {free.offer.pool} at {free.hourly.formatted(4)} "
                f"per hour is free, {reason}"
            )
    compared_pools = {chosen.offer.pool}
    if service_plan.current_workloads:
        compared_pools |= {each.offer.pool for each in service_plan.placement.choices}
        yield from _variants(service)
    for other in choices:
        if other.offer.pool not in compared_pools and not service.exclusion_reason(other.offer):
            compared_pools.add(other.offer.pool)
            yield from _changes_for(service, chosen, other)
    other_pools = {
        option.offer.pool
        for option in choices
        if not service.pool_exclusion(option.offer)
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


def _variants(service: ServiceInFleet) -> Iterator[str]:
    """Yield what changes the variants of a service that runs; of several they say it."""
    if len(service.service_plan.variants) > 1:
        yield "where the next replica runs, and what moves one to another variant: see variants"
    else:
        yield from variant_changes(service)


def _changes_for(
    service: ServiceInFleet, chosen: HardwareChoice, other: HardwareChoice
) -> Iterator[str]:
    """Yield what would make the best hardware of another pool the choice."""
    chosen_price, other_price = chosen.offer.comparison_price, other.offer.comparison_price
    hourly = other.hourly.formatted(4)
    missing = service.required_replicas - service.possible_replicas(other.offer)
    price = service.view_of(other.offer).price
    is_better = by_price([chosen, other])[0] is other
    if is_better and missing > 0:
        yield (
            f"{missing} more free {other.offer.hardware.name} in {other.offer.pool}, at {hourly} "
            "per hour, would be chosen if the service were created again"
        )
    elif is_better:
        yield (
            f"if created again, the service would be placed on {other.variant} at {hourly} per "
            "hour; while it runs it is not moved"
        )
    elif price is not None and other_price.nanos:
        limit = price.per_gpu_hour * Decimal(chosen_price.nanos) / other_price.nanos
        moved = ""
        if service.service_plan.current_workloads:
            moved = "; but a running service is not moved"
        yield (
            f"a price below {limit:.2f} {price.currency} per GPU and hour in {other.offer.pool} "
            f"(now {price.per_gpu_hour}) would make {other.variant} the cheapest{moved}"
        )
