"""Does one source of answers lose quality compared with another? It knows no Deployments."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter
from statistics import fmean
from typing import Literal

from tessera.api.quality_gate import MAX_STRATA
from tessera.api.text import counted
from tessera.domain.quality.paired_loss import (
    MAX_NEEDED_PROMPTS,
    loss_bound,
    needed_prompts,
    rejected_by_holm,
    sign_test,
    unseen_loss,
)

LossOutcome = Literal["Passed", "Failed", "Inconclusive"]
TOTAL, SMALL = "total", "small"

# At most 5 % of the candidates that lose nothing fail: 4 % by the total, 1 % by their strata.
TOTAL_LEVEL, STRATA_LEVEL = 0.04, 0.01
MIN_WEIGHT, MAX_WEIGHT = 1e-6, 1e6
# A sum of scores may be this far below a margin by rounding alone.
_ROUNDING = 1e-9
# With fewer prompts a stratum is taken to be about as noisy as the total.
_POOLED_PROMPTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPrompt:
    """The scores from 0 to 1 of both sources for one prompt, each the mean of its repeats."""

    id: str
    stratum: str
    group: str = ""
    """Prompts of one group, such as paraphrases, are one case; empty for a case by itself."""
    weight: float = 1.0
    baseline: float
    second_baseline: float | None = None
    """That of the second run of the same version, which says how far runs differ."""
    candidate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GateTerms:
    """The margins of a gate; its `spec` says what each means."""

    max_drop_points: float = 2.0
    max_relative_drop: float = 0.05
    min_prompts: int = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class StratumLoss:
    """What some prompts say; losses are in points of 100, other values between 0 and 1."""

    name: str
    prompts: int
    groups: int | None = None
    """Cases that the prompts are, where some share a group; None where each is one."""
    baseline: float
    candidate: float
    loss_points: float = 0.0
    margin_points: float = 0.0
    discordance: float = 0.0
    """Share of the prompts whose scores differ."""
    noise: float = 0.0
    """Mean square of the differences of runs, with the weights of the prompts."""
    p_value: float = 1.0
    """How probable such a loss is in two runs of one version."""
    unseen_loss_points: float = 100.0
    """Loss that is not proven in 2 of 10 cases."""
    is_lost: bool = False
    """The loss is proven, and its estimate reaches the margin."""

    @property
    def cases(self) -> int:
        """Independent cases: groups, and prompts of no group."""
        return self.prompts if self.groups is None else self.groups

    @property
    def reaches_margin(self) -> bool:
        """Whether the estimate is a loss as large as the margin."""
        return self.loss_points > max(0.0, self.margin_points - _ROUNDING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a suite says about a candidate, and the numbers that decided."""

    outcome: LossOutcome
    total: StratumLoss
    strata: tuple[StratumLoss, ...] = ()
    """The judged ones by name; those with few prompts together as `small`."""
    largest_loss_points: float | None = None
    """One-sided bound of 95 % of the total's loss."""
    baseline_discordance: float | None = None
    """Share of the prompts in which two runs of the baseline differ."""
    needed_prompts: int = 0
    """Prompts with which an equal candidate passes in 8 of 10 cases; groups where there are any."""
    missing_prompts: int = 0
    """Those that the suite lacks, if it decided nothing."""
    message: str


def judge(prompts: Iterable[ScoredPrompt], terms: GateTerms) -> Verdict:
    """Compare the candidate's scores with the baseline's, prompt by prompt.

    `Failed`: a loss is proven at 5 % together, and its estimate reaches the margin. `Passed`: the
    total's loss is proven to be below its margin, and no stratum's estimate reaches its own. Raises
    ValueError for no prompts, an id twice, values out of range, and strata that are too many or
    named as rows of a verdict.
    """
    rows = _checked(prompts)
    judged = _judged_strata(rows, terms.min_prompts)
    level = STRATA_LEVEL / len(judged)
    runs_differ = [
        _difference(row.baseline, row.second_baseline) != 0
        for row in rows
        if row.second_baseline is not None
    ]
    return decide(
        _measure(TOTAL, rows, TOTAL_LEVEL),
        [_measure(name, group, level) for name, group in judged.items()],
        100
        * loss_bound(
            Counter((_difference(row.baseline, row.candidate), row.weight) for row in _cases(rows))
        ),
        terms,
        baseline_discordance=fmean(runs_differ) if runs_differ else None,
    )


def judge_first(prompts: Iterable[ScoredPrompt], min_score: float, min_prompts: int) -> Verdict:
    """Compare the scores of a first version with the one that it needs, whatever the baseline's.

    `Failed`: its score is below it. `Passed`: it is proven not to be, at 95 %. Strata are shown,
    and decide nothing. Raises ValueError as `judge` does.
    """
    rows = _checked(replace(row, baseline=min_score, second_baseline=None) for row in prompts)
    total = _first_score(TOTAL, rows)
    largest = total.loss_points + total.unseen_loss_points
    outcome: LossOutcome = "Passed" if largest <= _ROUNDING else "Inconclusive"
    if total.loss_points > _ROUNDING:
        outcome, total = "Failed", replace(total, is_lost=True)
    strata = _judged_strata(rows, min_prompts)
    return Verdict(
        outcome=outcome,
        total=total,
        strata=tuple(_first_score(name, group) for name, group in strata.items()),
        largest_loss_points=largest,
        message=f"{_size(total)}: score {total.candidate:.4f}, at least "
        f"{min_score - largest / 100:.4f} at 95 %, minScore {min_score:g}.",
    )


