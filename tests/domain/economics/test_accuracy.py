"""Which factor of a forecast was wrong, by the requests of a recorded day."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.economics.accuracy import (
    Accuracy,
    ConversationInput,
    MeasuredUsage,
    compare,
)
from tessera.domain.economics.forecast import Factor, UsageFactors
from tessera.domain.economics.measurement import LoggedRequest, measure
from tests.domain.economics.recorded_day import DayOfChats

USUAL = DayOfChats()
SHARED = replace(USUAL, senders=1)
PLANTED: dict[str, tuple[dict[str, Any], Factor]] = {
    "more requests": ({"requests": 9000}, Factor.REQUESTS),
    "retries": ({"retries": 1.0}, Factor.RETRIES),
    "hidden prompt": ({"hidden_tokens": 1350}, Factor.HIDDEN),
    "longer prompts": ({"prompt_tokens": 480}, Factor.PROMPT),
    # From 1 to 9 turns have twice the earlier exchanges of 1 to 5.
    "doubled history": ({"most_turns": 9}, Factor.TURNS),
    "longer answers": ({"answer_tokens": 800}, Factor.ANSWER),
}
SEEDS = (1, 2, 3)
ASSUMED = UsageFactors(
    requests=1e6,
    retries=0,
    prompt_tokens=400,
    hidden_tokens=0,
    turns=1,
    answer_tokens=200,
    answers=1,
)


def accuracy_of(day: DayOfChats, seed: int, forecast: DayOfChats = USUAL) -> Accuracy:
    usage = measure(day.records(seed), 1.0)
    assert usage is not None
    return compare(forecast.factors, usage)


def main_cause(accuracy: Accuracy) -> tuple[Factor, ...]:
    return accuracy.causes[0].factors


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("changes", "cause"), PLANTED.values(), ids=PLANTED)
def test_the_planted_cause_of_a_day_is_named(
    changes: dict[str, Any], cause: Factor, seed: int
) -> None:
    planted = replace(USUAL, **changes)
    accuracy = accuracy_of(planted, seed)

    error = accuracy.causes[0]
    assert error.factors == (cause,)
    assert accuracy.share(error) > 0.85
    assert error.actual == pytest.approx(getattr(planted.factors, cause), rel=0.12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("changes", "causes"),
    [
        ({"most_turns": 9}, (Factor.PROMPT, Factor.TURNS)),
        ({"prompt_tokens": 480}, (Factor.PROMPT, Factor.TURNS)),
        ({"prompt_tokens": 360, "hidden_tokens": 450}, tuple(Factor)[2:5]),
        ({"hidden_tokens": 1350}, (Factor.HIDDEN,)),
        ({"retries": 1.0}, (Factor.RETRIES,)),
        ({"answer_tokens": 800}, (Factor.ANSWER,)),
    ],
)
def test_where_an_application_sends_for_all_its_users_prompts_and_history_are_not_told_apart(
    changes: dict[str, Any], causes: tuple[Factor, ...], seed: int
) -> None:
    assert main_cause(accuracy_of(replace(SHARED, **changes), seed)) == causes


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("day", [USUAL, SHARED])
def test_a_day_as_forecast_has_no_cause(day: DayOfChats, seed: int) -> None:
    accuracy = accuracy_of(day, seed)

    assert accuracy.ratio == pytest.approx(1, abs=0.05)
    assert accuracy.causes == ()


def test_two_planted_causes_have_their_shares() -> None:
    planted = replace(USUAL, hidden_tokens=1350, retries=1.0)
    accuracy = accuracy_of(planted, 1)

    shares = {error.factors: accuracy.share(error) for error in accuracy.causes}
    attempts = math.log(2 / 1.02)
    hidden = math.log(replace(planted, retries=0.02).factors.monthly() / USUAL.factors.monthly())
    assert shares == {
        (Factor.HIDDEN,): pytest.approx(hidden / (hidden + attempts), abs=0.05),
        (Factor.RETRIES,): pytest.approx(attempts / (hidden + attempts), abs=0.05),
    }


def test_among_very_many_requests_of_one_key_chance_hides_which_were_sent_again() -> None:
    busy = replace(SHARED, requests=10_000, prompt_tokens=15, most_turns=1)

    assert main_cause(accuracy_of(replace(busy, retries=1.0), 1, busy)) == (
        Factor.REQUESTS,
        Factor.RETRIES,
    )


def test_prompts_of_one_length_do_not_show_whether_a_hidden_prompt_is_in_them() -> None:
    documents = [
        LoggedRequest(
            started_at=60.0 * index,
            ended_at=60.0 * index + 5,
            sender=("team-a",),
            input_tokens=3200 + index % 10,
            output_tokens=200,
        )
        for index in range(1440)
    ]
    usage = measure(documents, 1.0)
    assert usage is not None
    forecast = replace(ASSUMED, requests=43_200, prompt_tokens=2000)

    assert main_cause(compare(forecast, usage)) == (Factor.PROMPT, Factor.HIDDEN, Factor.TURNS)


def test_sums_show_only_what_they_have() -> None:
    usage = MeasuredUsage(requests=2e6, input_tokens=1600, output_tokens=200)
    accuracy = compare(ASSUMED, usage)

    assert [error.factors for error in accuracy.causes] == [
        (Factor.PROMPT, Factor.HIDDEN, Factor.TURNS),
        (Factor.REQUESTS, Factor.RETRIES),
    ]
    assert [error.actual for error in accuracy.causes] == [1600, 2e6]


def test_records_that_are_sums_are_taken_as_sums() -> None:
    records = replace(USUAL, hidden_tokens=1350).records(1)
    usage = measure([replace(record, requests=2) for record in records], 1.0)

    assert usage is not None
    assert usage.requests == 2 * 30 * len(records)
    assert (usage.retries, usage.shortest_tokens, usage.conversations) == (None, None, None)


def test_a_day_without_a_request_or_a_token_shows_nothing() -> None:
    assert measure([], 1.0) is None
    empty = LoggedRequest(started_at=0, ended_at=1, sender=(), input_tokens=0, output_tokens=0)
    assert measure([empty], 1.0) is None


def test_the_three_causes_of_the_opening_incident_make_its_factor_of_8() -> None:
    """H50: answers of 800 tokens instead of 200, 1,200 hidden ones, and every request twice."""
    usage = MeasuredUsage(
        requests=2e6,
        input_tokens=1600,
        output_tokens=800,
        retries=1,
        conversations=ConversationInput(hidden=1200, history=0),
    )
    accuracy = compare(ASSUMED, usage)

    assert accuracy.ratio == 8
    shares = {error.factors[0]: accuracy.share(error) for error in accuracy.causes}
    assert shares == {
        Factor.HIDDEN: pytest.approx(4 / 9),
        Factor.RETRIES: pytest.approx(1 / 3),
        Factor.ANSWER: pytest.approx(2 / 9),
    }


@pytest.mark.parametrize(
    ("prompt", "attempts"), [(57.14, 1.0), (100, 1.143), (200, 1.455), (400, 2.0), (1000, 3.2)]
)
def test_the_factor_of_8_needs_more_repeats_the_longer_its_unstated_prompts_are(
    prompt: float, attempts: float
) -> None:
    """H50: the source says nothing of the length of prompts, nor how often one was sent."""
    forecast = replace(ASSUMED, prompt_tokens=prompt)
    actual = replace(forecast, retries=attempts - 1, hidden_tokens=1200, answer_tokens=800)
    assert actual.monthly() / forecast.monthly() == pytest.approx(8, rel=1e-3)


FACTORS = st.builds(
    UsageFactors,
    requests=st.floats(1, 1e9),
    retries=st.floats(0, 5),
    prompt_tokens=st.floats(1, 1e5),
    hidden_tokens=st.floats(0, 1e4) | st.just(0.0),
    turns=st.floats(1, 20) | st.just(1.0),
    answer_tokens=st.floats(1, 1e4),
    answers=st.sampled_from([1.0, 4.0]),
)


@given(FACTORS, FACTORS, st.booleans(), st.booleans(), st.none() | st.floats(0, 1e4))
def test_the_effects_of_the_factors_multiply_to_the_whole_error(
    forecast: UsageFactors,
    actual: UsageFactors,
    has_retries: bool,
    has_conversations: bool,
    shortest: float | None,
) -> None:
    usage = MeasuredUsage(
        requests=actual.requests * actual.attempts,
        input_tokens=actual.input_tokens,
        output_tokens=actual.output_tokens,
        retries=actual.retries if has_retries else None,
        shortest_tokens=shortest,
        conversations=ConversationInput(hidden=actual.hidden_tokens, history=actual.history_tokens)
        if has_conversations
        else None,
    )
    accuracy = compare(forecast, usage)

    assert accuracy.actual_tokens == pytest.approx(actual.monthly(), rel=1e-6)
    effects = [error.effect for error in accuracy.errors]
    assert sum(effects) == pytest.approx(math.log(accuracy.ratio), rel=1e-6, abs=1e-6)
    names = [factor for error in accuracy.errors for factor in error.factors]
    assert sorted(names) == sorted(set(names))
