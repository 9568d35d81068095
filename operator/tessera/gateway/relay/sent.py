"""A request that a source gets, and what its client got so far of the answer."""

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple

from tessera.domain.gateway.usage_record import StreamLatency
from tessera.domain.observed.drafts import DraftCounts
from tessera.gateway.bodies.memory import Holding
from tessera.gateway.bodies.parsing import RequestSummary
from tessera.gateway.http.engine_connection import EngineConnection
from tessera.gateway.http.sse import EventRelay
from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.identify.senders import Identified, RecordFields
from tessera.gateway.queue.places import Placed
from tessera.gateway.relay.resume import Protection
from tessera.gateway.reserve.limits import Reserved


class MoveRefusal(NamedTuple):
    """A replica did not go on with a stream that was to be moved to it."""

    until: float
    """When it is asked again, on the monotonic clock; infinite where it reads another prompt."""
    pause_seconds: float
    """Until then; the next one is twice as long."""


@dataclass(slots=True, kw_only=True, eq=False)
class Asked:
    """A request that sources are asked for, and what its client got so far of their answers."""

    reserved: Reserved
    identified: Identified
    holding: Holding
    fields: RequestSummary
    body: bytes
    """As the source gets it; empty once a stream began."""
    answer_bytes: int = 0
    """Of the answer, among those that the request holds."""
    text_bytes: int = 0
    """Of the text of an answer that is no stream, where its charge needs it."""
    counts: TokenCounts | None = None
    """As the source reported them."""
    engines: int = 0
    """Sources that got it: they neither refused it nor were lost before the head of their answer.
    """
    repeated_tokens: int = 0
    """Those of its answer that they read again in order to go on."""
    sent_ns: int | None = None
    """When the request went to the last of them, on the monotonic clock."""
    read_ns: int = 0
    """When the last tokens of a stream came."""
    first_token_ns: int | None = None
    """On the monotonic clock."""
    events: EventRelay | None = None
    """Those of the last stream."""
    unchecked_joints: int = 0
    """How often a stream went on at a source that did not say how it reads what came before."""
    is_ended: bool = False
    """The gateway wrote the end of a stream."""
    earlier_deltas: int = 0
    earlier_tokens: int = 0
    earlier_text_bytes: int = 0

    def hold(self, size: int) -> bool:
        """Hold so many bytes of the answer; False where they have no room."""
        more = size - self.answer_bytes
        self.answer_bytes = size
        if more > 0:
            return self.holding.take(more)
        self.holding.free(-more)
        return True

    def free_request(self) -> None:
        """Hold nothing of the request, which its source has, but what protects its stream."""
        received = self.reserved.chosen.received
        if received.routed is not None:
            received.drop_body()
        self.holding.free(self.holding.size - self.answer_bytes - self.holding.spare)

    @property
    def is_complete(self) -> bool:
        """Whether the whole stream was passed on, to its end."""
        events = self.events
        return self.is_ended or (events is not None and events.ended and events.started)

    @property
    def deltas(self) -> int:
        """Return how many events with tokens were sent to the client so far."""
        return self.earlier_deltas + (self.events.deltas if self.events else 0)

    @property
    def tokens(self) -> int:
        """Return about how many tokens these had."""
        return self.earlier_tokens + (self.events.tokens if self.events else 0)

    @property
    def passed_text_bytes(self) -> int:
        """Return about how many bytes of text were sent to the client so far."""
        if self.events is None:
            return self.earlier_text_bytes or self.text_bytes
        return self.earlier_text_bytes + self.events.text_bytes


@dataclass(slots=True, kw_only=True, eq=False)
class Sent(Asked):
    """A request that goes to an engine, and to others where that one is lost.

    Its body is empty once a stream began: its protection keeps it, if it has any.
    """

    placed: Placed
    headers: bytes
    """Lines with their ends, which each engine gets."""
    may_continue: bool
    """Another engine may go on with its stream, as long as that has one text."""
    connection: EngineConnection | None = None
    """To the engine that works for it now."""
    protection: Protection | None = None
    """Of a stream that began and may go on elsewhere."""
    rest_seconds: float = 0.0
    """How long nothing of the stream is read, since a part of it took long."""
    is_left: bool = False
    """The gateway broke the connection off itself."""
    drafts: DraftCounts | None = None
    """As an engine that speculates reported them."""
    prefilled_ns: int | None = None
    """When the last engine began to decode, if it said so before its first token."""
    gaps: int = 0
    """Tokens after the first."""
    late_gaps: int = 0
    resumed: int = 0
    """How often the stream went on at another engine."""
    resumptions: int = 0
    """How often another engine was asked to go on with the stream."""
    moving: asyncio.Task[None] | None = None
    """Asks another replica whether it goes on, while the stream's own leaves and serves it."""
    move_refusals: dict[str, MoveRefusal] = field(default_factory=dict)
    """Of replicas that were asked for that, by their uid."""

    def for_engine(self, address: str) -> bytes:
        """Return what an engine gets before the body."""
        target = self.identified.path_item.path.encode()
        if self.identified.query:
            target = b"%b?%b" % (target, self.identified.query)
        return b"POST %b HTTP/1.1\r\nHost: %b\r\n%bContent-Length: %d\r\n\r\n" % (
            target,
            address.encode(),
            self.headers,
            len(self.body),
        )

    def goes_to_engine(self, now_ns: int) -> None:
        """Count that an engine gets it now."""
        self.sent_ns, self.prefilled_ns = now_ns, None
        self.engines += 1
        self.repeated_tokens += self.earlier_tokens

    def was_not_taken(self) -> None:
        """Count that this engine refused it, or was lost before it answered."""
        self.engines -= 1
        self.repeated_tokens -= self.earlier_tokens

    def resume(self) -> None:
        """Count that the stream goes on elsewhere."""
        self.earlier_deltas, self.earlier_tokens = self.deltas, self.tokens
        self.earlier_text_bytes = self.passed_text_bytes
        self.counts = self.events = None

    @property
    def is_resuming(self) -> bool:
        """Whether another engine is to go on with it, and has not yet."""
        return self.first_token_ns is not None and not (self.events and self.events.started)

    def record_fields(self) -> RecordFields:
        """Return what is recorded of it."""
        fields = self.placed.record_fields()
        if self.first_token_ns is not None:
            fields["ttft_ns"] = self.first_token_ns - self.identified.started_ns
        fields["resumed"], fields["unchecked_joints"] = self.resumed, self.unchecked_joints
        latency: StreamLatency | None = fields.get("latency")
        # Tokens of several choices come between each other.
        if latency is not None and self.fields.choices == 1:
            fields["latency"] = StreamLatency(
                ttft_target_ns=latency.ttft_target_ns,
                itl_target_ns=latency.itl_target_ns,
                gaps=self.gaps,
                late_gaps=self.late_gaps,
            )
        return fields
