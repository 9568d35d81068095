"""What drafted tokens add to a step, and what they gain."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.perf.speculation import (
    acceptance_of,
    assumed_acceptance,
    decode_gain,
    expected_tokens,
)
from tessera.domain.perf.step import Drafting, StepTime

# An 8B model that drafts five tokens for a 70B one.
DRAFT_COST = 8 / 70
MODEL = StepTime(weights=40e-3, kv_token=1e-7, token=1e-4)
DRAFT = StepTime(weights=4e-3, kv_token=1e-8, token=1e-5)


# Acceptance, tokens of a step and gain of five drafted tokens, as published.
PUBLISHED = [
    (0.40, 1.6598, 1.056),
    (0.45, 1.8031, 1.147),
    (0.50, 1.9688, 1.253),
    (0.60, 2.3834, 1.517),
    (0.70, 2.9412, 1.872),
    (0.80, 3.6893, 2.348),
    (0.90, 4.6856, 2.982),
]


@pytest.mark.parametrize(("acceptance", "tokens", "gain"), PUBLISHED)
def test_five_drafted_tokens_gain_what_the_published_table_says(
    acceptance: float, tokens: float, gain: float
) -> None:
    assert expected_tokens(acceptance, 5) == pytest.approx(tokens, abs=6e-5)
    assert decode_gain(acceptance, 5, DRAFT_COST) == pytest.approx(gain, abs=1e-3)


@pytest.mark.parametrize(
    ("temperature", "low", "high"), [(0.0, 2.0, 3.0), (0.5, 1.5, 2.0), (1.0, 1.5, 1.6)]
)
def test_the_assumed_acceptance_gains_less_the_warmer_the_sample(
    temperature: float, low: float, high: float
) -> None:
    assert low <= decode_gain(assumed_acceptance(temperature), 5, DRAFT_COST) <= high


@given(st.floats(0, 0.99), st.integers(1, 8))
def test_the_acceptance_follows_from_the_share_that_engines_count(
    acceptance: float, tokens: int
) -> None:
    share = (expected_tokens(acceptance, tokens) - 1) / tokens
    assert acceptance_of(share, tokens) == pytest.approx(acceptance, abs=1e-6)


@pytest.mark.parametrize(
    ("share", "tokens", "acceptance"),
    [(0.0, 5, 0.0), (1.0, 5, 1.0), (1.2, 5, 1.0), (-0.1, 0, 0.0), (0.4, 1, 0.4)],
)
def test_impossible_counts_give_an_acceptance_from_0_to_1(
    share: float, tokens: int, acceptance: float
) -> None:
    assert acceptance_of(share, tokens) == pytest.approx(acceptance, abs=1e-6)


def drafted(step: StepTime | None = DRAFT) -> StepTime:
    drafting = Drafting(tokens=5, accepted=expected_tokens(0.6, 5) - 1, step=step)
    return StepTime(weights=40e-3, kv_token=1e-7, token=1e-4, drafting=drafting)


def test_a_step_verifies_all_drafted_tokens_and_runs_the_draft_once_for_each() -> None:
    verified = MODEL.seconds(decoding=4, kv_tokens=8000, prefill_tokens=20)
    drafting = 5 * DRAFT.seconds(decoding=4, kv_tokens=8000)
    assert drafted().seconds(decoding=4, kv_tokens=8000) == pytest.approx(verified + drafting)


def test_drafts_without_a_model_cost_only_their_verification() -> None:
    verified = MODEL.seconds(decoding=4, kv_tokens=8000, prefill_tokens=20)
    assert drafted(None).seconds(decoding=4, kv_tokens=8000) == pytest.approx(verified)


def test_the_draft_reads_a_prompt_once() -> None:
    plain, draft = (
        step.seconds(decoding=0, kv_tokens=900, prefill_tokens=900) for step in (MODEL, DRAFT)
    )
    assert drafted().seconds(decoding=0, kv_tokens=900, prefill_tokens=900) == plain + draft


def test_a_draft_may_take_a_share_of_the_time_of_another_step() -> None:
    drafting = Drafting(tokens=5, accepted=1.0, step=MODEL, cost=0.1)
    seconds = replace(MODEL, drafting=drafting).seconds(decoding=4, kv_tokens=8000)
    verified = MODEL.seconds(decoding=4, kv_tokens=8000, prefill_tokens=20)
    draft = MODEL.seconds(decoding=4, kv_tokens=8000)
    assert seconds == pytest.approx(verified + 5 * 0.1 * draft)


def test_a_slower_engine_drafts_more_slowly_too() -> None:
    step = drafted()
    twice = step.scaled(2.0, "Measured")
    assert twice.seconds(decoding=3, kv_tokens=900) == pytest.approx(
        2 * step.seconds(decoding=3, kv_tokens=900)
    )
    assert (twice.decode_tokens, twice.tokens_per_step) == (6, step.tokens_per_step)


def test_the_gain_shrinks_with_the_requests_and_becomes_a_loss() -> None:
    gains = [
        drafted().decode_gain(sequences, sequences * 1000) for sequences in (1, 8, 32, 64, 256)
    ]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 1.4
    assert gains[-1] < 1


def test_without_drafts_a_step_yields_one_token_and_gains_nothing() -> None:
    assert (MODEL.decode_tokens, MODEL.tokens_per_step, MODEL.decode_gain(8, 8000)) == (1, 1.0, 1.0)
