"""How often the verdict of a gate is wrong, and which losses it finds: `make bench-gates`.

Suites have 8 strata with 50 or 300 prompts each, of which the baseline answers 80 % rightly, and
margins are the defaults: 2 points in all, 5 % of a stratum's score. Two runs of one version differ
in 5, 10, 15 or 20 % of the prompts, as many lost as gained, and a true loss comes on top, as in
`unseen_loss`. Graded scores are quarters, and weights 1 to 3. Groups have 4 or 8 prompts, which
differ all alike, or each with its group in two of three cases and by itself else; 400 prompts in
1,000 suites, 2,400 in 250. `needed` is the least suite of such strata that an equal
candidate passes in 8 of 10 cases, by trial; `said` is the median of what verdicts on 400 prompts
say. `bound_size` is the largest probability, summed over all counts, that the bound alone is below
a true loss of 2 or 5 points, of 50 to 2,000 prompts. `score_400_cpu_seconds` is what a Job takes to
ask and score a starter suite (`tools/gate_scores.py`). The last line is `BENCH {json}`.
"""

import math
import os
import random
import statistics
import time
from bisect import bisect, bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate

from figures import benchmark
from gate_scores import score_cpu_seconds
from tessera.domain.quality.paired_loss import POWER, binomial_tail, loss_bound
from tessera.domain.quality.verdict import (
    GateTerms,
    LossOutcome,
    ScoredPrompt,
    StratumLoss,
    decide,
    judge,
)

_STRATA, _SMALL_SUITE, _LARGE_SUITE = 8, 400, 2_400
_BASELINE = 0.8
_TERMS = GateTerms()
_DISCORDANCES = (5, 10, 15, 20)
_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Name, outcome and true loss, as a share of the prompts, of verdicts that are wrong.
_WRONG_VERDICTS: Sequence[tuple[str, LossOutcome, float]] = (
    ("false_failed", "Failed", 0.0),
    ("bad_passed", "Passed", 0.02),
)

# Prompts of a stratum that are lost, gained, right in both, wrong in both.
Counts = tuple[int, int, int, int]
_tail = cache(binomial_tail)


@cache
def _bound(prompts: int, lost: int, gained: int) -> float:
    return 100 * loss_bound(
        {(1.0, 1.0): lost, (-1.0, 1.0): gained, (0.0, 1.0): prompts - lost - gained}
    )


@cache
def _row(name: str, counts: Counts) -> StratumLoss:
    lost, gained, right, _ = counts
    prompts = sum(counts)
    return StratumLoss(
        name=name,
        prompts=prompts,
        baseline=(lost + right) / prompts,
        candidate=(gained + right) / prompts,
        loss_points=100 * (lost - gained) / prompts,
        noise=(lost + gained) / prompts,
        p_value=_tail(lost, lost + gained),
    )


def _outcome(strata: Sequence[Counts]) -> LossOutcome:
    lost, gained, right, wrong = map(sum, zip(*strata, strict=True))
    rows = [_row(f"s{number}", counts) for number, counts in enumerate(strata)]
    total = _row("total", (lost, gained, right, wrong))
    return decide(total, rows, _bound(total.prompts, lost, gained), _TERMS).outcome


@cache
def _cumulative(trials: int, chance: float) -> list[float]:
    """Return the probabilities of at most 0, 1, … successes."""
    if chance >= 1:
        return [0.0] * trials + [1.0]
    term = (1 - chance) ** trials
    terms = [term]
    for successes in range(trials):
        term *= (trials - successes) / (successes + 1) * chance / (1 - chance)
        terms.append(term)
    cumulative = list(accumulate(terms))
    if abs(cumulative[-1] - 1) > 1e-6:
        raise ArithmeticError(f"{trials} trials at {chance} have a probability below all floats")
    return cumulative


def _drawn(draw: random.Random, trials: int, chance: float) -> int:
    return min(trials, bisect(_cumulative(trials, chance), draw.random()))


def _suites(
    draw: random.Random, suites: int, prompts: int, discordance: float, losses: Sequence[float]
) -> Iterator[list[Counts]]:
    """Draw the counts of suites whose strata have these true losses, on top of the discordance."""
    gained = discordance / 2
    size = prompts // _STRATA
    for _ in range(suites):
        suite = []
        for loss in losses:
            lost_prompts = _drawn(draw, size, gained + loss)
            left, chance = size - lost_prompts, 1 - gained - loss
            gained_prompts = _drawn(draw, left, gained / chance)
            left, chance = left - gained_prompts, chance - gained
            wrong = _drawn(draw, left, (1 - _BASELINE - gained) / chance)
            suite.append((lost_prompts, gained_prompts, left - wrong, wrong))
        yield suite


