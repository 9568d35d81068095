"""A verdict follows its rule, whatever the suite is."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tessera.domain.quality.verdict import (
    GateTerms,
    ScoredPrompt,
    Verdict,
    judge,
    judge_first,
)

TERMS = GateTerms()
scores = st.sampled_from((0.0, 0.25, 0.5, 1.0))
suites = st.lists(
    st.builds(
        ScoredPrompt,
        id=st.integers(0, 10**6).map(str),
        stratum=st.sampled_from(("code", "sums", "tools")),
        weight=st.sampled_from((1.0, 1.0, 3.0)),
        baseline=scores,
        second_baseline=st.none() | scores,
        candidate=scores,
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda prompt: prompt.id,
)
few = settings(max_examples=40)


def answered(
    stratum: str, *, right: int = 0, wrong: int = 0, lost: int = 0, gained: int = 0
) -> list[ScoredPrompt]:
    pairs = (
        [(1.0, 1.0)] * right + [(0.0, 0.0)] * wrong + [(1.0, 0.0)] * lost + [(0.0, 1.0)] * gained
    )
    return [
        ScoredPrompt(
            id=f"{stratum}-{number}",
            stratum=stratum,
            baseline=baseline,
            second_baseline=baseline,
            candidate=candidate,
        )
        for number, (baseline, candidate) in enumerate(pairs)
    ]


def test_a_proven_loss_of_the_total_fails() -> None:
    verdict = judge(answered("code", right=350, wrong=30, lost=15, gained=5), TERMS)
    # McNemar by hand: 1 + 20 + 190 + 1,140 + 4,845 + 15,504 of 2^20 have at most 5 gains.
    assert verdict.total.p_value == pytest.approx(21_700 / 2**20)
    assert verdict.outcome == "Failed"
    assert verdict.total.loss_points == pytest.approx(2.5)
    assert [row.is_lost for row in (verdict.total, *verdict.strata)] == [True, False]
    assert (
        verdict.message == "Loss proven on 400 prompts: total 2.50 points (p 0.021, margin 2.00)."
    )


def test_a_proven_loss_below_the_margin_does_not_fail() -> None:
    verdict = judge(answered("code", right=970, wrong=10, lost=19, gained=1), TERMS)
    assert verdict.total.p_value < 0.0001
    assert verdict.outcome == "Inconclusive"
    assert verdict.total.loss_points == pytest.approx(1.8)


def test_a_stratum_fails_though_the_total_does_not() -> None:
    suite = [*answered("code", right=990, wrong=200), *answered("sums", right=39, lost=11)]
    verdict = judge(suite, TERMS)
    code, sums = verdict.strata
    assert verdict.outcome == "Failed"
    assert not verdict.total.is_lost
    assert (code.is_lost, sums.is_lost) == (False, True)
    assert sums.margin_points == pytest.approx(5.0)
    # Holm: the least of two has to be below 0.5 %, and 9 losses would be 0.2 %.
    assert judge(suite[:-2], TERMS).outcome == "Failed"
    assert judge(suite[:-4], TERMS).outcome == "Inconclusive"


def test_a_loss_that_is_proven_to_be_below_the_margin_passes() -> None:
    verdict = judge(answered("code", right=1_900, wrong=300, lost=10, gained=12), TERMS)
    assert (verdict.outcome, verdict.missing_prompts) == ("Passed", 0)
    assert verdict.largest_loss_points is not None
    assert verdict.largest_loss_points < 0.5
    assert verdict.message == "2222 prompts: loss -0.09 points, at most 0.31 at 95 %, margin 2.00."


def test_a_stratum_at_its_margin_does_not_pass() -> None:
    suite = answered("code", right=1_900, wrong=300)
    suite += answered("sums", right=46, wrong=1, lost=3)
    verdict = judge(suite, TERMS)
    assert verdict.largest_loss_points is not None
    assert verdict.largest_loss_points < 2
    assert verdict.outcome == "Inconclusive"
    assert "; sums 6.00, margin 4.90." in verdict.message


def test_an_inconclusive_verdict_says_what_the_suite_cannot_see() -> None:
    suite = answered("code", right=300, wrong=60, lost=20, gained=20)
    verdict = judge(suite, TERMS)
    assert verdict.outcome == "Inconclusive"
    assert verdict.total.unseen_loss_points == pytest.approx(5.2, abs=0.1)
    assert verdict.missing_prompts == verdict.needed_prompts - 400 > 1_000
    assert verdict.message == (
        "400 prompts: loss 0.00 points, at most 2.87 at 95 %, margin 2.00. A loss below 5.2 points "
        f"is not seen at a discordance of 10.0 %; prompts with which an equal one "
        f"passes: {verdict.needed_prompts:,}."
    )


def test_strata_with_few_prompts_are_judged_together() -> None:
    suite = [*answered("code", right=30), *answered("sums", right=29), *answered("tools", lost=8)]
    verdict = judge(suite, TERMS)
    assert [(row.name, row.prompts) for row in verdict.strata] == [("code", 30), ("small", 37)]
    assert verdict.strata[1].is_lost


def test_two_runs_of_the_baseline_raise_what_a_suite_needs() -> None:
    suite = answered("code", right=380, lost=10, gained=10)
    noisy = [
        replace(prompt, second_baseline=1.0 - prompt.baseline) if number % 5 == 0 else prompt
        for number, prompt in enumerate(suite)
    ]
    steady, verdict = judge(suite, TERMS), judge(noisy, TERMS)
    assert (steady.baseline_discordance, verdict.baseline_discordance) == (0.0, 0.2)
    assert verdict.needed_prompts > 2 * steady.needed_prompts
    assert verdict.total.unseen_loss_points > steady.total.unseen_loss_points
    assert verdict.outcome == steady.outcome
    once = judge([replace(prompt, second_baseline=None) for prompt in suite], TERMS)
    assert once.baseline_discordance is None
    assert once.needed_prompts == steady.needed_prompts


def in_groups(suite: list[ScoredPrompt], size: int) -> list[ScoredPrompt]:
    """Return so many prompts for each, which are scored alike."""
    return [
        replace(prompt, id=f"{prompt.id}/{number}", group=prompt.id)
        for prompt in suite
        for number in range(size)
    ]


@few
@given(suites, st.sampled_from((4, 8)))
def test_prompts_of_a_group_that_are_scored_alike_say_no_more_than_one(
    suite: list[ScoredPrompt], size: int
) -> None:
    alone, verdict = judge(suite, TERMS), judge(in_groups(suite, size), TERMS)
    assert rounded(verdict) == rounded(alone)
    assert verdict.needed_prompts == pytest.approx(alone.needed_prompts, abs=1)
    assert verdict.missing_prompts == pytest.approx(alone.missing_prompts, abs=1)
    assert (verdict.total.prompts, verdict.total.cases) == (size * len(suite), len(suite))
    first, of_groups = judge_first(suite, 0.5, 30), judge_first(in_groups(suite, size), 0.5, 30)
    assert rounded(of_groups) == rounded(first)


def test_a_verdict_counts_in_groups_what_a_suite_of_groups_lacks() -> None:
    suite = answered("code", right=75, wrong=15, lost=5, gained=5)
    verdict = judge(in_groups(suite, 4), TERMS)
    assert verdict.message.startswith("400 prompts in 100 groups: loss 0.00 points, at most ")
    assert verdict.message.endswith(
        f"; groups with which an equal one passes: {verdict.needed_prompts:,}."
    )
    assert verdict.missing_prompts == verdict.needed_prompts - 100
    first = judge_first(in_groups(suite, 4), 0.5, 30)
    assert first.message.startswith("400 prompts in 100 groups: score 0.8000, at least 0.7")


def test_a_group_counts_by_the_weights_of_its_prompts_in_each_stratum() -> None:
    heavy, light, even, *alone = (
        *answered("code", lost=1, gained=1),
        *answered("sums", right=4),
    )
    grouped = [replace(prompt, group="a") for prompt in (light, even)]
    suite = [replace(heavy, group="a", weight=3.0), *grouped, *alone]
    verdict = judge(suite, replace(TERMS, min_prompts=1))
    code, sums = verdict.strata
    assert (verdict.total.cases, code.cases, sums.cases) == (4, 1, 4)
    assert code.loss_points == pytest.approx(50)
    assert verdict.total.loss_points == pytest.approx(100 * 2 / 8)
    # A stratum of one group is no stratum of 30 prompts.
    paraphrases = in_groups(answered("code", lost=1), 60)
    assert [row.name for row in judge(paraphrases, TERMS).strata] == ["small"]
    assert judge(paraphrases, TERMS).outcome == "Inconclusive"


@pytest.mark.parametrize("size", [4, 8])
def test_equal_candidates_fail_in_at_most_one_of_twenty_suites_of_groups(size: int) -> None:
    draw, failed = random.Random(size), 0  # noqa: S311 - not a secret
    for _ in range(200):
        groups = answered("code", right=400 // size)
        drawn = [
            replace(prompt, baseline=float(place > 0.05), candidate=float(not 0.05 < place < 0.1))
            for prompt in groups
            for place in [draw.random()]
        ]
        failed += judge(in_groups(drawn, size), TERMS).outcome == "Failed"
    assert failed <= 0.05 * 200 + 6


PROMPT = answered("code", right=1)[0]


@pytest.mark.parametrize(
    ("suite", "problem"),
    [
        ([], "no prompt was answered"),
        ([PROMPT, replace(PROMPT, candidate=0.0)], "prompt code-0 is scored twice"),
        ([replace(PROMPT, candidate=math.nan)], "a score is not between 0 and 1"),
        ([replace(PROMPT, second_baseline=1.01)], "a score is not between 0 and 1"),
        ([replace(PROMPT, weight=math.nan)], "the weight is not between"),
        ([replace(PROMPT, weight=math.inf)], "the weight is not between"),
        ([replace(PROMPT, weight=0.0)], "the weight is not between"),
        ([replace(PROMPT, stratum="total")], "a stratum is named total"),
        (
            [replace(PROMPT, id=str(number), stratum=str(number)) for number in range(17)],
            "17 strata, at most 16",
        ),
    ],
)
def test_a_contradictory_suite_is_refused(suite: list[ScoredPrompt], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        judge(suite, TERMS)


def test_one_prompt_and_equal_answers_decide_nothing() -> None:
    assert judge([PROMPT], TERMS).outcome == "Inconclusive"
    tied = judge(answered("code", right=100, wrong=48), TERMS)
    assert (tied.outcome, tied.missing_prompts) == ("Inconclusive", 3)
    assert judge(answered("code", right=100, wrong=51), TERMS).outcome == "Passed"
    worthless = judge(answered("code", wrong=400), TERMS)
    assert (worthless.outcome, worthless.total.baseline) == ("Passed", 0.0)


def test_scores_that_differ_by_rounding_alone_are_equal() -> None:
    suite = [replace(prompt, candidate=1 - 1e-12) for prompt in answered("code", right=160)]
    verdict = judge(suite, TERMS)
    assert (verdict.outcome, verdict.total.discordance) == ("Passed", 0.0)
    tiny = [replace(prompt, candidate=1e-300) for prompt in answered("code", wrong=160)]
    assert judge(tiny, TERMS).outcome == "Passed"


def test_one_lost_prompt_of_the_heaviest_weight_is_not_overlooked() -> None:
    light = answered("code", right=1_000)
    assert judge(light, TERMS).outcome == "Passed"
    heavy = [replace(prompt, weight=1_000.0) for prompt in answered("sums", right=10)]
    assert judge([*light, *heavy], TERMS).outcome == "Inconclusive"


def rounded(verdict: Verdict) -> object:
    rows = [
        (
            row.name,
            round(row.loss_points, 6),
            round(row.p_value, 6),
            round(row.unseen_loss_points, 2),
        )
        for row in (verdict.total, *verdict.strata)
    ]
    return verdict.outcome, round(verdict.largest_loss_points or 0.0, 5), rows


@few
@given(suites, st.randoms())
def test_the_order_of_prompts_does_not_matter(
    suite: list[ScoredPrompt], order: random.Random
) -> None:
    assert judge(order.sample(suite, len(suite)), TERMS) == judge(suite, TERMS)


@few
@given(suites, st.sampled_from((0.01, 0.5, 7.0)))
def test_the_scale_of_weights_does_not_matter(suite: list[ScoredPrompt], scale: float) -> None:
    scaled = [replace(prompt, weight=scale * prompt.weight) for prompt in suite]
    assert rounded(judge(scaled, TERMS)) == rounded(judge(suite, TERMS))


@few
@given(suites)
def test_in_exchanged_roles_a_loss_is_a_gain(suite: list[ScoredPrompt]) -> None:
    exchanged = [
        replace(
            prompt,
            baseline=prompt.candidate,
            second_baseline=None,
            candidate=prompt.baseline,
        )
        for prompt in suite
    ]
    one_way, back = judge(suite, TERMS), judge(exchanged, TERMS)
    assert one_way.total.loss_points == pytest.approx(-back.total.loss_points)
    assert (one_way.outcome, back.outcome) != ("Failed", "Failed") or {
        row.name for row in one_way.strata if row.is_lost
    }.isdisjoint(row.name for row in back.strata if row.is_lost)
    assert (one_way.largest_loss_points or 0) + (back.largest_loss_points or 0) > 0


@few
@given(suites, st.integers(0, 29))
def test_one_more_lost_prompt_never_looks_better(suite: list[ScoredPrompt], number: int) -> None:
    prompt = suite[number % len(suite)]
    assume(prompt.candidate > 0)
    worse = [replace(row, candidate=0.0) if row == prompt else row for row in suite]
    before, after = judge(suite, TERMS), judge(worse, TERMS)
    assert after.total.loss_points > before.total.loss_points
    assert (after.largest_loss_points or 0) > (before.largest_loss_points or 0)
    assert (before.outcome, after.outcome) not in {
        ("Failed", "Passed"),
        ("Inconclusive", "Passed"),
    }


@pytest.mark.parametrize(
    ("right", "wrong", "outcome"),
    [
        # Clopper and Pearson: of 400 prompts 337 right ones prove 0.8 at 95 %, and 335 do not.
        (337, 63, "Passed"),
        (330, 70, "Inconclusive"),
        (320, 80, "Inconclusive"),
        (319, 81, "Failed"),
        (0, 9, "Failed"),
    ],
)
def test_a_first_version_needs_its_score_whatever_others_have(
    right: int, wrong: int, outcome: str
) -> None:
    verdict = judge_first(answered("code", right=right, wrong=wrong), 0.8, 30)
    assert verdict.outcome == outcome
    assert verdict.total.candidate == pytest.approx(right / (right + wrong))
    assert verdict.total.is_lost is (outcome == "Failed")
    assert f"score {right / (right + wrong):.4f}" in verdict.message


@few
@given(suites, st.floats(0, 1))
def test_a_first_version_that_passes_is_above_its_score_in_estimate_and_bound(
    suite: list[ScoredPrompt], least: float
) -> None:
    verdict = judge_first(suite, least, 30)
    total = verdict.total
    weight = sum(row.weight for row in suite)
    assert total.candidate == pytest.approx(
        sum(row.weight * row.candidate for row in suite) / weight
    )
    assert verdict.largest_loss_points is not None
    assert verdict.largest_loss_points >= total.loss_points
    if verdict.outcome == "Passed":
        assert total.candidate >= least - 1e-9
    if total.candidate < least - 1e-9:
        assert verdict.outcome == "Failed"
    assert sum(row.prompts for row in verdict.strata) == total.prompts == len(suite)


def test_some_score_passes_by_chance_in_at_most_one_of_twenty_suites() -> None:
    draw, least, prompts = random.Random(5), 0.8, 200  # noqa: S311 - not a secret
    passed = 0
    for _ in range(400):
        right = sum(draw.random() < least for _ in range(prompts))
        verdict = judge_first(answered("code", right=right, wrong=prompts - right), least, 30)
        passed += verdict.outcome == "Passed"
    assert passed <= 0.05 * 400 + 9
