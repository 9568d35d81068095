"""What one request of a load test got."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tessera.domain.bench.jobs import Job
from tessera.domain.bench.spread import Spread, spread


class Failure(StrEnum):
    """Why a request has no whole answer; refusals are `Http` and their status."""

    TIMEOUT = "Timeout"
    NO_CONNECTION = "NoConnection"
    CUT = "CutOff"
    """The connection ended before the answer did."""
    ABORTED = "Aborted"
    """The server ended the answer by itself, as an engine does that stops."""
    ERROR = "ErrorInAnswer"
    EMPTY = "NoTokens"
    NO_STREAM = "NotAStream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Moments are seconds on one clock; `failure` is empty when the answer is whole."""

    job: Job
    due: float
    """When it was to be sent. Latencies begin here, so that a late client does not flatter."""
    sent: float
    ended: float
    first: float | None = None
    """Its first token."""
    gaps: Sequence[float] = field(default=())
    """Between what arrived, one for each further chunk."""
    prompt_tokens: int | None = None
    output_tokens: int = 0
    cached_tokens: int | None = None
    """Of the prompt, out of the prefix cache; None where the server does not say."""
    exact: bool = True
    """The tokens are those of the server's usage; else each chunk was taken for one."""
    failure: str = ""
    detail: str = ""

    @property
    def whole(self) -> bool:
        return not self.failure

    @property
    def chunks(self) -> int:
        return 0 if self.first is None else 1 + len(self.gaps)

    @property
    def to_first(self) -> float | None:
        return None if self.first is None else self.first - self.due

    @property
    def per_token(self) -> float | None:
        """Mean time between its tokens; None for a single one."""
        if self.first is None or self.output_tokens < 2 or not self.gaps:
            return None
        return sum(self.gaps) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """Of whole answers, in seconds."""

    first_token: Spread | None
    per_token: Spread | None
    """Of each answer the mean time between its tokens."""
    gap: Spread | None
    """Between chunks as they arrived: a stall within an answer is seen here."""
    answer: Spread | None


def latencies(answers: Sequence[Answer]) -> Latencies:
    whole = [answer for answer in answers if answer.whole]
    return Latencies(
        first_token=spread([one.to_first for one in whole if one.to_first is not None]),
        per_token=spread([one.per_token for one in whole if one.per_token is not None]),
        gap=spread([gap for one in whole for gap in one.gaps]),
        answer=spread([one.ended - one.due for one in whole]),
    )