def _first_score(name: str, rows: Sequence[ScoredPrompt]) -> StratumLoss:
    weight = math.fsum(row.weight for row in rows)
    score = math.fsum(row.weight * row.candidate for row in rows) / weight
    cases = _cases(rows)
    missing = Counter((_difference(1.0, row.candidate), row.weight) for row in cases)
    return StratumLoss(
        name=name,
        prompts=len(rows),
        groups=len(cases) if len(cases) < len(rows) else None,
        baseline=rows[0].baseline,
        candidate=score,
        loss_points=100 * (rows[0].baseline - score),
        unseen_loss_points=max(0.0, 100 * (loss_bound(missing) - (1 - score))),
    )


def decide(
    total: StratumLoss,
    strata: Sequence[StratumLoss],
    largest_loss_points: float,
    terms: GateTerms,
    *,
    baseline_discordance: float | None = None,
) -> Verdict:
    """Return the verdict of what was measured; margins and proven losses are filled in."""
    proven = rejected_by_holm({row.name: row.p_value for row in strata}, STRATA_LEVEL)
    total = _with_margin(total, terms.max_drop_points, total.p_value <= TOTAL_LEVEL)
    strata = tuple(
        _with_margin(row, 100 * terms.max_relative_drop * row.baseline, row.name in proven)
        for row in strata
    )
    outcome: LossOutcome = "Inconclusive"
    if any(row.is_lost for row in (total, *strata)):
        outcome = "Failed"
    elif largest_loss_points < terms.max_drop_points and not any(
        row.reaches_margin for row in strata
    ):
        outcome = "Passed"
    needed = needed_prompts(
        terms.max_drop_points / 100,
        total.noise,
        [
            (row.cases / total.cases, row.margin_points / 100, _pooled_noise(row, total))
            for row in strata
        ],
    )
    verdict = Verdict(
        outcome=outcome,
        total=total,
        strata=strata,
        largest_loss_points=largest_loss_points,
        baseline_discordance=baseline_discordance,
        needed_prompts=needed,
        missing_prompts=max(0, needed - total.cases) if outcome == "Inconclusive" else 0,
        message="",
    )
    return replace(verdict, message=_message(verdict))


def _judged_strata(
    rows: Sequence[ScoredPrompt], min_prompts: int
) -> Mapping[str, list[ScoredPrompt]]:
    """Return the prompts of the strata that are judged, by name; those of few cases together."""
    groups: defaultdict[str, list[ScoredPrompt]] = defaultdict(list)
    for row in rows:
        groups[row.stratum].append(row)
    few = {name for name, group in groups.items() if len(_cases(group)) < min_prompts}
    judged = {name: group for name, group in sorted(groups.items()) if name not in few}
    if few:
        judged[SMALL] = [row for row in rows if row.stratum in few]
    return judged


def _checked(prompts: Iterable[ScoredPrompt]) -> list[ScoredPrompt]:
    rows = sorted(prompts, key=attrgetter("id"))
    if not rows:
        raise ValueError("no prompt was answered")
    for row, following in pairwise(rows):
        if row.id == following.id:
            raise ValueError(f"prompt {row.id} is scored twice")
    for row in rows:
        scores = (row.baseline, row.second_baseline, row.candidate)
        if not all(score is None or 0 <= score <= 1 for score in scores):
            raise ValueError(f"prompt {row.id}: a score is not between 0 and 1")
        if not MIN_WEIGHT <= row.weight <= MAX_WEIGHT:
            raise ValueError(
                f"prompt {row.id}: the weight is not between {MIN_WEIGHT:g} and {MAX_WEIGHT:g}"
            )
    names = {row.stratum for row in rows}
    if len(names) > MAX_STRATA:
        raise ValueError(f"{len(names)} strata, at most {MAX_STRATA}")
    if reserved := names & {TOTAL, SMALL}:
        raise ValueError(f"a stratum is named {min(reserved)}, as a row of the verdict")
    return rows


def _cases(rows: Sequence[ScoredPrompt]) -> list[ScoredPrompt]:
    """Return a row for each group: the mean of its prompts by weight, with the weight of them all.

    Prompts of a group win and lose together, so they are one case: the test flips the signs of
    whole groups (Canay, Romano and Shaikh, "Randomization tests under an approximate symmetry
    assumption", 2017), and the bootstrap of the bound draws whole groups (Field and Welsh,
    "Bootstrapping clustered data", 2007).
    """
    groups: defaultdict[tuple[str, str], list[ScoredPrompt]] = defaultdict(list)
    for row in rows:
        groups[row.group, "" if row.group else row.id].append(row)
    return [_mean_prompt(group) if len(group) > 1 else group[0] for group in groups.values()]


