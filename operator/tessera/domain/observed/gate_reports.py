"""Reports of the Jobs of gates, validated: any process of the pod can write one."""

from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeAlias

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    TypeAdapter,
    model_validator,
)

from tessera.api.meta import Wire
from tessera.api.quality_gate import MAX_STRATA, AnswerShares, StratumName, StratumVerdict
from tessera.domain.observed.model_reports import parse_report

GateJobState: TypeAlias = Literal[
    # The stable version answered, or the changed one did and was compared with it.
    "answered",
    "judged",
    # Nothing can be decided; the message says why.
    "suiteNotFound",
    "suiteInvalid",
    "suiteChanged",
    "judgeNotFound",
    "judgeUnreliable",
    "requestsRefused",
    "gatewayAway",
    # The claim lacks answers of the stable version.
    "baselineMissing",
    # Another attempt goes on; what was asked went away, as where its device was given back.
    "failed",
    "engineAway",
]
MAX_MESSAGE_LENGTH = 1000
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Points = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
_Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, le=10_000_000)]
_Digest = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{0,128}$")]


class _StratumRow(NamedTuple):
    """A stratum as a list of JSON, since a report has at most 4,096 bytes."""

    name: StratumName
    prompts: _Count
    baseline: _Share
    candidate: _Share
    loss_points: _Points
    largest_loss_points: _Points | None
    unseen_loss_points: _Points
    is_lost: bool


class _SharesRow(NamedTuple):
    truncated: _Share
    empty: _Share
    refused: _Share
    mean_tokens: Annotated[float, Field(ge=0, le=2**31, allow_inf_nan=False)]
    ttft_p95_seconds: _Seconds | None
    itl_p95_seconds: _Seconds | None


_STRATUM, _SHARES = TypeAdapter(_StratumRow), TypeAdapter(_SharesRow)


def _read_stratum(value: Any) -> Any:
    if isinstance(value, StratumVerdict):
        return value
    return _decimals(_STRATUM.validate_python(value)._asdict())


def _read_shares(value: Any) -> Any:
    if isinstance(value, AnswerShares):
        return value
    return _decimals(_SHARES.validate_python(value)._asdict())


def _decimals(fields: dict[str, Any]) -> dict[str, Any]:
    # A float is bounded, while a decimal of JSON may have a billion digits.
    return {
        name: Decimal(f"{value:.6f}").normalize() + 0 if isinstance(value, float) else value
        for name, value in fields.items()
    }


def _row(names: tuple[str, ...]) -> PlainSerializer:
    def write(value: Any) -> list[Any]:
        fields = (getattr(value, name) for name in names)
        return [float(each) if isinstance(each, Decimal) else each for each in fields]

    return PlainSerializer(write)


ReportedStratum = Annotated[
    StratumVerdict, BeforeValidator(_read_stratum), _row(_StratumRow._fields)
]
ReportedShares = Annotated[AnswerShares, BeforeValidator(_read_shares), _row(_SharesRow._fields)]


class GateReport(Wire):
    """What a Job of a gate ended with."""

    phase: Literal["gate"]
    state: GateJobState
    version: _Digest
    """Digest of the version that was asked."""
    baseline: _Digest = ""
    """Digest of the version that it was compared with."""
    suite: _Digest = ""
    """SHA-256 of the file."""
    scorer: _Digest = ""
    prompts: Annotated[dict[StratumName, _Count], Field(max_length=MAX_STRATA)] = Field(
        default_factory=dict
    )
    """Prompts of each stratum."""
    answered: _Count = 0
    """Answers that the claim has."""
    answers_digest: _Digest = ""
    """SHA-256 of their file."""
    verdict: Literal["Passed", "Failed", "Inconclusive"] | None = None
    strata: Annotated[tuple[ReportedStratum, ...], Field(max_length=MAX_STRATA + 2)] = ()
    missing_prompts: _Count = 0
    answers: ReportedShares | None = None
    baseline_answers: ReportedShares | None = None
    message: Annotated[str, Field(max_length=MAX_MESSAGE_LENGTH)] = ""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="after")
    def _passes_as_a_whole(self) -> Self:
        total = next((row for row in self.strata if row.name == "total"), None)
        has_lost = total is None or any(row.is_lost for row in self.strata)
        if self.verdict == "Passed" and has_lost:
            raise ValueError("what passed has a total, and lost in no stratum")
        if total is not None and total.prompts > sum(self.prompts.values()):
            raise ValueError("the total has more prompts than the suite")
        return self


def gate_report(text: str) -> GateReport | None:
    """Return the report, or None if the text is something else, such as the end of a log."""
    return parse_report(GateReport, text)