def _bound_size(prompts: int, discordance: float, loss: float) -> float:
    """Return the probability that the bound is below the true loss."""
    chances = ((discordance + loss) / 2, (discordance - loss) / 2, 1 - discordance)
    logs = [math.log(max(chance, 1e-300)) for chance in chances]
    size = 0.0
    for gained in range(int(prompts * chances[1] + 8 * math.sqrt(prompts * chances[1]) + 9)):
        # More losses raise the bound.
        passing = bisect_left(
            range(prompts - gained + 1),
            100 * loss,
            key=lambda lost: _bound(prompts, lost, gained),
        )
        for lost in range(passing):
            counts = (lost, gained, prompts - lost - gained)
            size += math.exp(
                math.lgamma(prompts + 1)
                + sum(
                    count * log - math.lgamma(count + 1)
                    for count, log in zip(counts, logs, strict=True)
                )
            )
    return size


def _largest_bound_size(most: int) -> float:
    return max(
        _bound_size(prompts, discordance, loss)
        for loss in (0.02, 0.05)
        for prompts in (50, 100, 149, 150, 200, 400, 1_000, 2_000)
        for discordance in (loss, 1.5 * loss, 0.1, 0.15, 0.2, 0.3)
        if prompts <= most and prompts * discordance <= 450
    )


def _share(outcome: LossOutcome, suites: Iterator[list[Counts]]) -> float:
    outcomes = [_outcome(suite) for suite in suites]
    return outcomes.count(outcome) / len(outcomes)


def _check_judge(suites: Iterator[list[Counts]]) -> None:
    """Raise unless the verdict on prompts is that on their counts."""
    pairs = ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0))
    for suite in suites:
        prompts = [
            ScoredPrompt(
                id=f"{stratum}/{kind}/{number}",
                stratum=f"s{stratum}",
                baseline=pair[0],
                candidate=pair[1],
            )
            for stratum, counts in enumerate(suite)
            for kind, (pair, count) in enumerate(zip(pairs, counts, strict=True))
            for number in range(count)
        ]
        if judge(prompts, _TERMS).outcome != _outcome(suite):
            raise AssertionError(f"another verdict on the prompts of {suite}")


def _graded(draw: random.Random, suites: int, loss: float) -> list[LossOutcome]:
    """Judge suites in which a fifth of the scores differ, by some quarters."""
    outcomes: list[LossOutcome] = []
    for _ in range(suites):
        prompts = []
        for number in range(_SMALL_SUITE):
            both = draw.random() >= 0.2
            baseline, candidate = draw.choice(_QUARTERS), draw.choice(_QUARTERS)
            # Half of these prompts would get a point; losing it costs as much as the true loss.
            if both:
                candidate = baseline = 1.0
                if draw.random() < loss / 0.8:
                    candidate = 0.0
            prompts.append(
                ScoredPrompt(
                    id=f"{number:03}",
                    stratum=f"s{number % _STRATA}",
                    weight=draw.choice((1.0, 2.0, 3.0)),
                    baseline=baseline,
                    candidate=candidate,
                )
            )
        outcomes.append(judge(prompts, _TERMS).outcome)
    return outcomes


