"""Of equal price, the hardware that draws fewer watts gets the replicas that are new."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.explain.explain import explain
from tessera.domain.hardware.pools import discover
from tessera.domain.hardware.power import power_ranges
from tessera.domain.money import NANO, Money
from tessera.domain.observed.snapshot import Pool, Ref
from tessera.domain.placement.candidates import HardwareChoice, by_price, watts_clause
from tessera.domain.placement.cover import Need
from tessera.domain.placement.placement import PlacementDecision, place
from tessera.domain.placement.split import split_replicas
from tessera.domain.placement.split_state import VariantPods
from tessera.domain.placement.variant_cost import capacity_of
from tests.builders import (
    A100,
    H100,
    NOW,
    a_node,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    at,
    plan_of,
)
from tests.domain.placement.test_split import START, a_choice

# A product that is in the catalog without watts.
UNMEASURED = "NVIDIA-GH200-144G-HBM3e"
PRODUCTS = {"h100": H100, "a100": A100, "gh200": UNMEASURED}
CHAT = Ref("team-a", "chat")
_TIE = "equal price; fewer watts: 400 W instead of 700 W"


def pools_at(**prices: str) -> Sequence[Pool]:
    return [a_pool(name, price) for name, price in prices.items()]


def placed(
    pools: Sequence[Pool], current: str | None = None, whole: int = 8, **full: int
) -> PlacementDecision:
    """Place a service; `full` are the devices that others use."""
    nodes = [a_node(pool.name, whole=whole, product=PRODUCTS[pool.name]) for pool in pools]
    return place(
        a_spec(),
        discover(pools, nodes, NOW.date()),
        namespace="team-a",
        current=current,
        min_replicas=1,
        used_devices={(pool, "nvidia.com/gpu"): count for pool, count in full.items()},
    )


def variant_of(decision: PlacementDecision) -> str:
    assert decision.choice is not None
    return decision.choice.variant


def test_of_equal_price_the_one_with_fewer_watts_is_chosen_and_it_says_so() -> None:
    decision = placed(pools_at(h100="2.00", a100="2.00"))
    assert variant_of(decision) == "a100-1gpu"
    assert decision.verdict.message.endswith(f"next h100-1gpu at 2.00 USD; {_TIE}")


def test_the_lower_price_wins_whatever_it_draws() -> None:
    decision = placed(pools_at(h100="1.99", a100="2.00"))
    assert variant_of(decision) == "h100-1gpu"
    assert "watts" not in decision.verdict.message


def test_a_price_that_is_equal_by_what_a_layout_strands_says_so() -> None:
    whole = on(H100, "h100")
    mig_slice = replace(whole, offer=replace(on(A100, "a100").offer, hourly=Money(NANO, "USD")))
    assert watts_clause(mig_slice, [whole]) == (
        "equal price, stranded slices included; fewer watts: 400 W instead of 700 W"
    )


def test_what_runs_stays_where_it_is() -> None:
    decision = placed(pools_at(h100="2.00", a100="2.00"), current="h100-1gpu")
    assert variant_of(decision) == "h100-1gpu"
    assert decision.verdict.message.endswith(
        f"a100-1gpu at 2.00 USD ({_TIE}) was full or added later"
    )


def test_what_is_full_is_not_chosen_for_its_watts() -> None:
    assert variant_of(placed(pools_at(h100="2.00", a100="2.00"), a100=8)) == "h100-1gpu"


def test_unknown_watts_break_no_tie() -> None:
    decision = placed(pools_at(h100="2.00", a100="2.00", gh200="2.00"))
    # As before: by speed.
    assert variant_of(decision) == "gh200-1gpu"
    assert "watts" not in decision.verdict.message


def test_explain_names_the_watts_and_does_not_promise_what_draws_more() -> None:
    pools = tuple(pools_at(h100="2.00", a100="2.00"))
    nodes = tuple(a_node(pool.name, whole=8, product=PRODUCTS[pool.name]) for pool in pools)
    snapshot = a_snapshot(a_service(), pools=pools, nodes=nodes)
    (decision,) = (
        each for each in explain(snapshot, plan_of(snapshot), CHAT) if each.topic == "placed"
    )
    other = next(each for each in decision.alternatives if each.name == "h100-1gpu")
    assert other.message == f"not chosen: {_TIE}"
    assert not any("would be placed on h100" in change for change in decision.would_change)


def priced(choice: HardwareChoice, nanos: int) -> HardwareChoice:
    price = Money(nanos, "USD")
    return replace(choice, offer=replace(choice.offer, hourly=price, comparison_price=price))


def on(product: str, pool: str, speed: float = 1000.0) -> HardwareChoice:
    """A variant of equal price and any product."""
    choice = a_choice(pool, price=6.0, speed=speed)
    hardware = replace(choice.offer.hardware, product=product)
    return replace(choice, offer=replace(choice.offer, hardware=hardware))


choices = st.lists(
    st.builds(
        lambda product, number, speed, nanos: priced(
            on(product, f"pool-{number}", float(speed)), nanos
        ),
        st.sampled_from([*sorted(power_ranges()), UNMEASURED]),
        st.integers(0, 99),
        st.integers(1, 9999),
        st.integers(1, 10 * NANO),
    ),
    max_size=8,
    unique_by=lambda choice: choice.variant,
)


def by_price_and_speed(listed: Sequence[HardwareChoice]) -> list[HardwareChoice]:
    return sorted(
        listed,
        key=lambda each: (
            each.offer.comparison_price.nanos,
            -each.fit.limits.tokens_per_second,
            each.variant,
        ),
    )


@given(choices)
def test_with_different_prices_watts_change_nothing(listed: list[HardwareChoice]) -> None:
    different = list({each.offer.comparison_price.nanos: each for each in listed}.values())
    assert by_price(different) == by_price_and_speed(different)


@given(choices, st.permutations(range(8)))
def test_a_tie_needs_all_watts_and_no_order_of_input(
    listed: list[HardwareChoice], order: list[int]
) -> None:
    tied = [priced(each, NANO) for each in listed]
    unmeasured = any(each.offer.hardware.product == UNMEASURED for each in tied)
    if unmeasured:
        assert by_price(tied) == by_price_and_speed(tied)
    else:
        watts = [power_ranges()[each.offer.hardware.product].max_watts for each in by_price(tied)]
        assert watts == sorted(watts)
    shuffled = [tied[index] for index in order if index < len(tied)]
    assert by_price(shuffled) == by_price(tied)


def pods_of(choice: HardwareChoice, ready: int = 0, free: int = 0) -> VariantPods:
    return VariantPods(variant=choice.variant, choice=choice, ready=ready, free=free, start=START)


@pytest.mark.parametrize("frugal_pool", ["a", "z"])
def test_a_further_replica_comes_to_the_variant_of_fewer_watts(frugal_pool: str) -> None:
    heavy, frugal = on(H100, "m"), on(A100, frugal_pool)
    variants = [pods_of(heavy, free=2), pods_of(frugal, free=2)]
    result = split_replicas(Need(capacity_of(heavy)), variants, at=NOW)
    assert result.replicas == {heavy.variant: 0, frugal.variant: 1}
    assert result.changes[0].message.endswith(_TIE)


def test_replicas_that_run_are_not_moved_to_the_variant_of_fewer_watts() -> None:
    heavy, frugal = on(H100, "h100"), on(A100, "a100")
    variants = [pods_of(heavy, ready=2), pods_of(frugal, free=4)]
    for seconds in (0, 3600, 86400):
        result = split_replicas(Need(2 * capacity_of(heavy)), variants, at=at(seconds))
        assert result.replicas == {heavy.variant: 2, frugal.variant: 0}
        assert not result.changes


def test_of_further_replicas_the_faster_is_chosen_where_fewer_of_it_do() -> None:
    heavy, frugal = on(H100, "h100", speed=2000.0), on(A100, "a100")
    variants = [pods_of(frugal, free=4), pods_of(heavy, free=4)]
    result = split_replicas(Need(2 * capacity_of(frugal)), variants, at=NOW)
    assert result.replicas == {heavy.variant: 1, frugal.variant: 0}
    assert "watts" not in result.changes[0].message
