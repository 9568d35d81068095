"""How many values of a histogram are within a target."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.observed.latency import LatencyHistogram
from tessera.domain.slo.attainment import (
    Attainment,
    attainment,
    combined,
    edges_around,
    overdue_requests,
)
from tessera.domain.slo.measurement import fleet_edges
from tests.builders import a_spec

# The edges of vLLM 0.32.0.
ITL_EDGES = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
latencies = st.lists(st.floats(0, 8, allow_nan=False), min_size=1, max_size=60)


def histogram_of(values: Sequence[float], edges: Sequence[float] = ITL_EDGES) -> LatencyHistogram:
    counts = tuple((edge, float(sum(value <= edge for value in values))) for edge in edges)
    return LatencyHistogram(total=float(len(values)), at_most=counts)


def measured(histogram: LatencyHistogram, target: float) -> Attainment:
    result = attainment(histogram, target)
    assert result is not None
    return result


@pytest.mark.parametrize(
    ("target", "lower", "estimate", "upper"),
    [
        (0.025, 40, 40, 40),
        (0.05, 90, 90, 90),
        # A third of the way from 25 to 50 ms.
        (0.033, 40, 56, 90),
        (0.005, 0, 5, 10),
        (0.2, 98, 98, 100),
    ],
)
def test_a_target_at_an_edge_is_exact_and_others_have_the_bounds_of_their_bucket(
    target: float, lower: float, estimate: float, upper: float
) -> None:
    histogram = LatencyHistogram(
        total=100, at_most=((0.01, 10), (0.025, 40), (0.05, 90), (0.1, 98))
    )
    result = measured(histogram, target)
    assert (result.lower, result.upper, result.total) == (lower, upper, 100)
    assert result.estimate == pytest.approx(estimate)


@given(latencies, st.sampled_from(ITL_EDGES))
def test_the_count_at_an_edge_is_that_of_the_values(values: list[float], target: float) -> None:
    result = measured(histogram_of(values), target)
    assert result.is_exact
    assert result.lower == sum(value <= target for value in values)


@given(latencies, st.floats(0.001, 10))
def test_the_bounds_contain_the_truth_and_the_estimate(values: list[float], target: float) -> None:
    result = measured(histogram_of(values), target)
    assert result.lower <= sum(value <= target for value in values) <= result.upper
    assert result.lower <= result.estimate <= result.upper <= result.total


@given(latencies, latencies, st.floats(0.001, 10))
def test_two_variants_together_are_one_histogram(
    first: list[float], second: list[float], target: float
) -> None:
    both = combined(attainment(histogram_of(part), target) for part in (first, second))
    assert both is not None
    whole = measured(histogram_of([*first, *second]), target)
    assert (both.total, both.lower, both.upper) == (whole.total, whole.lower, whole.upper)


def test_counts_that_decrease_are_contradictory_and_a_rounding_is_not() -> None:
    falling = LatencyHistogram(total=100, at_most=((0.025, 60), (0.05, 50)))
    beyond = LatencyHistogram(total=10, at_most=((0.025, 5), (0.05, 50)))
    assert attainment(falling, 0.033) is None
    assert attainment(beyond, 0.033) is None
    assert (
        combined([attainment(falling, 0.033), Attainment(total=1, lower=1, upper=1, estimate=1)])
        is None
    )
    rounded = LatencyHistogram(total=100.2, at_most=((0.025, 60.4), (0.05, 60.1)))
    assert measured(rounded, 0.033).upper == 60.4


def test_a_histogram_without_edges_says_nothing_of_a_target() -> None:
    result = measured(LatencyHistogram(total=10), 0.033)
    assert (result.lower, result.upper, result.estimate) == (0, 10, 0)


def test_requests_that_wait_too_long_are_missed_before_their_first_token() -> None:
    on_time = Attainment(total=90, lower=90, upper=90, estimate=90)
    assert on_time.with_missed(10).upper_share == 0.9


@pytest.mark.parametrize(
    ("waiting", "arrivals", "overdue"),
    [(0, 5, 0), (4, 5, 0), (30, 5, 25), (12, 0, 12)],
)
def test_requests_beyond_those_of_the_last_second_are_overdue(
    waiting: float, arrivals: float, overdue: float
) -> None:
    assert overdue_requests(waiting, arrivals, 1.0) == overdue


def test_prompts_are_read_at_the_edges_around_the_objective_and_half_of_it() -> None:
    specs = [a_spec(slo={"ttftP95": ttft}) for ttft in ("1s", "1200ms")]
    assert fleet_edges(specs).prefill == {0.5, 0.8, 1.0, 1.5}


def test_the_edges_around_a_target() -> None:
    assert edges_around(0.033, ITL_EDGES) == (0.025, 0.05)
    assert edges_around(0.05, ITL_EDGES) == (0.05,)
    assert edges_around(0.001, ITL_EDGES) == (0.01,)
    assert edges_around(60, ITL_EDGES) == (5.0,)
