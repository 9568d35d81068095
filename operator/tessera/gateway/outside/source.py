"""A model of an outside provider as the source of an answer: one call, repeated once at most."""

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from tessera.adapters.clock import Clock
from tessera.domain.charge.prices import NO_EXTRAS, BilledExtras
from tessera.domain.gateway.directory import OutsideModel
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.providers.dialects import dialect_of
from tessera.gateway.bodies.answer_size import MAX_RESPONSE_BYTES
from tessera.gateway.bodies.signed import thinking_mark
from tessera.gateway.bodies.turns import Turns
from tessera.gateway.http.sse import InvalidStreamError, answer_text_bytes, event_data
from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.identify.senders import RecordFields
from tessera.gateway.outside.answers import ProviderEvents, is_error, read_answer
from tessera.gateway.outside.bodies import outside_body
from tessera.gateway.outside.client import (
    OutsideAnswer,
    OutsideClient,
    OutsideError,
    reported_error,
)
from tessera.gateway.outside.errors import MAX_ERROR_BYTES, ErrorKind, named_field, read_error
from tessera.gateway.outside.usage import AnswerBill, Meters, UsageReader
from tessera.gateway.refusals import Headers, RequestError
from tessera.gateway.relay.paid import PaidSink
from tessera.gateway.relay.sent import Asked
from tessera.gateway.relay.sink import AnswerSink, begun
from tessera.gateway.reserve.charges import Charges
from tessera.gateway.reserve.limits import Reserved
from tessera.gateway.resolve.models import Models

# Before a call is repeated whose provider does not say when; from half to one and a half of it.
_REPEAT_SECONDS = 0.2
# Of a stream at once; one that keeps the loop for so long rests.
_PART_BYTES, _SLOW_PART_SECONDS, _MAX_REST_SECONDS = 2**14, 0.002, 0.1
# Of an event with one token, with whatever providers write around it.
_TOKEN_BYTES = 1024
# Of an answer that is no stream: what stands around its text, the request that some repeat in it,
# and a token with the log-probabilities of twenty others.
_WHOLE_BYTES, _ECHOES, _WHOLE_TOKEN_BYTES = 2**20, 2, 4096


@dataclass(slots=True, kw_only=True, eq=False)
class AskedOutside(Asked):
    """A request that goes to a model of a provider."""

    outside: OutsideModel
    mark: bytes
    """Stands in front of what this provider signed."""
    extras: BilledExtras = NO_EXTRAS
    """What its bill has beside the counts."""
    is_doubtful: bool = False
    """The provider's counts contradict each other, or one of them is missing."""
    own_nanos: int | None = None
    """What it costs as the provider says, in nano-units of USD."""
    meters: Meters = field(default_factory=Meters)
    """Those of the provider."""

    @property
    def provider(self) -> str:
        """Return the name of the ModelProvider."""
        return self.outside.provider.name

    @property
    def target_headers(self) -> Headers:
        """Return what the client learns of who answers."""
        routed = self.reserved.chosen.received.routed
        assert routed is not None  # noqa: S101 - routes alone lead to providers
        return [*routed.headers, (b"x-tessera-model", self.outside.model.name.encode())]

    def note_bill(self, bill: AnswerBill) -> None:
        """Take note of what the provider billed."""
        self.counts, self.extras, self.is_doubtful, self.own_nanos, disagrees = bill
        self.meters.disagreed |= disagrees

    def compare(self, nanos: int) -> None:
        """Take note of what the answer costs, where its provider says that as well, in USD."""
        if self.own_nanos is not None and self.outside.cost.currency == "USD":
            self.meters.own_nanos += self.own_nanos
            self.meters.compared_nanos += nanos

    def usage_reader(self) -> UsageReader:
        """Return what reads the counts of an answer."""
        cost, provider = self.reserved.cost, self.outside.provider
        prompt_tokens = cost.prompt_tokens if cost is not None else 0
        path = self.identified.path_item.path
        return UsageReader(path, dialect_of(provider.spec), prompt_tokens)

    @property
    def headers(self) -> Headers:
        """Return what the client learns about its request."""
        return [*self.target_headers, *self.reserved.headers]

    def record_fields(self) -> RecordFields:
        """Return what is recorded of it."""
        fields = self.reserved.record_fields()
        if self.first_token_ns is not None:
            fields["ttft_ns"] = self.first_token_ns - self.identified.started_ns
        return fields


