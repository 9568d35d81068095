"""A request as the gateway decides about it; the text of its prompt stays outside."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from tessera.api.meta import Wire
from tessera.domain.gateway.prefixes import PromptBlocks


class RequestPriority(StrEnum):
    """What a request lets others of its model do."""

    DEFAULT = "Default"
    BATCH = "Batch"
    """They go before it: `priority` of its body is above 0."""
    SHEDDABLE = "Sheddable"
    """The same, and it is refused where it would be late: its client or its key says so."""

    @property
    def yields(self) -> bool:
        """Return whether requests of the default priority go before it."""
        return self is not RequestPriority.DEFAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestShape:
    """Sizes of one request."""

    model: str
    input_tokens: int
    """Upper estimate from the bytes of the body, before the engine counts."""
    max_output_tokens: int
    """What the engine may generate at most, of all choices together."""
    context_tokens: int = 0
    """Of one prompt and its answer: as long as that may be, or as the mean where the client names
    no maximum."""
    choices: int = 1
    """Answers; each has a token at least."""
    stream: bool = False
    adapter: str | None = None
    prompt: PromptBlocks | None = None
    """None where no engine keeps anything of a prompt."""
    priority: RequestPriority = RequestPriority.DEFAULT
    variant: str | None = None
    """Of the replicas that may answer it; None of any."""


class AwaitedStreams(NamedTuple):
    """The streams of one service that wait for their first token."""

    overdue: int = 0
    """Those that wait longer than their target."""
    oldest_seconds: float = 0.0


class RunningPhase(StrEnum):
    """Where a request is that has not ended."""

    HELD = "Held"
    """It waits in the gateway for a service without a ready replica."""
    QUEUED = "Queued"
    """It waits in the gateway for room on a replica."""
    PREFILL = "Prefill"
    """Its stream has no token yet."""
    DECODE = "Decode"
    """Its stream has tokens."""
    RUNNING = "Running"
    """It is at an engine, which sends an answer that is no stream at its end."""


class RunningRequest(Wire):
    """A request that has not ended, without its prompt and answer."""

    request_id: str
    tenant: str
    key: str | None
    service: str
    """Namespace and name of the InferenceService; empty until its model is known, or at a provider.
    """
    provider: str = ""
    """ModelProvider and its model; empty of a service."""
    model: str
    replica: str | None
    phase: RunningPhase
    age_seconds: float
    output_tokens: int
    """Events with tokens that its client got; 0 for an answer that is no stream."""
