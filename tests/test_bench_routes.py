"""The benchmark of routes finds what samples were made to have."""

import random

import pytest

from bench_routes import RULES, Answer, Half, Prompt, least_bounds, measure_sample

RIGHT, WRONG = 1.0, 0.0


def prompts(*, small_is_right_to: int, price: float = 0.1) -> list[Prompt]:
    """Return texts of 1 to 100 characters, of which the small model knows the shorter ones."""
    return [
        Prompt(
            "x" * length,
            Answer(RIGHT if length <= small_is_right_to else WRONG, price),
            Answer(RIGHT, 1.0),
        )
        for length in range(1, 101)
    ]


def halves(count: int) -> list[list[bool]]:
    rng = random.Random(1)  # noqa: S311 - the same splits each time
    return [[rng.random() < 0.5 for _ in range(100)] for _ in range(count)]


@pytest.mark.parametrize("rule", RULES)
def test_the_least_bound_is_the_first_that_sends_a_prompt_to_the_first_target(rule: str) -> None:
    texts = prompts(small_is_right_to=0)
    least = least_bounds(rule, texts)
    if rule == "characters":
        assert least == [len(prompt.text) for prompt in texts]
    elif rule in {"words", "score"}:
        assert set(least) == {1}
    else:
        # Even shares of weights.
        assert 35 <= sum(bound <= 500 for bound in least) <= 65


def test_a_rule_that_knows_which_prompts_are_hard_saves_as_the_oracle_does() -> None:
    sample = prompts(small_is_right_to=60)
    bounds = {rule: least_bounds(rule, sample) for rule in ("characters", "weights")}
    figures = measure_sample(sample, bounds, halves(20))
    # 65 of 100 at a tenth of the price: 5 wrong answers are within the promise.
    assert figures["oracle_cost"] == pytest.approx(0.415, abs=0.03)
    assert figures["characters_cost"] == pytest.approx(figures["oracle_cost"], abs=0.03)
    assert figures["weights_cost"] > 0.8
    assert (figures["first_quality"], figures["first_saved"]) == (0.6, 0.9)


def test_a_dearer_model_that_is_worse_saves_nothing() -> None:
    sample = [Prompt("x" * length, Answer(RIGHT, 0.1), Answer(WRONG, 1.0)) for length in range(100)]
    rows = list(zip(least_bounds("characters", sample), sample, strict=True))
    half = Half(rows)
    bound = half.bound()
    assert half.is_first_better
    assert half.outcome(bound, first_is_better=True) == pytest.approx((1.0, 1.0))


def test_no_bound_is_chosen_where_the_small_model_breaks_the_promise_at_once() -> None:
    sample = [Prompt("x", Answer(WRONG, 0.1), Answer(RIGHT, 1.0)) for _ in range(10)]
    half = Half([(1, prompt) for prompt in sample])
    assert half.bound() is None
    assert half.outcome(None, first_is_better=False) == (1.0, 1.0)