def _mean_prompt(rows: Sequence[ScoredPrompt]) -> ScoredPrompt:
    weights = [row.weight for row in rows]
    second = [row.second_baseline for row in rows if row.second_baseline is not None]
    return replace(
        rows[0],
        weight=math.fsum(weights),
        baseline=fmean([row.baseline for row in rows], weights),
        second_baseline=fmean(second, weights) if len(second) == len(rows) else None,
        candidate=fmean([row.candidate for row in rows], weights),
    )


def _difference(score: float, other: float) -> float:
    # Means of equal scores differ by rounding alone.
    return round(score - other, 9)


def _measure(name: str, rows: Sequence[ScoredPrompt], level: float) -> StratumLoss:
    cases = _cases(rows)
    weight = math.fsum(row.weight for row in rows)
    scales = [row.weight * len(cases) / weight for row in cases]
    steps = [
        scale * _difference(row.baseline, row.candidate)
        for scale, row in zip(scales, cases, strict=True)
    ]
    differences = _noise(cases, scales, steps)
    noise = _mean_square(differences)
    # Graded scores and weights are counted as yes-or-no prompts whose steps have another size.
    step = noise / fmean(map(abs, differences)) if noise else 1.0
    unseen = step * unseen_loss(len(cases), min(1.0, noise / step**2), level)
    return StratumLoss(
        name=name,
        prompts=len(rows),
        groups=len(cases) if len(cases) < len(rows) else None,
        baseline=math.fsum(row.weight * row.baseline for row in rows) / weight,
        candidate=math.fsum(row.weight * row.candidate for row in rows) / weight,
        loss_points=100 * math.fsum(steps) / len(cases),
        discordance=fmean(_difference(row.baseline, row.candidate) != 0 for row in rows),
        noise=noise,
        p_value=sign_test(steps),
        unseen_loss_points=min(100.0, 100 * unseen),
    )


def _noise(
    rows: Sequence[ScoredPrompt], scales: Sequence[float], steps: Sequence[float]
) -> list[float]:
    """Return the candidate's differences from both runs of the baseline.

    Those runs differ from each other no more than that, but by chance: then all pairs count.
    """
    of_candidate, of_runs = [*steps], []
    for scale, row in zip(scales, rows, strict=True):
        if row.second_baseline is not None:
            of_candidate.append(scale * _difference(row.second_baseline, row.candidate))
            of_runs.append(scale * _difference(row.second_baseline, row.baseline))
    if of_runs and _mean_square(of_runs) > _mean_square(of_candidate):
        return of_candidate + of_runs
    return of_candidate


def _mean_square(differences: Sequence[float]) -> float:
    return math.fsum(difference * difference for difference in differences) / len(differences)


def _pooled_noise(row: StratumLoss, total: StratumLoss) -> float:
    """Return the noise of a stratum, whose few prompts say little about it by themselves."""
    return (row.cases * row.noise + _POOLED_PROMPTS * total.noise) / (row.cases + _POOLED_PROMPTS)


def _with_margin(row: StratumLoss, margin_points: float, proven: bool) -> StratumLoss:
    row = replace(row, margin_points=margin_points)
    return replace(row, is_lost=proven and row.reaches_margin)


def _message(verdict: Verdict) -> str:
    total = verdict.total
    rows = (total, *verdict.strata)
    prompts = _size(total)
    if verdict.outcome == "Failed":
        lost = ", ".join(
            f"{row.name} {row.loss_points:z.2f} points (p {row.p_value:.2g}, "
            f"margin {row.margin_points:.2f})"
            for row in rows
            if row.is_lost
        )
        return f"Loss proven on {prompts}: {lost}."
    text = (
        f"{prompts}: loss {total.loss_points:z.2f} points, at most "
        f"{verdict.largest_loss_points:z.2f} at 95 %, margin {total.margin_points:.2f}"
    )
    if verdict.outcome == "Passed":
        return f"{text}."
    for row in verdict.strata:
        if row.reaches_margin:
            text += f"; {row.name} {row.loss_points:z.2f}, margin {row.margin_points:.2f}"
    needed = f"{verdict.needed_prompts:,}"
    if verdict.needed_prompts >= MAX_NEEDED_PROMPTS:
        needed = f"more than {MAX_NEEDED_PROMPTS:,}"
    return (
        f"{text}. A loss below {total.unseen_loss_points:.1f} points is not seen at a discordance "
        f"of {100 * total.discordance:.1f} %; {'prompts' if total.groups is None else 'groups'} "
        f"with which an equal one passes: {needed}."
    )


def _size(total: StratumLoss) -> str:
    prompts = counted(total.prompts, "prompt")
    return prompts if total.groups is None else f"{prompts} in {counted(total.groups, 'group')}"
