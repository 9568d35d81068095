"""Traces drawn from the rates of single clients have their rates, lengths and bursts."""

from itertools import pairwise
from statistics import fmean, pvariance

import pytest

from draw_trace import draw

LENGTHS = {1: [(100, 10)], 2: [(2000, 50), (3000, 50)]}


def windows(client: int, rate: float, pattern: str, shape: str) -> list[dict[str, str]]:
    return [
        {
            "t_s": str(600 * window),
            "client": str(client),
            "rate_rps": str(rate),
            "pattern": pattern,
            "shape": shape,
        }
        for window in range(12)
    ]


@pytest.mark.parametrize(
    ("pattern", "shape", "least", "most"),
    [("Poisson", "", 0.8, 1.2), ("Gamma", "0.25", 3.2, 4.8), ("Weibull", "0.5", 4, 6)],
)
def test_arrivals_have_the_rate_and_the_variation_of_their_family(
    pattern: str, shape: str, least: float, most: float
) -> None:
    trace = draw(windows(1, 18, pattern, shape), LENGTHS, 0, 7200, scale=9, seed=1)
    assert len(trace) == pytest.approx(2 * 7200, rel=0.1)
    gaps = [after - before for before, after in pairwise(trace.arrivals)]
    assert least < pvariance(gaps) / fmean(gaps) ** 2 < most


def test_only_the_asked_part_is_drawn_with_the_lengths_of_each_client() -> None:
    rows = [*windows(1, 9, "Poisson", ""), *windows(2, 9, "Poisson", ""), *windows(7, 0, "", "")]
    trace = draw(rows, LENGTHS, 1200, 1800, scale=9, seed=1)
    assert 0 <= trace.arrivals[0] <= trace.arrivals[-1] < 1800
    lengths = list(zip(trace.input_tokens, trace.output_tokens, strict=True))
    assert set(lengths) == {(100, 10), (2000, 50), (3000, 50)}
    assert lengths.count((100, 10)) == pytest.approx(1800, rel=0.1)


def test_a_client_without_lengths_takes_those_of_another() -> None:
    trace = draw(windows(7, 9, "Poisson", ""), {1: [(100, 10)]}, 0, 600, scale=9, seed=1)
    assert set(trace.input_tokens) == {100}
