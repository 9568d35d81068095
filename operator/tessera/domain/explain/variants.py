"""Explanation of the variants of a service: how many pods of each, why, and what moves them."""

from collections.abc import Iterator

from tessera.api.text import counted
from tessera.domain.explain.alternatives import ServiceInFleet
from tessera.domain.money import Money, money
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.cover import Need
from tessera.domain.placement.variant_cost import (
    PossibleMove,
    effective_price,
    possible_move,
    served_by,
)
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan, VariantPlan
from tessera.domain.reporting.decision import Decision, Numbers
from tessera.domain.status.variants import variant_statuses, variants_text


def explain_variants(
    snapshot: Snapshot, plan: Plan, service_plan: ServicePlan
) -> Iterator[Decision]:
    """Yield the decision how replicas are spread over variants; nothing while there is one."""
    spec, statuses = service_plan.service.spec, variant_statuses(service_plan)
    if spec is None or statuses is None:
        return
    placed = ServiceInFleet(snapshot=snapshot, plan=plan, service_plan=service_plan, spec=spec)
    choices = {each.choice.variant: each.choice for each in service_plan.variants}
    numbers: list[tuple[str, str]] = []
    for status in statuses:
        desired = counted(status.desired_replicas, "replica")
        hourly = money(status.per_hour, status.currency).formatted(4)
        text = (
            f"{status.ready_replicas} of {desired} ready, {status.tier} at {hourly} per hour each"
        )
        numbers.append((status.name, text))
        choice = choices.get(status.name)
        if choice is not None and (rate := choice.offer.preemptions_per_hour) > 0:
            effective = effective_price(choice, placed.start_of(choice)).formatted(4)
            numbers.append(("", f"compared as {effective}: {rate} preemptions per node and hour"))
        if status.message is not None:
            numbers.append(("", f"{status.reason}: {status.message}"))
    # What no pool offers comes first, then that with the highest cost.
    by_name = {status.name: status.reason for status in statuses}
    cheapest = sorted(choices.values(), key=placed.by_cost)
    reasons = [by_name.pop(choice.variant) for choice in cheapest][::-1]
    reasons = [*by_name.values(), *reasons]
    yield Decision(
        topic="variants",
        reason=next((reason for reason in reasons if reason is not None), "Spread"),
        message=variants_text(service_plan),
        numbers=(*numbers, *_total(service_plan)),
        would_change=tuple(variant_changes(placed)),
    )


def _total(service_plan: ServicePlan) -> Numbers:
    total = service_plan.desired_hourly
    if total is None:
        return ()
    replicas = counted(service_plan.desired_pods, "replica")
    return (("total price", f"{total.formatted(4)} per hour for {replicas}"),)


def variant_changes(placed: ServiceInFleet) -> Iterator[str]:
    """Yield where the next replica would run, and what would move one to a cheaper variant."""
    service_plan = placed.service_plan
    choices = sorted(service_plan.placement.choices, key=placed.by_cost)
    if len(choices) < 2:
        return
    following, cheapest = next_choice(placed), choices[0]
    if following is None:
        yield f"more devices: none of {', '.join(each.variant for each in choices)} has a free one"
    else:
        yield f"1 replica more would run on {_at_price(following)}"
    if following is not cheapest:
        device = f"{cheapest.offer.hardware.name} in {cheapest.offer.pool}"
        yield f"with 1 more free {device}, 1 replica more would run on {_at_price(cheapest)}"
    if any(pod.node is None for pod in service_plan.pods):
        return  # what waits comes first
    by_cost = sorted(service_plan.variants, key=lambda each: placed.by_cost(each.choice))
    for variant in reversed(by_cost):
        if variant.desired:
            for to in choices[: choices.index(variant.choice)]:
                yield from _move(placed, variant, to)


def _at_price(choice: HardwareChoice) -> str:
    return f"{choice.variant} at {choice.hourly.formatted(4)} per hour"


def next_choice(placed: ServiceInFleet) -> HardwareChoice | None:
    """Return the variant of one more replica: the cheapest with a free device, else with a node
    that may come."""
    choices = sorted(placed.service_plan.placement.choices, key=placed.by_cost)
    for room in (placed.free_replicas, placed.possible_replicas):
        for choice in choices:
            if room(choice.offer) > 0:
                return choice
    return None


def _move(placed: ServiceInFleet, variant: VariantPlan, to: HardwareChoice) -> Iterator[str]:
    """Yield when replicas of a variant move to a cheaper one."""
    source = variant.choice
    spare = _spare(placed)
    start = placed.start_of(to)
    if placed.free_replicas(to.offer) <= 0 and to.offer.startable is not None:
        start += to.offer.startable.expected_start
    move = possible_move(source, variant.desired, to, spare, start, placed.cash_of)
    if move is None:
        return
    needs_firm = source.offer.tier != "Spot" == to.offer.tier
    if not needs_firm or move.stopped <= spare.firm_pods:
        yield f"{_room(placed, move, to)}, {_saving(move, source, to)}"


def _spare(placed: ServiceInFleet) -> Need:
    """Return what the desired replicas have beyond what is needed."""
    variants = placed.service_plan.variants
    desired = served_by((each.choice, each.desired) for each in variants)
    return desired.beside(placed.service_plan.need)


def _room(placed: ServiceInFleet, move: PossibleMove, to: HardwareChoice) -> str:
    seconds = f"{move.wait.total_seconds():.0f} s"
    missing = move.started - placed.possible_replicas(to.offer)
    if missing > 0:
        device = f"{to.offer.hardware.name} in {to.offer.pool}"
        return f"with {missing} more free {device} for {seconds}"
    return f"once {to.variant} has had room for {seconds}"


def _saving(move: PossibleMove, source: HardwareChoice, to: HardwareChoice) -> str:
    saving = Money(move.saving, to.hourly.currency).formatted(4)
    paid = ", since reserved devices are paid anyway" if to.offer.tier == "Reserved" else ""
    return (
        f"{counted(move.stopped, 'replica')} of {source.variant} would move to "
        f"{counted(move.started, 'replica')} of {to.variant} and save {saving} per hour{paid}"
    )
