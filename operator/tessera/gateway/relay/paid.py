"""A stream that passes as far as it is paid, and waits or ends where its money runs out.

What is held when it ends passes as far as it is paid too, event by event. The rest of it has no
price: its client does not get it.
"""

import asyncio
import math

from typing_extensions import override

from tessera.domain.usage.payer import ChargeEnd, KnownWork, TokenParts
from tessera.gateway.http.cut_streams import CutUsage, passed_events, with_cost
from tessera.gateway.http.sse import BYTES_PER_TOKEN, EventRelay, StreamFormat, split_events
from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.refusals import Headers, RequestError, amount_text
from tessera.gateway.relay.sent import Asked
from tessera.gateway.relay.sink import AnswerSink
from tessera.gateway.reserve.charges import (
    TOP_UP_BEFORE,
    TOP_UP_TOKENS,
    Charges,
    RequestCharge,
)

# Parts that are held are joined up to this size, since each takes more than its bytes.
_SMALL_BYTES = 2**12


class OutOfMoneyError(RequestError):
    """A stream is cut: no more money is left for it, or what is left is not known."""

    def __init__(self, shortage: RequestError, events: bytes) -> None:
        """Take what ends the stream in the words of its path."""
        super().__init__(shortage.reason, *[""] * 8)
        self.message = shortage.message
        self._events = events

    @override
    def event(self, name: bytes = b"") -> bytes:
        del name
        return self._events


class PaidSink:
    """Passes a stream on to another sink, and holds what is not paid yet."""

    def __init__(
        self, sink: AnswerSink, sent: Asked, charge: RequestCharge, charges: Charges
    ) -> None:
        self._sink, self._sent, self._charge, self._charges = sink, sent, charge, charges
        stream = sent.identified.path_item.stream
        assert stream is not None  # noqa: S101 - only such paths have streams
        self._format: StreamFormat = stream
        self._shows_cost = sent.fields.usage_asked
        # Tokens above which more has to be reserved.
        self._enough = math.inf
        self._asking: asyncio.Task[None] | None = None
        self._held: list[bytes] = []
        self._own_bytes = 0
        self._has_begun = self._passes = False
        self._passed = passed_events(stream, charge.choices)
        self._passed_tokens = 0
        self._set_enough()

    @property
    def unread_bytes(self) -> int:
        """Return what waits for the client, and for money."""
        return self._sink.unread_bytes + self._own_bytes

    def begin(self, headers: Headers) -> bool:
        """Begin the stream."""
        return self._sink.begin(headers)

    def part(self, data: bytes) -> bool:
        """Pass events on, or hold them; False where they are held."""
        if self._passes:
            return self._sink.part(data)
        tokens = self._sent.tokens
        if self._held or (tokens > self._enough and not self._is_paid()):
            if self._held and len(self._held[-1]) < _SMALL_BYTES:
                self._held[-1] += data
            else:
                self._held.append(data)
            self._own_bytes += len(data)
            return False
        self._passed_tokens = tokens
        if self._passed.follows or not self._has_begun:
            self._own_bytes += self._passed.add(data)
        if not self._has_begun:
            self._begin()
        if self._shows_cost and b'"usage"' in data:
            work = known_work(self._sent, self._charge, ChargeEnd.ANSWER)
            nanos, _ = self._charges.price(self._charge, work)
            data = with_cost(data, self._format, amount_text(nanos))
        return self._sink.part(data)

    def whole(self, body: bytes) -> None:
        """Pass an answer that is no stream."""
        self._sink.whole(body)

    def end(self, counts: TokenCounts | None) -> None:
        """End the stream once all of it is paid."""
        if not self._held:
            self._sink.end(counts)

    def interrupted(self) -> None:
        """Wait for another source."""
        self._sink.interrupted()

    async def drained(self) -> None:
        """Wait for the client, and until what is held is paid.

        Raises OutOfMoneyError.
        """
        await self._sink.drained()
        while self._held:
            await self._pay()
            self._pass_held()
            await self._sink.drained()

    async def finish(self) -> None:
        """Pass on what is held at the end of the source; raises OutOfMoneyError."""
        if self._held:
            await self.drained()
            self._sink.end(self._sent.counts)

    def close(self) -> None:
        """Ask for nothing more."""
        if self._asking is not None:
            self._asking.cancel()

    def _pass_held(self) -> None:
        parts, self._held = self._held, []
        self._own_bytes -= sum(map(len, parts))
        for part in parts:
            self.part(part)

    def _begin(self) -> None:
        """Give back what the prompt cannot need."""
        self._has_begun = True
        if (prompt := self._counted_prompt) is not None:
            self._charges.shrink(self._charge, prompt)
        self._set_enough()

    def _set_enough(self) -> None:
        paid = self._charge.paid_output
        is_all = self._charge.reservation is None or paid >= self._charge.max_output
        self._enough = math.inf if is_all else paid - TOP_UP_BEFORE
        # Nothing more is looked for in it.
        self._passes = self._has_begun and is_all and not self._shows_cost

    def _is_paid(self) -> bool:
        """Reserve more, and return whether what came until now is paid."""
        tokens, charge = self._sent.tokens, self._charge
        if (prompt := self._counted_prompt) is not None:
            charge.prompt_bound = min(charge.prompt_bound, prompt)
        events = self._sent.events
        if events is not None and events.ended and events.total is not None:
            # The gateway's count is an estimate, this is the engine's.
            nanos, _ = charge.cost(known_work(self._sent, charge, ChargeEnd.ANSWER))
            if nanos <= charge.reserved or self._charges.grow(charge, nanos):
                return True
        if self._asking is None:
            if self._charges.grow(charge, charge.most(tokens + TOP_UP_TOKENS)):
                self._set_enough()
                return True
            self._asking = asyncio.create_task(self._charges.top_up(charge, tokens))
            self._asking.add_done_callback(_retrieve)
        elif self._asking.done() and self._asking.exception() is None:
            self._asking = None
            self._set_enough()
        return tokens <= charge.paid_output

    @property
    def _counted_prompt(self) -> int | None:
        """Return the tokens of the prompt, once the engine tells them."""
        return self._sent.events.counted_prompt if self._sent.events is not None else None

    async def _pay(self) -> None:
        asking, self._asking = self._asking, None
        # Its engine may take long to make the next token, but this does not wait for it.
        self._sink.interrupted()
        try:
            if asking is not None and not asking.done():
                await asking
            if self._sent.tokens > self._charge.paid_output:
                await self._charges.top_up(self._charge, self._sent.tokens)
        except RequestError as error:
            raise OutOfMoneyError(error, self._cut(error.reason)) from None
        self._set_enough()

    def _cut(self, reason: str) -> bytes:
        """Pass on what is paid, and return what ends the stream behind it."""
        delivered = self._pass_paid()
        # The answer has no more than these, whatever its engine made.
        self._charge.max_output = delivered
        usage = None
        if self._shows_cost:
            work = known_work(self._sent, self._charge, ChargeEnd.TIME)
            nanos, _ = self._charges.price(self._charge, work)
            counted = work.counted.input if work.counted is not None else 0
            usage = CutUsage(counted or work.prompt, delivered, amount_text(nanos))
        return self._passed.cut(reason, usage)

    def _pass_paid(self) -> int:
        """Pass on the first of the events that are held; return the tokens that the client has."""
        relay = EventRelay(self._format, keep_usage=True)
        # They began with the stream.
        relay.started = True
        events, tokens = [], self._passed_tokens
        for event in split_events(b"".join(self._held)):
            relay.feed(event)
            # Both sums are rounded down: the last token, which the end may follow, stays behind.
            if self._passed_tokens + relay.tokens >= self._charge.paid_output:
                break
            tokens = self._passed_tokens + relay.tokens
            events.append(event)
        self._held, self._enough = [], math.inf
        if events:
            self.part(b"".join(events))
        return tokens


