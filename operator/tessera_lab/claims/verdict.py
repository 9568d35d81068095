"""The verdict of a claim, computed from figures, claimed ranges and tolerance alone.

A claim is met where every figure lies within its range, widened by the tolerance. One with a varied
condition has to hold over the whole span of that, at the ends and at quarters of the way to them;
where it holds over a part, bisection finds where that part begins and ends.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from typing import TypeAlias

from pydantic import Field

from tessera.api.meta import Wire
from tessera_lab.claims.claim import (
    Claim,
    ClaimedRange,
    ClaimKind,
    ClaimLoad,
    ClaimSet,
    ConditionValue,
    VariedCondition,
)
from tessera_lab.engine.play import PlayedLoad

# The end of a part is looked for to this share of the span.
_RESOLUTION = 1 / 128
# Parts of each side of the span whose ends are tried before it is bisected.
_PROBES = 4
# Figures that are equal but for rounding are equal.
_ROUNDING = 1e-9


class ClaimVerdict(StrEnum):
    """What became of a claim."""

    MET = "Met"
    MET_ONLY_UNDER = "MetOnlyUnder"
    """It holds over a part of the span of the varied condition."""
    NOT_MET = "NotMet"
    LITERATURE = "Literature"
    NOT_RUN = "NotRun"


class RangePosition(StrEnum):
    """Where a figure lies compared with the widened range."""

    BELOW = "below"
    WITHIN = "within"
    ABOVE = "above"


class ScenarioError(Exception):
    """Why a scenario has no figure under some conditions, in a sentence."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of one run of a scenario."""

    values: Mapping[str, ConditionValue]
    loads: Mapping[str, ClaimLoad]
    plays: dict[Hashable, PlayedLoad] = field(default_factory=dict)
    """What engines did with loads, which do not depend on the varied condition."""

    def text(self, name: str) -> str:
        return str(self.values[name])

    def number(self, name: str) -> float:
        return float(self.values[name])

    def integer(self, name: str) -> int:
        return int(self.values[name])

    @property
    def load(self) -> ClaimLoad:
        return self.loads[self.text("load")]

    def with_value(self, name: str, value: ConditionValue) -> "Conditions":
        return replace(self, values={**self.values, name: value})


class ClaimDetail(Wire):
    """A figure beside those that decide."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """The figures of a scenario, by the names of the claimed ranges."""

    figures: Mapping[str, float]
    details: tuple[ClaimDetail, ...] = ()


Scenario: TypeAlias = Callable[[Conditions], ScenarioResult]


class HoldingPart(Wire):
    """The part of a varied condition's span over which a claim holds."""

    condition: str
    low: int | float
    high: int | float
    nearest: int | float
    """The end that is nearest to the stated value."""
    figures: Mapping[str, float]
    """At `nearest`."""


class ClaimResult(Wire):
    """A claim's verdict with the figures under the stated conditions, to four digits."""

    verdict: ClaimVerdict
    figures: Mapping[str, float] = Field(default_factory=dict)
    details: tuple[ClaimDetail, ...] = ()
    part: HoldingPart | None = None
    reason: str | None = None
    """Why it was not run."""


def position(claimed: ClaimedRange, tolerance: float, figure: float) -> RangePosition:
    """Return where a figure lies compared with the range, widened by the tolerance."""
    if claimed.low is not None and figure < claimed.low * (1 - tolerance) - _ROUNDING:
        return RangePosition.BELOW
    if claimed.high is not None and figure > claimed.high * (1 + tolerance) + _ROUNDING:
        return RangePosition.ABOVE
    return RangePosition.WITHIN


def judge(claim: Claim, claim_set: ClaimSet, scenario: Scenario | None) -> ClaimResult:
    """Return the verdict of a claim; without a scenario it is not run."""
    if claim.kind is ClaimKind.LITERATURE:
        return ClaimResult(verdict=ClaimVerdict.LITERATURE)
    if claim.blocker is not None or scenario is None:
        reason = claim.blocker or "No scenario computes it yet."
        return ClaimResult(verdict=ClaimVerdict.NOT_RUN, reason=reason)
    trial = _Trial(claim, Conditions(claim.conditions, claim_set.loads), scenario)
    try:
        result = scenario(trial.conditions)
    except ScenarioError as error:
        return ClaimResult(verdict=ClaimVerdict.NOT_RUN, reason=str(error))
    verdict, part = _verdict(claim, result, trial)
    details = tuple(
        detail.model_copy(update={"value": _rounded(detail.value)}) for detail in result.details
    )
    return ClaimResult(
        verdict=verdict, figures=_all_rounded(result.figures), details=details, part=part
    )


