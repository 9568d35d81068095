"""Reports of the Jobs of gates, validated: any process of the pod can write one."""

from decimal import Decimal
from typing import Annotated, Literal, NamedTuple

from pydantic import ConfigDict, Field, StringConstraints

from tessera.api.meta import Wire
from tessera.api.quality_gate import MAX_STRATA, AnswerShares, Digest, StratumName, StratumVerdict
from tessera.domain.observed.gates import GateRole

_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Points = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
_Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
_Prompts = Annotated[int, Field(ge=0, le=1_000_000)]
_Name = Annotated[str, StringConstraints(max_length=128, pattern=r"^[A-Za-z0-9._/ -]*$")]


class ReportedStratum(NamedTuple):
    """A `StratumVerdict` as a list, since a report has at most 4,096 bytes."""

    name: StratumName
    prompts: _Prompts
    baseline: _Share
    candidate: _Share
    loss_points: _Points
    largest_loss_points: _Points | None
    unseen_loss_points: _Points
    is_lost: bool

    def verdict(self) -> StratumVerdict:
        """Return it as status has it."""
        largest = self.largest_loss_points
        return StratumVerdict(
            name=self.name,
            prompts=self.prompts,
            baseline=_decimal(self.baseline),
            candidate=_decimal(self.candidate),
            loss_points=_decimal(self.loss_points),
            largest_loss_points=None if largest is None else _decimal(largest),
            unseen_loss_points=_decimal(self.unseen_loss_points),
            is_lost=self.is_lost,
        )


class _Reported(Wire):
    model_config = ConfigDict(extra="ignore")


class ReportedShares(_Reported):
    """What the answers of one version were like."""

    answers: _Prompts
    truncated: _Share
    empty: _Share
    refused: _Share
    mean_tokens: Annotated[float, Field(ge=0, le=2**31, allow_inf_nan=False)]
    ttft_p95_seconds: _Seconds | None = None
    itl_p95_seconds: _Seconds | None = None
    variant: _Name = ""
    """Hardware and precision that answered."""

    def shares(self) -> AnswerShares:
        """Return it as status has it, without dollars."""
        ttft, itl = self.ttft_p95_seconds, self.itl_p95_seconds
        return AnswerShares(
            truncated=_decimal(self.truncated),
            empty=_decimal(self.empty),
            refused=_decimal(self.refused),
            mean_tokens=_decimal(self.mean_tokens),
            ttft_p95_seconds=None if ttft is None else _decimal(ttft),
            itl_p95_seconds=None if itl is None else _decimal(itl),
        )


class GateReport(_Reported):
    """What a Job of a gate ended with."""

    phase: Literal["gate"]
    role: GateRole
    ok: bool
    reason: Annotated[str, StringConstraints(pattern=r"^([A-Z][A-Za-z]{0,62})?$")] = ""
    """The candidate's verdict, or why the Job could not ask or judge."""
    message: Annotated[str, Field(max_length=8192)] = ""
    suite: Digest | None = None
    """SHA-256 of the file that was read."""
    prompts: Annotated[dict[StratumName, _Prompts], Field(max_length=MAX_STRATA)] = Field(
        default_factory=dict
    )
    """Prompts of each stratum."""
    scorer: _Name = ""
    """Version of the scorers, and model of the judge where there is one."""
    strata: Annotated[tuple[ReportedStratum, ...], Field(max_length=MAX_STRATA + 2)] = ()
    missing_prompts: _Prompts = 0
    answers: ReportedShares | None = None
    """Those of the version that was asked."""
    baseline_answers: ReportedShares | None = None


def _decimal(value: float) -> Decimal:
    return Decimal(f"{value:.6f}").normalize() + 0