def _grouped(
    draw: random.Random, suites: int, prompts: int, size: int, together: float, loss: float
) -> list[LossOutcome]:
    """Judge suites whose prompts differ at 10 %: with their group in this share of the cases."""
    gained = 0.05
    # Both are right, both are wrong, the candidate gains, it loses.
    pairs = ((1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0))
    chances = (_BASELINE - gained - loss, 1 - _BASELINE - gained, gained, gained + loss)
    outcomes: list[LossOutcome] = []
    for _ in range(suites):
        scored = []
        for group in range(prompts // size):
            of_group, *own = draw.choices(pairs, chances, k=1 + size)
            for number, pair in enumerate(own):
                baseline, candidate = of_group if draw.random() < together else pair
                scored.append(
                    ScoredPrompt(
                        id=f"{group:04}/{number}",
                        stratum=f"s{group % _STRATA}",
                        group=str(group),
                        baseline=baseline,
                        candidate=candidate,
                    )
                )
        outcomes.append(judge(scored, _TERMS).outcome)
    return outcomes


def _group_figures(draw: random.Random, suites: int) -> dict[str, float]:
    """Return the largest shares of wrong verdicts on suites of groups, by their size."""
    figures: dict[str, float] = {}
    for size in (4, 8):
        wrong: dict[str, list[float]] = {name: [] for name, _, _ in _WRONG_VERDICTS}
        for together in (1.0, 2 / 3):
            for prompts, count in ((_SMALL_SUITE, suites), (_LARGE_SUITE, suites // 4)):
                for name, outcome, loss in _WRONG_VERDICTS:
                    outcomes = _grouped(draw, count, prompts, size, together, loss)
                    wrong[name].append(outcomes.count(outcome) / count)
        figures |= {f"{name}_groups_of_{size}": max(shares) for name, shares in wrong.items()}
    return figures


def _said(draw: random.Random, suites: int, discordance: float) -> float:
    """Return the median of the prompts that verdicts on equal candidates ask for."""
    answers = []
    for _ in range(suites):
        prompts = []
        for number in range(_SMALL_SUITE):
            place = draw.random()
            # In so many prompts a run is right by a coin: two of them differ in half of these.
            if place < 2 * discordance:
                runs = [float(draw.random() < 0.5) for _ in range(3)]
            else:
                runs = [float(place < discordance + _BASELINE)] * 3
            prompts.append(
                ScoredPrompt(
                    id=f"{number:03}",
                    stratum=f"s{number % _STRATA}",
                    baseline=runs[0],
                    second_baseline=runs[1],
                    candidate=runs[2],
                )
            )
        answers.append(judge(prompts, _TERMS).needed_prompts)
    return statistics.median(answers)


def _needed(suites: int, discordance: float) -> int:
    """Return the fewest prompts of a suite that equal candidates pass often enough."""
    low, high = 20, 1_000
    while low < high:
        middle = (low + high) // 2
        draw = random.Random(7)  # noqa: S311 - not a secret
        drawn = _suites(draw, suites, _STRATA * middle, discordance, [0.0] * _STRATA)
        if _share("Passed", drawn) < POWER:
            low = middle + 1
        else:
            high = middle
    return _STRATA * low


def measure(
    suites: int = 10_000,
    graded: int = 1_000,
    most_prompts: int = 2_000,
    per_stratum: int = 40,
    seed: int = 1,
) -> dict[str, object]:
    """Draw the suites and count verdicts, by discordance."""
    os.nice(10)
    begun = time.process_time()
    draw = random.Random(seed)  # noqa: S311 - not a secret
    figures: dict[str, float] = {}
    equal, even = [0.0] * _STRATA, [1.0] * _STRATA
    in_two = [4.0, 4.0] + [0.0] * 6
    at_margin = [0.05 * _BASELINE] + [0.0] * 7
    for percent in _DISCORDANCES:
        discordance = percent / 100
        for prompts in (_SMALL_SUITE, _LARGE_SUITE):

            def share(outcome: LossOutcome, losses: Sequence[float]) -> float:
                drawn = _suites(draw, suites, prompts, discordance, losses)  # noqa: B023
                return _share(outcome, drawn)

            key = f"{prompts}_at_{percent}"
            figures[f"false_failed_{key}"] = share("Failed", equal)
            figures[f"bad_passed_{key}"] = share("Passed", [0.02 * part for part in even])
            figures[f"bad_passed_stratum_{key}"] = share("Passed", at_margin)
            if prompts == _SMALL_SUITE:
                points = [[0.05 * part for part in parts] for parts in (even, in_two)]
                figures[f"detection_5_points_{key}_even"] = share("Failed", points[0])
                figures[f"detection_5_points_{key}_in_two"] = share("Failed", points[1])
        _check_judge(_suites(draw, 50, _SMALL_SUITE, discordance, [0.03] * _STRATA))
        said, needed = (
            _said(draw, graded, discordance),
            _needed(suites // 2, discordance),
        )
        figures[f"prompts_said_at_{percent}"] = said
        figures[f"prompts_needed_at_{percent}"] = needed
        figures[f"prompts_said_vs_needed_at_{percent}"] = round(said / needed, 3)
        print(f"{percent} %, {time.process_time() - begun:.0f} CPU s", flush=True)
    figures["bound_size"] = round(_largest_bound_size(most_prompts), 4)
    figures["false_failed_graded"] = _graded(draw, graded, 0.0).count("Failed") / graded
    figures["bad_passed_graded"] = _graded(draw, graded, 0.02).count("Passed") / graded
    figures |= _group_figures(draw, graded)
    figures |= {
        "false_failed": max(_values(figures, "false_failed_")),
        "bad_passed": max(
            _values(
                figures, "bad_passed_4", "bad_passed_2", "bad_passed_graded", "bad_passed_groups"
            )
        ),
        "detection_5_points_400_prompts": min(_values(figures, "detection_5_points_400_at_10_")),
        "prompts_said_vs_needed": max(
            _values(figures, "prompts_said_vs_needed_"), key=lambda ratio: abs(ratio - 1)
        ),
        "score_400_cpu_seconds": round(score_cpu_seconds(per_stratum), 2),
    }
    return {**figures, "suites": suites, "cpu_seconds": round(time.process_time() - begun)}


def _values(figures: Mapping[str, float], *beginnings: str) -> list[float]:
    return [value for name, value in figures.items() if name.startswith(beginnings)]


if __name__ == "__main__":
    benchmark(
        measure,
        44,
        short={"suites": 4, "graded": 4, "most_prompts": 50, "per_stratum": 1},
        most_prompts={"help": "of the suites whose bound is computed"},
        per_stratum={"help": "prompts of the starter suite that a Job scores"},
    )