def _verdict(
    claim: Claim, result: ScenarioResult, trial: "_Trial"
) -> tuple[ClaimVerdict, HoldingPart | None]:
    vary = claim.vary
    if vary is None:
        holds = _holds(_positions(claim, result))
        return (ClaimVerdict.MET if holds else ClaimVerdict.NOT_MET), None
    part = trial.holding_part(vary)
    if part is None:
        return ClaimVerdict.NOT_MET, None
    if (part.low, part.high) == (vary.least, vary.most):
        return ClaimVerdict.MET, None
    return ClaimVerdict.MET_ONLY_UNDER, part


def _rounded(figure: float) -> float:
    return float(f"{figure:.4g}")


def _all_rounded(figures: Mapping[str, float]) -> Mapping[str, float]:
    return {name: _rounded(figure) for name, figure in figures.items()}


# The position of every figure; None where the scenario has no figure.
_Positions: TypeAlias = tuple[RangePosition, ...] | None


def _positions(claim: Claim, result: ScenarioResult) -> _Positions:
    return tuple(
        position(claimed, claim.tolerance, result.figures[claimed.name])
        for claimed in claim.figures
    )


def _holds(positions: _Positions) -> bool:
    return positions is not None and all(each is RangePosition.WITHIN for each in positions)


@dataclass(slots=True)
class _Trial:
    """A claim's scenario over the span of the varied condition."""

    claim: Claim
    conditions: Conditions
    scenario: Scenario
    results: dict[float, ScenarioResult | None] = field(default_factory=dict)

    def holding_part(self, vary: VariedCondition) -> HoldingPart | None:
        """Return the part that holds and is nearest to the stated value; None if none does."""
        stated = self.conditions.number(vary.condition)
        sides = [self._probes(vary, stated, end) for end in (vary.least, vary.most)]
        firsts = [first for side in sides if (first := self._first_holding(vary, side)) is not None]
        if not firsts:
            return None
        nearest = min(firsts, key=lambda value: abs(value - stated))
        low, high = (
            self._last_holding(vary, self._probes(vary, nearest, end))
            for end in (vary.least, vary.most)
        )
        if nearest == stated:
            inner = [end for end in (low, high) if end not in (vary.least, vary.most)]
            nearest = min(inner, key=lambda end: abs(end - stated), default=stated)
        result = self._result(vary, nearest)
        return HoldingPart(
            condition=vary.condition,
            low=self._typed(vary, low),
            high=self._typed(vary, high),
            nearest=self._typed(vary, nearest),
            figures={} if result is None else _all_rounded(result.figures),
        )

    def _probes(self, vary: VariedCondition, start: float, end: float) -> list[float]:
        """Return the values at which a side of the span is tried before it is bisected."""
        values = [start + (end - start) * step / _PROBES for step in range(_PROBES)]
        if self._whole(vary):
            values = [float(round(value)) for value in values]
        return sorted({*values, end}, reverse=end < start)

    def _first_holding(self, vary: VariedCondition, probes: list[float]) -> float | None:
        """Return the first value on the way from probe to probe at which the claim holds."""
        for start, end in pairwise(probes):
            value = start
            while not _holds(positions := self._positions_at(vary, value)):
                if positions == self._positions_at(vary, end):
                    break
                _, value = self._bisect(vary, value, end)
            else:
                return value
        return probes[-1] if _holds(self._positions_at(vary, probes[-1])) else None

    def _last_holding(self, vary: VariedCondition, probes: list[float]) -> float:
        """Return the last value on the way from probe to probe up to which the claim holds."""
        for start, end in pairwise(probes):
            if not _holds(self._positions_at(vary, end)):
                return self._bisect(vary, start, end)[0]
        return probes[-1]

    def _bisect(self, vary: VariedCondition, start: float, end: float) -> tuple[float, float]:
        """Return two neighbors between which the positions first change; those of `end` differ."""
        positions = self._positions_at(vary, start)
        step = (vary.most - vary.least) * _RESOLUTION
        step = max(1.0, step) if self._whole(vary) else step
        while abs(end - start) > step:
            middle = (start + end) / 2
            middle = float(int(middle)) if self._whole(vary) else middle
            if self._positions_at(vary, middle) == positions:
                start = middle
            else:
                end = middle
        return start, end

    def _whole(self, vary: VariedCondition) -> bool:
        return isinstance(self.conditions.values[vary.condition], int)

    def _typed(self, vary: VariedCondition, value: float) -> int | float:
        return int(value) if self._whole(vary) else value

    def _positions_at(self, vary: VariedCondition, value: float) -> _Positions:
        result = self._result(vary, value)
        return None if result is None else _positions(self.claim, result)

    def _result(self, vary: VariedCondition, value: float) -> ScenarioResult | None:
        if value not in self.results:
            typed = self._typed(vary, value)
            try:
                result = self.scenario(self.conditions.with_value(vary.condition, typed))
            except ScenarioError:
                result = None
            self.results[value] = result
        return self.results[value]
