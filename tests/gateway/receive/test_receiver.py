"""A body is received within bounds, and what it says is read once."""

import asyncio
import json
from typing import Any

import pytest

from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import RequestPriority
from tessera.gateway.bodies.memory import Memory
from tessera.gateway.bodies.turns import Turns
from tessera.gateway.http.responses import Message, Receive
from tessera.gateway.receive.receiver import BodyBounds, Receiver
from tessera.gateway.refusals import RequestError
from tests.gateway.harness import CHAT, STREAM, an_identified_request

BODY = json.dumps(CHAT).encode()


def a_receiver(**bounds: Any) -> Receiver:
    return Receiver(BodyBounds(**bounds), *(Turns(lambda: 0.0) for _ in range(2)))


def parts(*bodies: bytes, then: Message | None = None) -> Receive:
    """Return what gives these parts of a body, and then a message, or nothing more."""
    waiting: list[Message] = [
        {"type": "http.request", "body": each, "more_body": True} for each in bodies
    ]
    waiting += [then] if then is not None else []

    async def receive() -> Message:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    return receive


def last(body: bytes) -> Message:
    return {"type": "http.request", "body": body, "more_body": False}


async def test_all_parts_are_received_and_held() -> None:
    memory = Memory()
    receive = parts(BODY[:9], BODY[9:20], then=last(BODY[20:]))
    body = await a_receiver().receive(an_identified_request(memory=memory), receive)
    assert body == BODY
    assert memory.size == len(BODY)


@pytest.mark.parametrize(
    ("reason", "bounds", "headers", "receive"),
    [
        (RequestReason.UNSUPPORTED_ENCODING, {}, {b"content-encoding": b"gzip"}, parts(BODY)),
        (RequestReason.BODY_TOO_LARGE, {"max_bytes": 99}, {b"content-length": b"100"}, parts()),
        (RequestReason.BODY_TOO_LARGE, {"max_bytes": 9}, {}, parts(b"12345", b"67890")),
        (RequestReason.BODY_TIMEOUT, {"seconds": 0.01}, {}, parts(b"12345")),
        (RequestReason.CLIENT_GONE, {}, {}, parts(b"1", then={"type": "http.disconnect"})),
    ],
)
async def test_a_body_out_of_bounds_is_refused(
    reason: RequestReason, bounds: dict[str, Any], headers: dict[bytes, bytes], receive: Receive
) -> None:
    with pytest.raises(RequestError) as refusal:
        await a_receiver(**bounds).receive(an_identified_request(headers=headers), receive)
    assert refusal.value.reason is reason


async def test_a_body_without_room_is_refused() -> None:
    identified = an_identified_request(memory=Memory(limit=10))
    with pytest.raises(RequestError) as refusal:
        await a_receiver().receive(identified, parts(b"x" * 20))
    assert refusal.value.reason is RequestReason.HELD_BYTES_EXCEEDED


@pytest.mark.parametrize(
    ("body", "sheddable", "priority"),
    [
        (CHAT, False, RequestPriority.DEFAULT),
        ({**CHAT, "priority": 1}, False, RequestPriority.BATCH),
        ({**CHAT, "priority": 1}, True, RequestPriority.SHEDDABLE),
    ],
)
async def test_a_request_yields_as_its_client_says(
    body: dict[str, Any], sheddable: bool, priority: RequestPriority
) -> None:
    identified = an_identified_request(sheddable=sheddable)
    received = await a_receiver().read(identified, json.dumps(body).encode())
    assert received.priority is priority


async def test_a_dropped_body_leaves_what_is_recorded() -> None:
    received = await a_receiver().read(an_identified_request(), json.dumps(STREAM).encode())
    fields = received.record_fields()
    received.drop_body()
    assert received.body == b""
    assert received.record_fields() == fields
    assert (fields["model"], fields["stream"]) == ("chat", True)
