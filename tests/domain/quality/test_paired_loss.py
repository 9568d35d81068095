"""Statistics of a paired loss agree with other ways to compute them."""

import math
import random
from collections import Counter
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.quality.paired_loss import (
    MAX_NEEDED_PROMPTS,
    binomial_tail,
    loss_bound,
    needed_prompts,
    rejected_by_holm,
    sign_test,
    unseen_loss,
)

steps = st.lists(st.sampled_from((-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)), max_size=9)


def yes_or_no(prompts: int, lost: int, gained: int) -> dict[tuple[float, float], float]:
    return {(1.0, 1.0): lost, (-1.0, 1.0): gained, (0.0, 1.0): prompts - lost - gained}


def exact_tail(heads: int, tosses: int) -> float:
    ways = sum(math.comb(tosses, number) for number in range(max(0, heads), tosses + 1))
    return float(Fraction(ways, 2**tosses))


@given(st.integers(-2, 80), st.integers(0, 70))
def test_a_tail_is_the_sum_of_binomial_coefficients(heads: int, tosses: int) -> None:
    assert binomial_tail(heads, tosses) == pytest.approx(exact_tail(heads, tosses), rel=1e-9)


def test_a_tail_of_many_tosses_is_quick_and_right() -> None:
    assert binomial_tail(1_040, 2_000) == pytest.approx(exact_tail(1_040, 2_000), rel=1e-9)
    assert binomial_tail(100_000, 100_000) == 0.0


@pytest.mark.parametrize(
    ("lost", "gained", "p_value"),
    [
        # By hand: 1/2^5; (1 + 6)/2^6; (1 + 10 + 45)/2^10; all but the empty choice of 2.
        (5, 0, Fraction(1, 32)),
        (5, 1, Fraction(7, 64)),
        (8, 2, Fraction(56, 1024)),
        (1, 1, Fraction(3, 4)),
        (0, 4, Fraction(1)),
        (0, 0, Fraction(1)),
    ],
)
def test_yes_or_no_is_mcnemars_exact_test(lost: int, gained: int, p_value: Fraction) -> None:
    assert sign_test([1.0] * lost + [0.0] * 7 + [-1.0] * gained) == pytest.approx(float(p_value))


@given(steps)
def test_graded_steps_are_tested_over_all_signs(values: list[float]) -> None:
    sizes = [abs(value) for value in values if value]
    as_large = sum(
        sum(sign * size for sign, size in zip(signs, sizes, strict=True)) >= sum(values)
        for signs in product((1, -1), repeat=len(sizes))
    )
    assert sign_test(values) == pytest.approx(as_large / 2 ** len(sizes))


def test_many_graded_steps_are_tested_as_a_normal_sum() -> None:
    values = [size / 60 * (-1) ** number for number, size in enumerate([30, 60, 60, 30] * 125)]
    exact = sign_test([*values[:-20], *map(abs, values[-20:])])
    normal = sign_test([*values[:-20], *map(abs, values[-20:]), 0.5, -0.5])
    assert 0.01 < exact < 0.99
    assert normal == pytest.approx(exact, rel=0.03)


@given(steps, st.randoms())
def test_the_order_of_steps_does_not_matter(values: list[float], order: random.Random) -> None:
    shuffled = order.sample(values, len(values))
    assert sign_test(values) == sign_test(shuffled)
    assert values == [] or loss_bound(Counter((value, 1.0) for value in values)) == loss_bound(
        Counter((value, 1.0) for value in shuffled)
    )


@given(steps)
def test_a_gain_is_as_probable_as_the_same_loss(values: list[float]) -> None:
    # Both sides have what is observed, so together they have more than all.
    assert sign_test(values) + sign_test([-value for value in values]) >= 1 - 1e-12


def test_holm_goes_on_after_each_rejection() -> None:
    p_values = {"a": 0.003, "b": 0.004, "c": 0.02}
    assert rejected_by_holm(p_values, 0.01) == {"a", "b"}
    assert rejected_by_holm({**p_values, "a": 0.0034}, 0.01) == set()
    assert rejected_by_holm({}, 0.01) == set()


