"""What will enter the course of a request does so by stations, sources and sinks of its own.

Four stand-ins: a price, a second model after judging, a source from memory with followers, a copy
of the answer. None of them is in the product, and none changes another station.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from typing_extensions import override

from tessera.api.ref import Ref
from tessera.domain.gateway.usage_record import Phase
from tessera.gateway.http.responses import ClientResponse, EndedAnswer
from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.identify.senders import RecordFields
from tessera.gateway.refusals import Headers
from tessera.gateway.relay.sink import AnswerSink
from tessera.gateway.requests import app
from tessera.gateway.requests.course import RequestCourse
from tessera.gateway.reserve.limits import Reservations, Reserved
from tessera.gateway.resolve.chooser import Chosen
from tessera.gateway.resolve.models import Resolved
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    DONE,
    END,
    ROLE,
    STREAM,
    USAGE,
    EngineCall,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)
from world.testing import eventually

EVENTS = (ROLE, a_delta("one"), a_delta("two"), END, USAGE, DONE)


def joined(events: tuple[bytes, ...]) -> bytes:
    """Return what a client gets of these events, which did not ask for usage."""
    return b"".join(each for each in events if each is not USAGE)


# A price: reserved beside the limits, in a header, and in the record.


class Priced(Reserved):
    """A request whose price is reserved."""

    @property
    @override
    def headers(self) -> Headers:
        return [*super().headers, (b"x-price", b"0.25")]

    @override
    def record_fields(self) -> RecordFields:
        return {**super().record_fields(), "tags": "price=0.25"}


@dataclass
class PricedReservations:
    """Reserves a price too."""

    limits: Reservations

    async def reserve(self, chosen: Chosen, *, whole: bool) -> Reserved:
        reserved = await self.limits.reserve(chosen, whole=whole)
        return Priced(chosen=chosen, shape=reserved.shape, admitted=reserved.admitted)


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "stream"])
async def test_a_price_is_a_reservation_with_a_header_and_a_record_field(body: object) -> None:
    async with (
        ScriptedEngine(answering) as engine,
        a_gateway(a_directory(a_model(a_replica(engine.address)))) as gateway,
    ):
        stations = gateway.app.stations
        priced = cast("Reservations", PricedReservations(stations.reservations))
        gateway.app.stations = replace(stations, reservations=priced)
        answer = await gateway.post(body)
        record = await gateway.record()
    assert (answer.status, answer.headers["x-price"]) == (200, "0.25")
    assert record.tags == "price=0.25"


# A second model, where the answer of the first is not good enough.


@dataclass
class HeldAnswer:
    """Holds an answer until it is judged."""

    ended: Callable[[TokenCounts | None], EndedAnswer]
    unread_bytes: int = 0
    headers: Headers = ()
    parts: list[bytes] = field(default_factory=list)
    body: bytes = b""
    counts: TokenCounts | None = None

    def begin(self, headers: Headers) -> bool:
        self.headers = headers
        return True

    def part(self, data: bytes) -> bool:
        self.parts.append(data)
        return True

    def whole(self, body: bytes) -> None:
        self.body = body

    def end(self, counts: TokenCounts | None) -> None:
        self.counts = counts
        self.ended(counts)

    def interrupted(self) -> None:
        self.parts.clear()

    async def drained(self) -> None:
        pass

    def pass_on(self, sink: ClientResponse) -> None:
        """Give the answer to the sink of the client."""
        if self.parts:
            sink.begin(self.headers)
        for part in self.parts:
            sink.part(part)
        sink.whole(self.body)
        sink.end(self.counts)


class Cascade(RequestCourse):
    """Asks a small model, and a large one where that does not know."""

    @override
    async def _answer(self) -> None:
        received = self.at = await self._read()
        small = self.at = self._stations.models.resolve(received)
        answer = HeldAnswer(self._end_engine)
        await self._answer_by(small, answer, is_last=False)
        if b"do not know" in answer.body + b"".join(answer.parts):
            large = self._stations.models.find(self.identified.identity, "large")
            answer = HeldAnswer(self._end_engine)
            await self._answer_by(Resolved(received=received, model=large), answer)
        placed = self._end_engine(None)
        self._client.ended = lambda _: placed
        answer.pass_on(self._client)
        await self._client.finish()


@pytest.mark.parametrize(("says", "by"), [("yes", "chat"), ("do not know", "large")])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_second_model_answers_where_the_first_is_not_good_enough(
    says: str, by: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "RequestCourse", Cascade)

    async def say(call: EngineCall) -> None:
        if stream:
            await call.stream(ROLE, a_delta(says), END, USAGE, DONE)
        else:
            await call.whole({**COMPLETION, "says": says})

    async with (
        ScriptedEngine(say) as small,
        ScriptedEngine(answering) as large,
        a_gateway(
            a_directory(
                a_model(a_replica(small.address)),
                a_model(
                    a_replica(large.address, "large-1"),
                    service=Ref("team-a", "large"),
                    uid="uid-large",
                    names=("large",),
                ),
            )
        ) as gateway,
    ):
        answer = await gateway.post(STREAM if stream else CHAT)
        record = await gateway.record()
        assert gateway.admission.demand == {}
        assert gateway.held_bytes == 0
    assert answer.status == 200
    assert answer.headers["x-tessera-service"] == record.service == f"team-a/{by}"
    assert len(large.calls) == (by == "large")
    if large.calls:
        # It is asked by the body that the first one got, under its own name.
        assert large.calls[0].json == {**small.calls[0].json, "model": "large"}
    if stream:
        expected = (ROLE, a_delta(says), END, DONE) if by == "chat" else EVENTS
        assert answer.body == joined(expected)


# Answers from memory: the first is copied while it comes, others that ask the same follow it.


class Copy:
    """Passes an answer on, and gives a copy of it to others that come meanwhile or after."""

    def __init__(self, sink: AnswerSink) -> None:
        self.sink = sink
        self.parts: list[bytes] = []
        self.is_ended = asyncio.Event()
        self.followers: list[AnswerSink] = []
        self.counts: TokenCounts | None = None

    @property
    def unread_bytes(self) -> int:
        return self.sink.unread_bytes

    def begin(self, headers: Headers) -> bool:
        return self.sink.begin(headers)

    def part(self, data: bytes) -> bool:
        self.parts.append(data)
        for follower in self.followers:
            follower.part(data)
        return self.sink.part(data)

    def whole(self, body: bytes) -> None:
        self.sink.whole(body)

    def end(self, counts: TokenCounts | None) -> None:
        self.counts = counts
        self.is_ended.set()
        self.sink.end(counts)

    def interrupted(self) -> None:
        self.sink.interrupted()

    async def drained(self) -> None:
        await self.sink.drained()

    def follow(self, sink: AnswerSink, headers: Headers) -> None:
        sink.begin(headers)
        for part in self.parts:
            sink.part(part)
        self.followers.append(sink)


@dataclass(slots=True)
class Recalled:
    """A request that is answered from memory."""

    reserved: Reserved
    model: Any
    headers: Headers = ((b"x-from-memory", b"true"),)

    def record_fields(self) -> RecordFields:
        return {**self.reserved.record_fields(), "reason": "FromMemory"}


class Recalling(RequestCourse):
    """Answers from memory what was asked before."""

    memory: dict[bytes, Copy]

    @override
    async def _answer_by(
        self, resolved: Resolved, sink: AnswerSink, *, is_last: bool = True
    ) -> None:
        body = resolved.received.body
        known = self.memory.get(body)
        if known is None:
            copy = self.memory[body] = Copy(sink)
            await super()._answer_by(resolved, copy, is_last=is_last)
            return
        chosen = self.at = await self._stations.chooser.choose(resolved)
        reserved = self.at = await self._stations.reservations.reserve(chosen)
        recalled = Recalled(reserved, resolved.model)
        known.follow(sink, recalled.headers)
        await known.is_ended.wait()
        # No engine works for it: what was reserved is free.
        self._stations.settlement.end_engine(reserved, Phase.COMPLETED)
        self.at = cast("Any", recalled)
        self._client.ended = lambda _: recalled
        sink.end(known.counts)


async def test_what_was_asked_before_comes_from_memory_also_while_it_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "RequestCourse", Recalling)
    monkeypatch.setattr(Recalling, "memory", {}, raising=False)
    goes_on = asyncio.Event()

    async def slowly(call: EngineCall) -> None:
        await call.begin()
        for event in EVENTS[:2]:
            await call.chunk(event)
        await goes_on.wait()
        for event in EVENTS[2:]:
            await call.chunk(event)
        await call.finish()

    async with (
        ScriptedEngine(slowly) as engine,
        a_gateway(a_directory(a_model(a_replica(engine.address)))) as gateway,
    ):
        first = asyncio.create_task(gateway.post(STREAM))
        await gateway.wait_for_tokens(1)
        follower = asyncio.create_task(gateway.post(STREAM))
        await wait_for_followers()
        goes_on.set()
        answers = [await first, await follower, await gateway.post(STREAM)]
        assert len(engine.calls) == 1
        assert gateway.held_bytes == 0
        assert gateway.admission.demand == {}
        assert len(gateway.records) == 3
    assert [answer.body for answer in answers] == [joined(EVENTS)] * 3
    assert [answer.headers.get("x-from-memory") for answer in answers] == [None, "true", "true"]
    reasons = [record.reason for record in gateway.records]
    assert reasons.count("FromMemory") == 2


async def wait_for_followers() -> None:
    """Wait until a second request follows the first."""

    async def follow() -> None:
        assert any(copy.followers for copy in Recalling.memory.values())

    await eventually(follow)


async def answering(call: EngineCall) -> None:
    """Answer as a whole, or by a stream."""
    if json.loads(call.body).get("stream"):
        await call.stream(*EVENTS)
    else:
        await call.whole(COMPLETION)