def known_work(sent: Asked, charge: RequestCharge, end: ChargeEnd, unseen: int = 0) -> KnownWork:
    """Return what is known of a request for its charge."""
    events, counts = sent.events, sent.counts
    if events is not None:
        counts = events.total or counts
    if counts is not None and end is ChargeEnd.ANSWER and _is_no_count(counts, sent, charge):
        counts = None
    delivered, most_counted = sent.tokens, charge.max_output
    if not sent.fields.streams and end is ChargeEnd.ANSWER and counts is None:
        delivered = sent.text_bytes // BYTES_PER_TOKEN
    if not charge.believes_engine:
        # A token has a byte of text at least, but for the one that ends a choice.
        most_counted = sent.passed_text_bytes + charge.choices
        delivered = min(delivered, most_counted)
    return KnownWork(
        engines=sent.engines,
        end=end,
        prompt=charge.prompt_tokens,
        delivered=delivered,
        unseen=unseen,
        counted=None
        if counts is None
        else TokenParts(counts.input, counts.cached, counts.output, counts.reasoning),
        most_input=charge.prompt_bound,
        most_output=charge.max_output,
        most_counted=most_counted,
    )


def _is_no_count(counts: TokenCounts, sent: Asked, charge: RequestCharge) -> bool:
    """Return whether an engine leaves out a prompt that was read, or an answer that has text."""
    has_answer = charge.max_output > 0 and sent.passed_text_bytes > 0
    return (charge.prompt_tokens > 0 and not counts.input) or (has_answer and not counts.output)


def _retrieve(asking: "asyncio.Task[None]") -> None:
    """Take the error of a task that may be asked for it later, or never."""
    if not asking.cancelled():
        asking.exception()
