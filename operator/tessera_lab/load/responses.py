"""Responses of a load test and their latencies."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tessera_lab.load.distribution import Distribution, distribution
from tessera_lab.load.requests import BenchRequest


class RequestFailure(StrEnum):
    """Why a request did not complete; HTTP errors are `Http` and their status."""

    TIMEOUT = "Timeout"
    NO_CONNECTION = "NoConnection"
    CUT_OFF = "ConnectionClosed"
    """The connection ended before the response did."""
    ABORTED = "Aborted"
    """The server ended the response, as an engine does that stops."""
    ERROR = "ErrorResponse"
    EMPTY = "NoTokens"
    NO_STREAM = "NotAStream"


@dataclass(slots=True, kw_only=True)
class BenchResponse:
    """One response; timestamps are seconds on one clock, `failure` is empty when it completed."""

    request: BenchRequest
    due_at: float
    """When it was to be sent. Latencies begin here, so that a late client does not hide them."""
    sent_at: float
    ended_at: float
    first_token_at: float | None = None
    """When its first token arrived."""
    chunk_gaps: "array[float]" = field(default_factory=lambda: array("d"))
    """Seconds between chunks, one for each chunk after the first."""
    prompt_tokens: int | None = None
    output_tokens: int = 0
    cached_tokens: int | None = None
    """Prompt tokens from the prefix cache; None where the server does not say."""
    exact_tokens: bool = True
    """Whether tokens are those of the server's usage; else each chunk counts as one."""
    failure: str = ""
    detail: str = ""

    @property
    def complete(self) -> bool:
        return not self.failure

    @property
    def chunks(self) -> int:
        return 0 if self.first_token_at is None else 1 + len(self.chunk_gaps)

    @property
    def ttft_seconds(self) -> float | None:
        return None if self.first_token_at is None else self.first_token_at - self.due_at

    @property
    def tpot_seconds(self) -> float | None:
        """Return the mean time per output token after the first; None for a single token."""
        if self.first_token_at is None or self.output_tokens < 2 or not self.chunk_gaps:
            return None
        return sum(self.chunk_gaps) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySummary:
    """Latencies of completed requests, in seconds."""

    ttft: Distribution | None
    tpot: Distribution | None
    """Mean time per output token of each request."""
    itl: Distribution | None
    """Time between chunks: it shows a stall within a response."""
    end_to_end: Distribution | None


def summarize_latencies(responses: Sequence[BenchResponse]) -> LatencySummary:
    complete = [response for response in responses if response.complete]
    return LatencySummary(
        ttft=distribution(
            [response.ttft_seconds for response in complete if response.ttft_seconds is not None]
        ),
        tpot=distribution(
            [response.tpot_seconds for response in complete if response.tpot_seconds is not None]
        ),
        itl=distribution([gap for response in complete for gap in response.chunk_gaps]),
        end_to_end=distribution([response.ended_at - response.due_at for response in complete]),
    )