class OutsideSource:
    """Providers, each of which answers a request that is sent to it."""

    def __init__(
        self,
        client: OutsideClient,
        models: Models,
        charges: Charges,
        turns: Turns,
        clock: Clock,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Take the turns of large bodies, and `chance`, which returns from 0 to 1."""
        self._client, self._models, self._charges = client, models, charges
        self._turns, self._clock, self._chance = turns, clock, chance

    async def prepare(self, reserved: Reserved) -> AskedOutside:
        """Return the request as its provider gets it.

        Raises RequestError with status 400 for what the protocol or the model cannot say, and with
        status 503 while the provider is left alone.
        """
        received, outside = reserved.chosen.received, reserved.model.outside
        assert outside is not None  # noqa: S101 - others ask a model of a provider for nothing
        identified, body, summary = received.identified, received.body, reserved.chosen.summary
        self._client.check(outside.provider.name, identified.identity.tenant)
        most = reserved.admitted.max_output_tokens // summary.choices
        path = identified.path_item.path
        return AskedOutside(
            reserved=reserved,
            identified=identified,
            holding=identified.holding,
            fields=summary,
            body=await self._turns.take(len(body), lambda: outside_body(path, body, outside, most)),
            outside=outside,
            mark=thinking_mark(outside.provider),
        )

    async def run(self, asked: AskedOutside, sink: AnswerSink) -> None:
        """Relay an answer to its end.

        Raises RequestError.
        """
        charge = asked.reserved.charge
        if charge is None or not charge.watches(asked.fields):
            await self._run(asked, sink)
            return
        # All of it is paid: it shows the client what it costs.
        paid = PaidSink(sink, asked, charge, self._charges)
        try:
            await self._run(asked, paid)
            await paid.finish()
        finally:
            paid.close()

    def is_wanted(self, asked: AskedOutside) -> bool:
        """Return whether others found no place at the provider just now."""
        return self._client.is_wanted(asked.provider, asked.identified.identity.tenant)

    async def _run(self, asked: AskedOutside, sink: AnswerSink) -> None:
        try:
            await self._ask(asked, sink)
            return
        except OutsideError as error:
            if not error.may_repeat or asked.counts is not None:
                raise
            seconds = error.retry_after_seconds or _REPEAT_SECONDS * (0.5 + self._chance())
        await asyncio.sleep(seconds)
        await self._ask(asked, sink)

    async def _ask(self, asked: AskedOutside, sink: AnswerSink) -> None:
        """Make one call; raises RequestError."""
        identified, chosen = asked.identified, asked.reserved.chosen
        path, tenant = identified.path_item.path, identified.identity.tenant
        # It may have waited.
        await self._models.confirm(chosen.received, chosen.model)

        def note_sent() -> None:
            asked.sent_ns, asked.engines = self._clock.monotonic_ns(), 1

        try:
            async with self._client.ask(
                asked.outside.provider, path, asked.body, tenant=tenant, on_sent=note_sent
            ) as answer:
                asked.meters = self._client.states[asked.provider].meters
                if asked.fields.streams:
                    await self._read_stream(answer, asked, sink)
                else:
                    await self._read_whole(answer, asked, sink)
        except OutsideError as error:
            if error.is_refusal and asked.counts is None:
                asked.engines = 0
            if names := error.parameters:
                body = chosen.received.body or asked.body
                name = await self._turns.take(len(body), lambda: named_field(names, body))
                error.name_parameter(name)
            raise

    async def _read_whole(
        self, answer: OutsideAnswer, asked: AskedOutside, sink: AnswerSink
    ) -> None:
        path, parts = asked.identified.path_item.path, bytearray()
        # What is larger is no answer, and would end requests that hold less.
        most = asked.reserved.admitted.max_output_tokens
        limit = _WHOLE_BYTES + _ECHOES * len(asked.body) + _WHOLE_TOKEN_BYTES * most
        async with aclosing(answer.parts(min(limit, MAX_RESPONSE_BYTES))) as coming:
            async for part in coming:
                parts += part
                if not asked.hold(asked.answer_bytes + len(part)):
                    raise asked.holding.error()
        whole = bytes(parts)
        del parts
        try:
            usage = asked.usage_reader()
            body, bill, is_filtered, has_failed = await self._turns.take(
                len(whole), lambda: read_answer(path, whole, asked.mark, usage)
            )
        except InvalidStreamError as error:
            raise OutsideError(RequestReason.PROVIDER_FAILED, asked.provider, str(error)) from None
        asked.note_bill(bill)
        if is_filtered:
            raise _filtered(asked)
        if has_failed:
            raise _reported(asked, whole)
        asked.first_token_ns = self._clock.monotonic_ns()
        asked.text_bytes = answer_text_bytes(body)
        sink.whole(body)
        sink.end(asked.counts)

    async def _read_stream(
        self, answer: OutsideAnswer, asked: AskedOutside, sink: AnswerSink
    ) -> None:
        item = asked.identified.path_item
        assert item.stream is not None  # noqa: S101 - only such paths have bodies that stream
        if not answer.is_stream:
            raise await _no_stream(answer, asked)
        events = asked.events = ProviderEvents(
            item.path,
            item.stream,
            asked.mark,
            keep_usage=asked.fields.usage_asked,
            usage=asked.usage_reader(),
        )
        try:
            await self._pass_on(answer, events, asked, sink)
        except InvalidStreamError as error:
            raise OutsideError(RequestReason.PROVIDER_FAILED, asked.provider, str(error)) from None
        finally:
            asked.note_bill(events.bill)
        if events.is_filtered:
            raise _filtered(asked)
        if events.error and asked.first_token_ns is None:
            raise _reported(asked, event_data(events.error))
        if not asked.is_complete:
            detail = "it reported an error" if events.error else "its stream broke off"
            raise OutsideError(RequestReason.PROVIDER_FAILED, asked.provider, detail)
        sink.end(asked.counts)

    async def _pass_on(
        self,
        answer: OutsideAnswer,
        events: ProviderEvents,
        asked: AskedOutside,
        sink: AnswerSink,
    ) -> None:
        """Read the events into the sink, to their end or a failure."""
        limit = MAX_RESPONSE_BYTES + _TOKEN_BYTES * asked.reserved.admitted.max_output_tokens
        async with aclosing(answer.parts(limit)) as coming:
            async for large_part in coming:
                for start in range(0, len(large_part), _PART_BYTES):
                    began = self._clock.monotonic()
                    part = large_part[start : start + _PART_BYTES]
                    takes = await self._pass_part(part, events, asked, sink)
                    del part
                    if not asked.hold(sink.unread_bytes + events.waiting_bytes):
                        raise asked.holding.error()
                    if events.closed:
                        return
                    if not takes:
                        await sink.drained()
                        asked.hold(events.waiting_bytes)
                    elif (seconds := self._clock.monotonic() - began) > _SLOW_PART_SECONDS:
                        # Others have as much of the loop; the sink may have waited as well.
                        await asyncio.sleep(min(seconds, _MAX_REST_SECONDS))
                # Nothing may come for long.
                del large_part

    async def _pass_part(
        self, part: bytes, events: ProviderEvents, asked: AskedOutside, sink: AnswerSink
    ) -> bool:
        """Pass the events on that a part completes; False if the sink takes no more for now."""
        block = events.feed(part)
        if not block:
            return True
        asked.read_ns = self._clock.monotonic_ns()
        if asked.first_token_ns is None:
            asked.first_token_ns = asked.read_ns
            asked.hold(sink.unread_bytes + len(block))
            await sink.drained()
            block = begun(sink, asked.headers, asked.target_headers, block)
            asked.body = b""
            asked.free_request()
        return sink.part(block)


def _reported(asked: AskedOutside, body: bytes) -> RequestError:
    """Return the error that a provider sent with the status of a success, before its answer."""
    error = read_error(body)
    if error.kind is ErrorKind.FILTER:
        return _filtered(asked)
    return reported_error(asked.provider, error)


async def _no_stream(answer: OutsideAnswer, asked: AskedOutside) -> RequestError:
    """Return the error of an answer that should be a stream, and may say why it is none."""
    body = await answer.whole(MAX_ERROR_BYTES)
    if is_error(body):
        return _reported(asked, body)
    return OutsideError(RequestReason.PROVIDER_FAILED, asked.provider, "it sent no stream")


def _filtered(asked: AskedOutside) -> RequestError:
    """Return the error of a request that a filter refused: its prompt was read at most."""
    asked.counts = asked.counts or TokenCounts()
    return RequestError(RequestReason.CONTENT_FILTERED, asked.provider)
