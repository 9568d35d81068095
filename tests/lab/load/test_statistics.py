"""Percentiles, prices, the knee: what a load test computes from what it measured."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.money import Money, money
from tessera.domain.perf.utilization import mfu
from tessera_lab.load.distribution import distribution, nearest_rank
from tessera_lab.load.knee import Knee, find_knee
from tessera_lab.load.token_cost import (
    HourlyPrice,
    run_cost,
    token_cost,
    tokens_per_unit,
)

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=300).map(sorted)


def usd(amount: str) -> Money:
    return money(Decimal(amount), "USD")


@pytest.mark.parametrize(
    ("count", "percent", "rank"),
    [
        (100, 95, 95),  # int(0.95 * 100) would take the 96th
        (100, 50, 50),
        (100, 99, 99),
        (100, 100, 100),
        (100, 7, 7),  # ceil(0.07 * 100) is 8 in floats
        (1, 50, 1),
        (1, 99, 1),
        (2, 50, 1),
        (2, 51, 2),
        (3, 50, 2),
        (20, 95, 19),
        (21, 95, 20),
        (10, 99, 10),
        (5, 0, 1),
    ],
)
def test_a_percentile_is_the_value_at_its_nearest_rank(count: int, percent: int, rank: int) -> None:
    assert nearest_rank(range(1, count + 1), percent) == rank


@given(VALUES, st.integers(1, 100))
def test_at_least_the_share_does_not_exceed_a_percentile_and_less_is_below_it(
    values: list[float], percent: int
) -> None:
    percentile = nearest_rank(values, percent)
    assert percentile in values
    assert sum(value <= percentile for value in values) * 100 >= percent * len(values)
    assert sum(value < percentile for value in values) * 100 < percent * len(values)


@given(VALUES)
def test_percentiles_rise_from_the_least_to_the_most(values: list[float]) -> None:
    values_distribution = distribution(values)
    assert values_distribution is not None
    assert (
        values[0]
        <= values_distribution.p50
        <= values_distribution.p90
        <= values_distribution.p95
        <= values_distribution.p99
        <= values_distribution.maximum
    )
    assert values_distribution.maximum == values[-1]
    assert values_distribution.mean == pytest.approx(sum(values) / len(values))


def test_nothing_has_no_spread() -> None:
    assert distribution([]) is None


@pytest.mark.parametrize(
    ("hourly", "gpus", "rate", "expected"),
    [
        ("3.50", 1, 1000, "0.972222"),
        ("3.50", 1, 833, "1.167133"),
        ("3.50", 2, 1500, "1.296296"),
        ("3.50", 2, 350, "5.555556"),
        ("3.50", 1, 3200, "0.303819"),
        ("2.10", 1, 1000, "0.583333"),
        ("1.05", 1, 1000, "0.291667"),
    ],
)
def test_a_million_output_tokens_cost_the_hour_by_the_tokens_of_an_hour(
    hourly: str, gpus: int, rate: int, expected: str
) -> None:
    price = HourlyPrice(per_hour=usd(hourly).times(gpus), output_input_ratio=Decimal(4))
    cost = token_cost(price, 0, rate * 60, 60.0).per_million_output
    assert cost is not None
    assert cost.rounded(9) == pytest.approx(Decimal(expected), abs=Decimal("0.000001"))


def test_a_run_costs_its_part_of_the_hour() -> None:
    assert run_cost(usd("3.50"), 120.0).rounded(7) == Decimal("0.1166667")


def test_tokens_for_a_dollar_are_the_inverse_of_the_price_of_a_million() -> None:
    tokens_per_dollar = tokens_per_unit(usd("3.50"), 1000)
    assert tokens_per_dollar is not None
    assert tokens_per_dollar == pytest.approx(1_028_571.43)
    assert 1e6 / tokens_per_dollar == pytest.approx(0.972222, abs=1e-6)
    assert tokens_per_unit(usd("0"), 1000) is None


def test_each_price_divides_by_the_tokens_that_it_names() -> None:
    price = HourlyPrice(per_hour=usd("3.60"), output_input_ratio=Decimal(4))
    cost = token_cost(price, 8000, 1000, 10.0)  # a cent
    assert cost.per_million_output == usd("10")
    assert cost.per_million_total is not None
    assert cost.per_million_total.rounded(6) == Decimal("1.111111")
    assert cost.per_million_weighted is not None
    assert cost.per_million_weighted.rounded(6) == Decimal("3.333333")
    # Sold at the weighted price, and the prompts at a quarter of it, the cent comes in.
    weighted = cost.per_million_weighted.rounded(9)
    assert (1000 * weighted + 8000 * weighted / 4) / 10**6 == pytest.approx(Decimal("0.01"))


def test_no_tokens_have_no_price() -> None:
    price = HourlyPrice(per_hour=usd("3.60"), output_input_ratio=Decimal(4))
    cost = token_cost(price, 0, 0, 10.0)
    assert (cost.per_million_output, cost.per_million_weighted) == (None, None)
    assert cost.run == usd("0.01")


@pytest.mark.parametrize(
    ("achieved", "peak", "expected"),
    [(50, 312, 0.160256), (200, 312, 0.641026), (250, 312, 0.801282)],
)
def test_mfu_is_the_share_of_the_peak(achieved: float, peak: float, expected: float) -> None:
    assert mfu(achieved, peak) == pytest.approx(expected, abs=1e-6)


def saturating(*places: int, fixed: float = 8.0, each: float = 1.0) -> dict[int, float]:
    """A server whose step takes `fixed` and `each` for every request in it."""
    return {number: number / (fixed + each * number) ** 2 for number in places}


def test_the_knee_is_where_power_is_greatest() -> None:
    # n / (8 + n)^2 is greatest at 8, where half of what there is to win is won.
    assert find_knee(saturating(1, 2, 4, 8, 16, 32)) == Knee(concurrency=8, passed=True)
    assert find_knee(saturating(32, 8, 2, 16, 4)) == Knee(concurrency=8, passed=True)


def test_a_sweep_that_ends_before_its_knee_says_so() -> None:
    assert find_knee(saturating(1, 2, 4)) == Knee(concurrency=4, passed=False)


@pytest.mark.parametrize("places", [(), (8,), (4, 16), (16, 32, 64)])
def test_too_few_loads_or_only_ones_beyond_it_have_no_knee(places: tuple[int, ...]) -> None:
    assert find_knee(saturating(*places)) is None


def test_of_equally_good_loads_the_smaller_is_the_knee() -> None:
    loads = ((1, 1), (2, 1), (4, 2), (8, 8))
    powers = {number: 10.0 * number / seconds for number, seconds in loads}
    assert find_knee(powers) == Knee(concurrency=2, passed=True)


@given(st.floats(0.5, 20), st.floats(0.05, 3))
def test_no_load_of_a_saturating_server_has_more_power_than_the_knee(
    fixed: float, each: float
) -> None:
    powers = saturating(1, 2, 4, 8, 16, 32, 64, fixed=fixed, each=each)
    knee = find_knee(powers)
    assert knee is not None
    assert math.isclose(max(powers.values()), powers[knee.concurrency], rel_tol=1e-9)
