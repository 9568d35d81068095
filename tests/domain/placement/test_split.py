"""Wanted capacity as replicas of each variant: order of tiers, moves, and pods without a node."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.accelerator_pool import Tier
from tessera.api.reasons import VariantReason
from tessera.domain.hardware.pools import discover
from tessera.domain.incremental import FOREVER
from tessera.domain.money import NANO, Money
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.cover import CoverOption, Need, least_cover, total_of
from tessera.domain.placement.placement import place
from tessera.domain.placement.split import MAX_BACKOFF, split_replicas
from tessera.domain.placement.split_state import ReplicaSplit, VariantMemory, VariantPods
from tessera.domain.placement.variant_cost import capacity_of, cash_of
from tests.builders import NOW, a_node, a_pool, a_spec, at

START = timedelta(seconds=120)


@cache
def any_choice() -> HardwareChoice:
    views = discover([a_pool()], [a_node(whole=8)], NOW.date())
    choice = place(
        a_spec(), views, namespace="team-a", current=None, min_replicas=1, used_devices={}
    ).choice
    assert choice is not None
    return choice


def a_choice(
    pool: str, tier: Tier = "OnDemand", price: float = 6.0, speed: float = 1000.0
) -> HardwareChoice:
    choice = any_choice()
    hourly = Money(round(price * NANO), "USD")
    offer = replace(choice.offer, pool=pool, tier=tier, hourly=hourly, comparison_price=hourly)
    limits = replace(choice.fit.limits, tokens_per_second=speed)
    return HardwareChoice(offer=offer, fit=replace(choice.fit, limits=limits))


RESERVED = a_choice("reserved", "Reserved", 4.0)
ON_DEMAND = a_choice("on-demand", "OnDemand", 6.0)
SPOT = a_choice("spot", "Spot", 2.0)
R, D, S = RESERVED.variant, ON_DEMAND.variant, SPOT.variant


def pods_of(choice: HardwareChoice, ready: int = 0, free: int = 0, **fields: Any) -> VariantPods:
    fields = {"start": START, **fields}
    return VariantPods(variant=choice.variant, choice=choice, ready=ready, free=free, **fields)


def split(
    wanted: int,
    *variants: VariantPods,
    seconds: float = 0,
    floor: int = 0,
    most: int | None = None,
    **fields: Any,
) -> ReplicaSplit:
    """Split the capacity of so many replicas of the first variant, and `floor` pods of any."""
    need = Need(wanted * capacity_of(variants[0].choice), floor, floor, most)
    return split_replicas(need, variants, at=at(seconds), **fields)


def reasons_of(result: ReplicaSplit) -> Mapping[str, VariantReason]:
    return {change.variant: change.reason for change in result.changes}


def test_a_single_variant_gets_all_whatever_room_it_has() -> None:
    assert split(7, pods_of(RESERVED, 2)) == ReplicaSplit(replicas={R: 7})


def test_reserved_comes_first_and_on_demand_above_it() -> None:
    result = split(5, pods_of(ON_DEMAND, free=9), pods_of(RESERVED, 2, free=1))
    assert result.replicas == {R: 3, D: 2}
    assert reasons_of(result) == {
        R: VariantReason.LEAST_COST,
        D: VariantReason.CHEAPER_FULL,
    }
    assert "6.00 USD per hour" in result.changes[1].message


def test_without_room_anywhere_the_rest_waits_as_the_reference() -> None:
    result = split(5, pods_of(RESERVED, 2), pods_of(ON_DEMAND, 1))
    assert result.replicas == {R: 4, D: 1}
    assert reasons_of(result) == {R: VariantReason.INSUFFICIENT_CAPACITY}


def test_a_pod_without_a_device_goes_at_once_to_a_variant_with_a_free_one() -> None:
    waiting = pods_of(RESERVED, 2, pending=1, pending_since=NOW)
    result = split(3, waiting, pods_of(ON_DEMAND, free=1))
    assert result.replicas == {R: 2, D: 1}


def test_the_most_expensive_goes_first_when_less_is_wanted() -> None:
    result = split(2, pods_of(RESERVED, 2), pods_of(ON_DEMAND, 2))
    assert result.replicas == {R: 2, D: 0}
    assert reasons_of(result) == {D: VariantReason.SURPLUS}


def test_free_devices_come_before_nodes_that_may_come() -> None:
    cheap = a_choice("cheap", price=5.0)
    variants = pods_of(cheap, growth=9), pods_of(ON_DEMAND, free=1)
    assert split(3, *variants).replicas == {cheap.variant: 2, D: 1}


def test_the_last_replica_is_of_the_size_that_costs_least() -> None:
    slice_choice = a_choice("slices", price=3.5, speed=500.0)
    variants = pods_of(ON_DEMAND, 1, free=5), pods_of(slice_choice, free=5)
    assert split(2, *variants).replicas == {D: 2, slice_choice.variant: 0}
    half = a_choice("half", price=4.0, speed=600.0)
    variants = pods_of(half, 1, free=5), pods_of(ON_DEMAND, free=5)
    assert split(2, *variants).replicas == {half.variant: 2, D: 0}


def test_spot_takes_only_what_exceeds_the_floor() -> None:
    variants = pods_of(ON_DEMAND, free=9), pods_of(SPOT, free=9)
    result = split(5, *variants, floor=2)
    assert result.replicas == {D: 2, S: 3}
    # Spot is not full, but must not hold the floor.
    assert reasons_of(result)[D] == VariantReason.LEAST_COST
    assert split(5, *variants).replicas == {D: 0, S: 5}
    running = pods_of(ON_DEMAND, 2), pods_of(SPOT, 3)
    assert split(2, *running, floor=2).replicas == {D: 2, S: 0}
    assert split(2, *running).replicas == {D: 0, S: 2}


def test_a_replica_returns_to_reserved_once_the_move_has_paid() -> None:
    free = pods_of(RESERVED, 2, free=1), pods_of(ON_DEMAND, 1)
    first = split(3, *free)
    assert first.replicas == {R: 2, D: 1}
    # Reserved is paid anyway: on-demand is paid twice while the other starts.
    assert first.until == at(120)

    moved = split(3, *free, seconds=120, memory=first.memory)
    assert moved.replicas == {R: 3, D: 1}
    assert reasons_of(moved) == {R: VariantReason.MOVED_TO_CHEAPER}

    starting = pods_of(RESERVED, 2, starting=1), pods_of(ON_DEMAND, 1)
    assert split(3, *starting, seconds=125, memory=moved.memory).replicas == {R: 3, D: 1}
    ready = pods_of(RESERVED, 3), pods_of(ON_DEMAND, 1)
    assert split(3, *ready, seconds=245).replicas == {R: 3, D: 0}


def test_a_small_saving_moves_later_than_a_large_one_and_none_never() -> None:
    def until(price: float) -> datetime:
        cheaper = a_choice("cheaper", price=price)
        return split(1, pods_of(ON_DEMAND, 1), pods_of(cheaper, free=1)).until

    assert until(3.0) == at(120 * 9 / 3)
    assert until(5.9) == at(120 * 11.9 / 0.1)
    assert until(6.0) == FOREVER


def test_moves_go_one_at_a_time() -> None:
    memory = (VariantMemory(variant=R, room_since=at(-900)),)
    free = pods_of(RESERVED, free=4), pods_of(ON_DEMAND, 4)
    result = split(4, *free, memory=memory)
    assert result.replicas == {R: 1, D: 4}
    starting = pods_of(RESERVED, starting=1, free=3), pods_of(ON_DEMAND, 4)
    assert split(4, *starting, memory=result.memory).replicas == {R: 1, D: 4}


def test_ready_replicas_stay_until_those_that_replace_them_are_ready() -> None:
    result = split(3, pods_of(RESERVED, 1, starting=2), pods_of(ON_DEMAND, 2))
    assert result.replicas == {R: 3, D: 2}


def test_a_node_that_does_not_come_moves_the_replica_on_and_the_variant_rests_longer() -> None:
    node_start = timedelta(seconds=60)

    def cycle(seconds: float, since: float | None, memory: Iterable[VariantMemory]) -> ReplicaSplit:
        pending: dict[str, Any] = {}
        if since is not None:
            pending = {"pending": 1, "pending_since": at(since)}
        absent = pods_of(ON_DEMAND, growth=2, node_start=node_start, **pending)
        dear = a_choice("dear", price=9.0)
        return split(1, absent, pods_of(dear, growth=2), seconds=seconds, memory=memory)

    assert cycle(59, 0, ()).replicas[D] == 1
    late = cycle(60, 0, ())
    assert late.replicas[D] == 0
    assert reasons_of(late)[D] == VariantReason.PENDING_TIMEOUT
    (memory,) = late.memory
    assert memory.backoff_until == at(120)
    # Until it has proved itself, what is needed goes elsewhere.
    assert cycle(130, None, late.memory).replicas[D] == 0
    (again,) = cycle(300, 200, late.memory).memory
    assert again.backoff_until == at(300 + 120)
    assert cycle(500 + MAX_BACKOFF.total_seconds(), None, (again,)).replicas[D] == 1


def test_a_device_that_becomes_free_ends_the_backoff_at_once() -> None:
    memory = (VariantMemory(variant=R, backoff_from=NOW, backoff_until=at(900)),)
    variants = pods_of(RESERVED, 1), pods_of(ON_DEMAND, free=1)
    assert split(2, *variants, seconds=5, memory=memory).replicas == {R: 1, D: 1}
    variants = pods_of(RESERVED, 1, free=1), pods_of(ON_DEMAND, free=1)
    assert split(2, *variants, seconds=5, memory=memory).replicas == {R: 2, D: 0}


@dataclass
class SimulatedPools:
    """Pods of a service on pools of a fixed size, with or without nodes that may come."""

    choices: Sequence[HardwareChoice]
    sizes: Mapping[str, int]
    growth: Mapping[str, int] = field(default_factory=dict)
    """Nodes of one device each, which are announced within 60 s."""
    nodes_come: bool = True
    ages: dict[str, list[float]] = field(default_factory=dict)
    """When each pod was bound."""
    pending: dict[str, list[float]] = field(default_factory=dict)
    memory: tuple[VariantMemory, ...] = ()
    seconds: float = 0
    changes: int = 0

    def observe(self) -> list[VariantPods]:
        observed = []
        for choice in self.choices:
            name = choice.variant
            bound, pending = self.ages.get(name, []), self.pending.get(name, [])
            ready = sum(self.seconds - age >= START.total_seconds() for age in bound)
            beyond = max(0, len(bound) - self.sizes[name])
            observed.append(
                pods_of(
                    choice,
                    ready,
                    max(0, self.sizes[name] - len(bound)),
                    starting=len(bound) - ready,
                    pending=len(pending),
                    pending_since=at(min(pending)) if pending else None,
                    growth=self.growth.get(name, 0) - beyond,
                    node_start=timedelta(seconds=60),
                )
            )
        return observed

    def cycle(self, wanted: int, floor: int = 0) -> ReplicaSplit:
        observed = self.observe()
        result = split(wanted, *observed, seconds=self.seconds, floor=floor, memory=self.memory)
        self.memory = result.memory
        for pods in observed:
            bound = self.ages.setdefault(pods.variant, [])
            pending = self.pending.setdefault(pods.variant, [])
            excess = len(bound) + len(pending) - result.replicas[pods.variant]
            self.changes += abs(excess)
            for _ in range(excess):
                (pending or bound).pop()
            pending += [self.seconds] * -excess
            limit = self.sizes[pods.variant] + self.growth.get(pods.variant, 0)
            for created in sorted(pending):
                on_nodes = len(bound) < self.sizes[pods.variant]
                late = self.seconds - created >= 55 and len(bound) < limit and self.nodes_come
                if on_nodes or late:
                    pending.remove(created)
                    bound.append(self.seconds)
        self.seconds += 5
        return result

    def is_quiet(self) -> bool:
        """Return whether no pod will become ready."""
        return all(
            not pods.starting and not (pods.pending and pods.free + pods.growth)
            for pods in self.observe()
        )

    def rest(self, wanted: int, floor: int = 0) -> None:
        """Play until nothing changes any more; where only time may change it, skip that."""
        for _ in range(500):
            was_quiet, changes = self.is_quiet(), self.changes
            result = self.cycle(wanted, floor)
            if was_quiet and changes == self.changes:
                if result.until == FOREVER:
                    return
                self.seconds = max(self.seconds, (result.until - NOW).total_seconds())
        raise AssertionError(f"no rest: {self.ages} {self.pending} {self.memory}")

    def serving(self) -> float:
        return sum(pods.ready * pods.choice.fit.limits.tokens_per_second for pods in self.observe())


TIERS: Sequence[Tier] = ("Reserved", "OnDemand", "Spot")
SPEEDS = (1000.0, 500.0, 1700.0)


@st.composite
def pools(
    draw: st.DrawFn, speeds: Sequence[float] = SPEEDS, *, nodes_come: bool = True
) -> SimulatedPools:
    count = draw(st.integers(2, 4))
    choices = [
        a_choice(
            f"pool-{index}",
            draw(st.sampled_from(TIERS)),
            draw(st.sampled_from((1.0, 2.5, 6.0, 9.0))),
            draw(st.sampled_from(speeds)),
        )
        for index in range(count)
    ]
    sizes = {choice.variant: draw(st.integers(0, 4)) for choice in choices}
    growth = {choice.variant: draw(st.integers(0, 2)) for choice in choices}
    return SimulatedPools(choices=choices, sizes=sizes, growth=growth, nodes_come=nodes_come)


wanted_replicas = st.integers(0, 8)
floors = st.integers(0, 4)


@given(pools(), wanted_replicas, wanted_replicas)
def test_every_state_comes_to_rest_and_serves_what_is_wanted(
    world: SimulatedPools, before: int, wanted: int
) -> None:
    world.rest(before)
    world.rest(wanted)
    changes = world.changes
    for _ in range(100):
        world.cycle(wanted)
    capacities = {each.variant: each.fit.limits.tokens_per_second for each in world.choices}
    room = sum(
        (world.sizes[variant] + world.growth[variant]) * capacity
        for variant, capacity in capacities.items()
    )
    assert world.changes == changes
    assert world.serving() >= min(wanted * capacities[world.choices[0].variant], room)
    assert len(world.memory) <= len(world.choices)


@given(pools(speeds=(1000.0,)), wanted_replicas, wanted_replicas)
def test_at_rest_reserved_devices_are_used_before_others(
    world: SimulatedPools, before: int, wanted: int
) -> None:
    world.rest(before)
    world.rest(wanted)
    variants = {each.variant: each.offer.tier for each in world.choices}
    reserved = [variant for variant, tier in variants.items() if tier == "Reserved"]
    room = sum(world.sizes[variant] + world.growth[variant] for variant in reserved)
    assert sum(len(world.ages[variant]) for variant in reserved) == min(wanted, room)


@given(pools(nodes_come=False), wanted_replicas)
def test_nothing_needed_waits_beside_a_free_device_and_tries_become_rare(
    world: SimulatedPools, wanted: int
) -> None:
    unit, waits = world.choices[0].fit.limits.tokens_per_second, 0
    changed_cycles = 0
    backoffs: set[tuple[str, datetime | None]] = set()
    for _ in range(600):
        changes = world.changes
        world.cycle(wanted)
        changed_cycles += world.changes != changes
        backoffs |= {
            (each.variant, each.backoff_from) for each in world.memory if each.backoff_from
        }
        observed = world.observe()
        on_nodes = sum(each.bound * each.choice.fit.limits.tokens_per_second for each in observed)
        missing = on_nodes < wanted * unit and any(each.free for each in observed)
        waits = waits + 1 if missing else 0
        assert waits <= 6
    # 600 cycles are 3,000 s: a minute a try, and backoffs of 1, 2, 4, 8 and 16 minutes between
    # six. Each try takes two changes, whose pods another variant gives and takes.
    assert max(Counter(variant for variant, _ in backoffs).values(), default=0) <= 6
    assert changed_cycles <= 2 * 6 * len(world.choices)


@given(pools(), st.lists(wanted_replicas, min_size=1, max_size=4))
def test_no_change_lowers_what_serves_below_what_is_wanted(
    world: SimulatedPools, course: list[int]
) -> None:
    unit = world.choices[0].fit.limits.tokens_per_second
    for wanted in course:
        for _ in range(200):
            before = world.serving()
            world.cycle(wanted)
            assert world.serving() >= min(before, wanted * unit)


@given(pools(), wanted_replicas, wanted_replicas, st.integers(0, 60))
def test_the_order_beyond_the_reference_does_not_matter(
    world: SimulatedPools, before: int, wanted: int, cycles: int
) -> None:
    for _ in range(cycles):
        world.cycle(before)
    reference, *others = world.observe()
    results = [
        split(wanted, reference, *each, seconds=world.seconds, memory=world.memory)
        for each in itertools.permutations(others)
    ]
    assert all(result == results[0] for result in results)


@given(pools(), wanted_replicas)
def test_a_start_costs_no_more_than_any_single_variant_with_room(
    world: SimulatedPools, wanted: int
) -> None:
    unit = world.choices[0].fit.limits.tokens_per_second

    def cost(counts: Mapping[str, int]) -> tuple[int, int]:
        prices = [(choice, choice.offer.comparison_price.nanos) for choice in world.choices]
        return (
            sum(
                counts.get(choice.variant, 0) * nanos
                for choice, nanos in prices
                if choice.offer.tier != "Reserved"
            ),
            sum(counts.get(choice.variant, 0) * nanos for choice, nanos in prices),
        )

    chosen = cost(split(wanted, *world.observe()).replicas)
    for choice in world.choices:
        alone = -int(-wanted * unit // choice.fit.limits.tokens_per_second)
        if alone <= world.sizes[choice.variant]:
            assert chosen <= cost({choice.variant: alone})


def cash_of_pods(counts: Mapping[str, int], choices: Iterable[HardwareChoice]) -> int:
    """Return what replicas cost per hour beyond what is paid anyway."""
    return sum(counts.get(choice.variant, 0) * cash_of(choice, START) for choice in choices)


@given(pools(), wanted_replicas, wanted_replicas, floors)
def test_at_rest_no_other_pods_cost_less(
    world: SimulatedPools, before: int, wanted: int, floor: int
) -> None:
    world.rest(before, floor)
    world.rest(wanted, floor)
    choices = world.choices
    running = {choice.variant: len(world.ages.get(choice.variant, ())) for choice in choices}
    need = Need(wanted * capacity_of(choices[0]), floor, floor)
    options = [
        CoverOption(
            cash_of(choice, START),
            capacity_of(choice),
            choice.offer.tier != "Spot",
            max(running[choice.variant], world.sizes[choice.variant]),
        )
        for choice in choices
    ]
    have = total_of(options, list(running.values()))
    attainable = total_of(options, least_cover(options, need))
    assert have.pods >= min(floor, attainable.pods)
    assert have.firm_pods >= min(floor, attainable.firm_pods)
    if not any(world.growth.values()):
        cheapest = least_cover(options, need)
        assert cash_of_pods(running, choices) == sum(
            option.cost * count for option, count in zip(options, cheapest, strict=True)
        )


@given(pools(), floors, st.lists(wanted_replicas, min_size=1, max_size=4))
def test_no_change_takes_what_is_ready_within_the_floor(
    world: SimulatedPools, floor: int, course: list[int]
) -> None:
    def ready() -> tuple[int, int]:
        observed = world.observe()
        firm = [each.ready for each in observed if each.choice.offer.tier != "Spot"]
        return sum(each.ready for each in observed), sum(firm)

    for wanted in course:
        for _ in range(100):
            pods, firm = ready()
            world.cycle(wanted, floor)
            assert ready() >= (min(pods, floor), 0)
            assert ready()[1] >= min(firm, floor)


SLICE = a_choice("slices", "OnDemand", 0.48, speed=100.0)
PAID_SLICE = a_choice("paid", "Reserved", 0.48, speed=100.0)
GPU = a_choice("gpus", "OnDemand", 2.99, speed=2300.0)


def test_idle_slices_do_not_lose_to_a_gpu_at_a_lower_price_per_capacity() -> None:
    running = pods_of(SLICE, 2), pods_of(GPU, 1)
    assert split(2, *running, floor=2).replicas == {SLICE.variant: 2, GPU.variant: 0}
    # All that the GPU alone carries: the second pod of the floor is the cheapest one.
    assert split(20, *running, floor=2).replicas == {SLICE.variant: 1, GPU.variant: 1}


def test_what_is_paid_anyway_stays_beside_what_is_not() -> None:
    running = pods_of(PAID_SLICE, 2), pods_of(GPU, 1)
    result = split(4, *running, floor=2)
    assert result.replicas == {PAID_SLICE.variant: 2, GPU.variant: 1}
    assert split(2, *running, floor=2).replicas == {PAID_SLICE.variant: 2, GPU.variant: 0}


def test_a_gpu_goes_once_slices_of_several_pools_carry_the_load_for_less() -> None:
    other = a_choice("other", "Reserved", 0.48, speed=100.0)
    variants = pods_of(GPU, 1), pods_of(PAID_SLICE, free=1), pods_of(other, free=2)
    wanted = Need(3 * capacity_of(PAID_SLICE), 1)
    first = split_replicas(wanted, variants, at=NOW)
    assert first.until == at(120)
    moved = split_replicas(wanted, variants, at=at(120), memory=first.memory)
    assert moved.replicas == {GPU.variant: 1, PAID_SLICE.variant: 1, other.variant: 2}
    ready = pods_of(GPU, 1), pods_of(PAID_SLICE, 1), pods_of(other, 2)
    assert split_replicas(wanted, ready, at=at(300)).replicas[GPU.variant] == 0


def test_larger_replicas_take_the_place_of_as_many_as_there_may_be() -> None:
    variants = pods_of(SLICE, 2, free=3), pods_of(GPU, free=1)
    result = split(10, *variants, floor=1, most=2)
    assert result.replicas == {SLICE.variant: 2, GPU.variant: 1}
    assert reasons_of(result) == {GPU.variant: VariantReason.MOVED_TO_LARGER}
    ready = pods_of(SLICE, 2, free=3), pods_of(GPU, 1)
    assert split(10, *ready, floor=1, most=2).replicas == {SLICE.variant: 0, GPU.variant: 1}


@pytest.mark.parametrize("ready", [1, 2])
def test_a_replica_that_a_rollout_replaces_is_given_up_no_sooner_than_a_ready_one(
    ready: int,
) -> None:
    """A move to what is cheaper waits for its replica, which a budget may refuse."""
    replaced = 2 - ready
    dear = pods_of(ON_DEMAND, ready=ready, starting=replaced, replaced=replaced)
    cheap = pods_of(RESERVED, free=2)
    memory = [VariantMemory(variant=R, room_since=at(-36000))]
    result = split(2, dear, cheap, floor=2, memory=memory)
    assert result.replicas == {D: 2, R: 1}
