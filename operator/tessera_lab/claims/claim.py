"""The claims: who promises what, under which conditions it is tried, and the claimed ranges."""

import json
from collections.abc import Mapping
from enum import StrEnum
from importlib import resources
from typing import Annotated, Self, TypeAlias

from pydantic import Field, model_validator

from tessera.api.meta import Wire

Unit: TypeAlias = Annotated[str, Field(pattern=r"^(x|share|s|months|requests)$")]
ConditionValue: TypeAlias = int | float | str
# A text and its lines, such as `memory L1, L12`.
_SOURCE = r"^(strategy|memory|management|course|engineering)( L\d+(-L\d+)?,?)+$"


class ClaimKind(StrEnum):
    """How a claim is tried."""

    SIMULATED = "Simulated"
    """On the engine machine or the fleet simulator."""
    ARITHMETIC = "Arithmetic"
    """By sizing, prices or a formula."""
    LITERATURE = "Literature"
    """Not at all: it is a report of somebody's own, and is cited."""


class ClaimLoad(Wire):
    """Lengths of prompts and outputs in tokens: log-normal, clipped to the least and the most."""

    prompt_median: float
    prompt_p95: Annotated[float, Field(alias="promptP95")]
    prompt_least: int
    prompt_most: int
    output_median: float
    output_p95: Annotated[float, Field(alias="outputP95")]
    output_least: int
    output_most: int


class ClaimedRange(Wire):
    """A claimed quantity; without `low` or `high` it is unbounded there."""

    name: str
    unit: Unit
    low: float | None
    high: float | None

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.low is None and self.high is None:
            raise ValueError(f"{self.name} has neither low nor high")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"{self.name}: low {self.low:g} is above high {self.high:g}")
        return self


class VariedCondition(Wire):
    """The condition over whose span a claim is tried; all others stay."""

    condition: str
    label: str
    """What the condition is, in words."""
    least: float
    most: float


class SourceMistake(Wire):
    """A wrong figure of a source beside the right one."""

    source: str
    wrong: str
    right: str
    why: str


class LiteratureReference(Wire):
    """What a claim goes back to."""

    title: str
    date: Annotated[str, Field(pattern=r"^\d{4}(-\d{2}){0,2}$")]
    link: Annotated[str, Field(pattern=r"^https://")]


class Claim(Wire):
    """One claim with everything that decides its verdict."""

    id: Annotated[str, Field(pattern=r"^H\d{2}$")]
    title: Annotated[str, Field(max_length=44)]
    kind: ClaimKind
    text: str
    sources: Annotated[tuple[Annotated[str, Field(pattern=_SOURCE)], ...], Field(min_length=1)]
    baseline: str | None = None
    """What the figure is compared with."""
    scenario: str | None = None
    """What is computed, in words; names of conditions stand for their values."""
    conditions: Mapping[str, ConditionValue] = Field(default_factory=dict)
    vary: VariedCondition | None = None
    figures: tuple[ClaimedRange, ...] = ()
    tolerance: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share by which a range is widened at both ends."""
    mistakes: tuple[SourceMistake, ...] = ()
    references: tuple[LiteratureReference, ...] = ()
    notes: tuple[str, ...] = ()
    blocker: str | None = None
    """Why the claim cannot be tried here; None where it can."""

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        tried = self.kind is not ClaimKind.LITERATURE
        if tried != bool(self.figures and self.scenario and self.baseline):
            raise ValueError(
                f"{self.id}: what is tried needs figures, scenario and baseline, literature none"
            )
        if self.vary is not None:
            self._check_variation(self.vary)
        return self

    def _check_variation(self, vary: VariedCondition) -> None:
        value = self.conditions.get(vary.condition)
        if isinstance(value, str) or value is None:
            raise ValueError(f"{self.id}: no number {vary.condition} among the conditions")
        if not vary.least <= value <= vary.most:
            raise ValueError(f"{self.id}: {vary.condition} {value:g} is not within its span")


class ClaimSet(Wire):
    """All claims in the order of their ids, and the loads that their conditions name."""

    loads: Mapping[str, ClaimLoad]
    claims: tuple[Claim, ...]

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        ids = [claim.id for claim in self.claims]
        if ids != sorted(set(ids)):
            raise ValueError("the ids are not in order, or one is there twice")
        for claim in self.claims:
            load = claim.conditions.get("load")
            if load is not None and load not in self.loads:
                raise ValueError(f"{claim.id}: no load {load}")
        return self

    @property
    def by_id(self) -> Mapping[str, Claim]:
        return {claim.id: claim for claim in self.claims}


def read_claims() -> ClaimSet:
    """Return the claims that are shipped with the package."""
    text = resources.files("tessera_lab.claims").joinpath("claims.json").read_text("utf-8")
    return ClaimSet.model_validate(json.loads(text))
