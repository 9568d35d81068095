"""Forecasts: ranges of factors, and the percentiles of what they multiply to."""

import random
from dataclasses import replace
from itertools import pairwise
from statistics import NormalDist, quantiles
from typing import Any

import pytest
from pydantic import ValidationError

from tessera.domain.economics.break_even import MONTH_HOURS
from tessera.domain.economics.forecast import (
    PER_MONTH,
    TOKENS,
    Assumptions,
    Factor,
    FactorRange,
    Percentiles,
    TokenWeights,
    UsageFactors,
    draws,
    percentiles,
)

MILLION = FactorRange.exactly(1e6)


def assumptions(**changes: Any) -> Assumptions:
    defaults = {"requests": MILLION, "prompt_tokens": 300, "answer_tokens": 200}
    ranges = {
        name: value if isinstance(value, FactorRange) else FactorRange.exactly(value)
        for name, value in {**defaults, **changes}.items()
    }
    return Assumptions(**ranges)


def a_range(text: str) -> FactorRange:
    low, likely, high = map(float, text.split(":"))
    return FactorRange(low=low, likely=likely, high=high)


def test_10_000_requests_a_minute_are_432_million_a_month() -> None:
    """F30."""
    requests = 10_000 * PER_MONTH["min"]

    assert requests == 432e6
    assert requests / (MONTH_HOURS * 3600) == pytest.approx(166.7, abs=0.05)
    assert 500_000 / requests == pytest.approx(0.001157, abs=5e-7)


def test_tokens_are_a_product_of_factors() -> None:
    likely = assumptions(hidden_tokens=100, turns=3, retries=0.5, answers=2).likely

    # Of three turns the second sends one earlier exchange again, and the third sends two.
    history = (0 + 500 + 2 * 500) / 3
    assert likely.history_tokens == history
    assert likely.monthly() == 1e6 * 1.5 * (300 + 100 + history + 2 * 200)
    assert likely.monthly(TokenWeights(0, 1)) == 1e6 * 1.5 * 400


@pytest.mark.parametrize("factor", list(Factor))
def test_one_uncertain_factor_alone_gives_its_own_range(factor: Factor) -> None:
    low, likely, high = 2.0, 3.0, 7.0
    uncertain = assumptions(**{factor: FactorRange(low=low, likely=likely, high=high)})

    expected = [replace(uncertain.likely, **{factor: each}).monthly() for each in (2, 3, 7)]
    assert percentiles(draws(uncertain), TOKENS) == pytest.approx(expected, rel=0.003)


def test_what_is_certain_has_no_range() -> None:
    certain = assumptions()

    assert percentiles(draws(certain), TOKENS) == Percentiles(500e6, 500e6, 500e6)


def test_percentiles_are_those_of_many_random_cases() -> None:
    uncertain = assumptions(
        requests=a_range("5e5:1e6:3e6"),
        hidden_tokens=a_range("0:200:1200"),
        turns=a_range("1:2:6"),
        retries=a_range("0:0.05:0.5"),
        answer_tokens=a_range("100:200:800"),
    )
    rng = random.Random(37)  # noqa: S311 - not a secret
    least = {Factor.TURNS: 1.0}
    counts = [
        UsageFactors(
            **{
                factor: max(least.get(factor, 0.0), each.quantile(rng.random()))
                for factor, each in uncertain.ranges.items()
            }
        ).monthly()
        for _ in range(20_000)
    ]

    tenths = quantiles(counts, n=10)
    expected = (tenths[0], tenths[4], tenths[8])
    assert percentiles(draws(uncertain), TOKENS) == pytest.approx(expected, rel=0.03)
    assert draws(uncertain) == draws(uncertain)


def test_a_range_that_begins_at_0_has_cases_at_0() -> None:
    hidden = a_range("0:200:800")

    assert [hidden.quantile(share) for share in (0.01, 0.1, 0.5)] == [0, pytest.approx(0), 200]
    deviation = NormalDist().inv_cdf(0.99) / NormalDist().inv_cdf(0.9)
    assert hidden.quantile(0.99) == pytest.approx(200 * 4**deviation)


@pytest.mark.parametrize("factor", [Factor.REQUESTS, Factor.PROMPT, Factor.ANSWER, Factor.RETRIES])
def test_a_wider_range_is_never_a_narrower_forecast(factor: Factor) -> None:
    def forecast(width: float) -> Percentiles:
        uncertain = FactorRange(low=1e5 / width, likely=1e5, high=1e5 * width)
        return percentiles(draws(assumptions(**{factor: uncertain})), TOKENS)

    for inner, outer in pairwise(map(forecast, (1, 1.1, 2, 10, 1e4))):
        assert outer.p10 < inner.p10
        assert outer.p90 > inner.p90


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"requests": 0}, "requests 0:0:0 has to be above 0"),
        ({"turns": 0.5}, "turns 0.5:0.5:0.5 has to be at least 1"),
        ({"answer_tokens": 0}, "answerTokens 0:0:0 has to be at least 1"),
        ({"answers": 0}, "answers 0:0:0 has to be at least 1"),
    ],
)
def test_a_factor_that_cannot_be_is_refused(changes: dict[str, float], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        assumptions(**changes)


@pytest.mark.parametrize("text", ["2:1:3", "1:3:2", "-1:0:1", "0:1:inf", "nan:nan:nan", "1:2:1e16"])
def test_a_range_of_other_numbers_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="is no low:likely:high of ascending numbers"):
        a_range(text)
