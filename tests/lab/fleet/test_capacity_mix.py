"""How much to reserve: prices, thresholds and the choices for a load."""

import random
from dataclasses import replace

import pytest

from tessera.domain.economics.reservation import LoadCurve, break_even_use, critical_reservation
from tessera_lab.fleet.capacity_mix import (
    MONTH_HOURS,
    MixOption,
    Reading,
    break_even_waste,
    effective_spot_price,
    mix_options,
    prices_by_tier,
)
from tessera_lab.fleet.prices import PRICE_SETS, GpuPrices

A100 = prices_by_tier(3.50)
# Ten hours with 1 to 10 replicas.
STAIRS = LoadCurve(tuple((3600.0, replicas) for replicas in (4, 1, 3, 2, 5, 10, 9, 6, 8, 7)))


def choices(
    curve: LoadCurve, prices: GpuPrices = A100, wasted: float = 0.1
) -> dict[str, MixOption]:
    return {option.reading: option for option in mix_options(curve, prices, wasted)}


def test_tiers_cost_their_part_of_the_price_on_demand() -> None:
    assert (A100.on_demand, A100.reserved, A100.spot) == pytest.approx((3.50, 2.10, 1.05))


def test_wasted_work_makes_spot_dearer_until_others_are_cheaper() -> None:
    assert effective_spot_price(1.05, 0.10) == pytest.approx(1.1667, abs=5e-5)
    assert effective_spot_price(1.05, 0.20) == pytest.approx(1.3125)
    assert break_even_waste(A100.spot, A100.reserved) == pytest.approx(0.5)
    assert break_even_waste(A100.spot, A100.on_demand) == pytest.approx(0.7)
    assert break_even_waste(2.0, 1.0) == 0


def test_reserving_pays_from_the_break_even_on() -> None:
    assert break_even_use(A100.reserved, A100.on_demand) == pytest.approx(0.60)
    ratios = [
        break_even_use(prices.reserved, prices.on_demand)
        for sets in PRICE_SETS.values()
        for prices in sets.values()
    ]
    assert all(0.55 < ratio < 0.65 for ratio in ratios)


def test_a_load_has_the_quantiles_of_its_time() -> None:
    assert [STAIRS.quantile(share) for share in (0.0, 0.1, 0.5, 0.95, 1.0)] == [1, 1, 5, 10, 10]
    assert (STAIRS.mean, STAIRS.peak, STAIRS.seconds) == (5.5, 10, 36000)
    assert LoadCurve(((99.0, 2), (1.0, 50))).quantile(0.95) == 2


def test_readings_reserve_what_they_say() -> None:
    options = choices(STAIRS)
    assert {reading: option.reserved for reading, option in options.items()} == {
        Reading.ON_DEMAND_ONLY: 0,
        Reading.SEVENTY_PERCENT: 3,
        Reading.MEDIAN: 5,
        # The 4th replica is needed for 70 % of the time, the 5th for 60 %, which is the break-even.
        Reading.CRITICAL_RATIO: 4,
        # A spot node costs less than a reserved one at any use.
        Reading.CRITICAL_RATIO_SPOT: 0,
        Reading.PEAK: 10,
    }
    assert [option.burst_ceiling for option in options.values()] == [10, 7, 5, 6, 10, 0]


def test_a_month_costs_what_is_reserved_and_what_is_beyond() -> None:
    median = choices(STAIRS)[Reading.MEDIAN]
    assert median.fixed == pytest.approx(MONTH_HOURS * 5 * 2.10)
    # 1 to 5 replicas for an hour of ten each.
    assert median.variable == pytest.approx(MONTH_HOURS * 1.5 * 3.50)
    assert median.variable_spot == pytest.approx(MONTH_HOURS * 1.5 * 1.05 / 0.9)
    assert median.use == pytest.approx(4.0 / 5)
    assert (median.total, median.total_spot) == pytest.approx(
        (median.fixed + median.variable, median.fixed + median.variable_spot)
    )


@pytest.mark.parametrize("seed", range(20))
def test_no_number_of_reserved_replicas_is_cheaper_than_the_critical_ratio(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - not a secret
    spans = tuple((rng.uniform(1, 99), rng.randint(0, 12)) for _ in range(30))
    curve = LoadCurve(spans)
    prices = replace(A100, reserved=rng.uniform(0.5, 3.6), spot=rng.uniform(0.5, 3.4))
    options = choices(curve, prices, 0.2)
    for reading, burst_price in (
        (Reading.CRITICAL_RATIO, prices.on_demand),
        (Reading.CRITICAL_RATIO_SPOT, prices.spot / 0.8),
    ):
        costs = [
            prices.reserved * reserved + burst_price * curve.burst(reserved)
            for reserved in range(14)
        ]
        assert costs[options[reading].reserved] == pytest.approx(min(costs))


def test_nothing_is_reserved_at_the_price_of_the_alternative() -> None:
    assert critical_reservation(LoadCurve(((10.0, 3),)), 2.0, 2.0) == 0
    assert critical_reservation(LoadCurve(((10.0, 3),)), 1.9, 2.0) == 3