@pytest.mark.parametrize("prompts", [20, 150, 2_000])
def test_no_loss_seen_has_the_bound_of_clopper_and_pearson(prompts: int) -> None:
    assert loss_bound(yes_or_no(prompts, 0, 0)) == pytest.approx(1 - 0.05 ** (1 / prompts), 0.01)


@pytest.mark.parametrize(("prompts", "lost"), [(30, 3), (400, 1), (400, 20)])
def test_losses_without_gains_have_the_bound_of_clopper_and_pearson(
    prompts: int, lost: int
) -> None:
    bound = loss_bound(yes_or_no(prompts, lost, 0))
    tail = sum(
        math.comb(prompts, number) * bound**number * (1 - bound) ** (prompts - number)
        for number in range(lost + 1)
    )
    assert tail == pytest.approx(0.05, rel=0.01)


def test_the_bound_is_that_of_drawn_weights() -> None:
    draw = random.Random(1)  # noqa: S311 - not a secret
    losses = [
        (draw.choice((-1.0, -0.3, 0.0, 0.0, 0.4, 1.0)), draw.choice((1.0, 3.0))) for _ in range(60)
    ]
    heavy = sum(weight**2 for _, weight in losses) / sum(weight for _, weight in losses)
    bound = loss_bound(Counter(losses))
    below = 0
    for _ in range(4_000):
        drawn = [draw.expovariate(1) * weight for _, weight in losses] + [
            draw.expovariate(1) * heavy
        ]
        mean = sum(map(float.__mul__, drawn, [*(loss for loss, _ in losses), 1.0])) / sum(drawn)
        below += mean < bound
    assert below / 4_000 == pytest.approx(0.95, abs=0.012)


@given(st.integers(1, 200), st.integers(0, 100), st.integers(0, 100))
def test_more_losses_and_fewer_gains_raise_the_bound(prompts: int, lost: int, gained: int) -> None:
    lost, gained = min(lost, prompts - 1), min(gained, prompts - 1 - lost if lost < prompts else 0)
    bound = loss_bound(yes_or_no(prompts, lost, gained))
    assert loss_bound(yes_or_no(prompts, lost + 1, gained)) > bound > (lost - gained) / prompts


def test_all_lost_is_bounded_by_one() -> None:
    assert loss_bound(yes_or_no(5, 5, 0)) == 1.0


def test_a_loss_that_is_said_to_be_seen_is_proven_in_8_of_10_suites() -> None:
    draw = random.Random(2)  # noqa: S311 - not a secret
    loss = unseen_loss(400, 0.1, 0.04)
    kinds = draw.choices((1, -1, 0), (0.05 + loss, 0.05, 0.9 - loss), k=400 * 1_000)
    suites = [Counter(kinds[begin : begin + 400]) for begin in range(0, len(kinds), 400)]
    proven = [binomial_tail(suite[1], suite[1] + suite[-1]) <= 0.04 for suite in suites]
    assert sum(proven) / len(proven) == pytest.approx(0.8, abs=0.04)


def test_a_suite_of_few_prompts_sees_nothing() -> None:
    assert unseen_loss(1, 0.0, 0.04) == 1.0
    assert unseen_loss(6, 1.0, 0.001) == 1.0


def test_a_margin_of_2_points_needs_some_1600_prompts_and_more_in_strata() -> None:
    # By hand: (1.645 + 0.842)^2 x 0.1 / 0.02^2 = 1,546, and 1 / 0.02 = 50 to make up for the prompt
    # that is added.
    alone = needed_prompts(0.02, 0.1, [(1.0, 0.05, 0.1)])
    assert 1_596 < alone < 1_676
    assert needed_prompts(0.02, 0.1, [(0.125, 0.04, 0.1)] * 8) > 1.2 * alone


def test_a_margin_that_no_suite_can_keep_needs_more_than_all() -> None:
    assert needed_prompts(0.02, 0.1, [(1.0, 0.0, 0.1)]) == MAX_NEEDED_PROMPTS
    assert needed_prompts(0.02, 0.0, [(1.0, 0.05, 0.0)]) == 151
