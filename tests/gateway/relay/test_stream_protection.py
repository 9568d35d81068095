"""What a stream that may go on elsewhere keeps: its request holds it, and reads it once."""

import asyncio
import json
import tracemalloc
from typing import Any

import msgspec
import pytest

from tessera.gateway.bodies.delivered import NotContinuableError
from tessera.gateway.bodies.memory import Holding, Memory
from tessera.gateway.bodies.turns import Turns
from tessera.gateway.http.event_fields import MAX_VALUES
from tessera.gateway.http.sse import EventRelay
from tessera.gateway.relay.resume import Protection
from tessera.gateway.relay.sent import Sent
from tests.gateway.course.building import (
    CHAT_PATH,
    FIRST,
    SECOND,
    a_course,
    begun,
    directory,
    engine,
    request,
    sent,
    streamed,
    streaming,
    whole,
    with_leaving,
)
from tests.gateway.course.play import Happening, Play, PlayedEngine
from tests.gateway.harness import (
    DONE,
    END,
    ROLE,
    STREAM,
    USAGE,
    EngineCall,
    a_delta,
    a_directory,
    a_model,
    a_replica,
    an_identified_request,
    event,
)
from tests.gateway.http.test_sse import the_format
from tests.gateway.resumed import (
    RESUMED,
    UNPROTECTED,
    breaking,
    going_on,
    replicas,
)
from world.testing import eventually

pytestmark = pytest.mark.anyio
EVENTS = EventRelay(the_format(), keep_usage=False)
REST = (ROLE, a_delta(" two"), END, USAGE, DONE)
BODY = b'{"messages":[]}'


class Clock:
    """Counts the steps that turns measured."""

    def __init__(self) -> None:
        self.steps = 0.0

    def __call__(self) -> float:
        self.steps += 0.5
        return 0.0


def a_protection(memory: Memory | None = None) -> tuple[Protection, Holding]:
    holding = an_identified_request(memory).holding
    holding.take(len(BODY))
    return Protection(BODY, holding, {"id": msgspec.Raw(b'"a"')}), holding


def a_piece(text: str, *token_ids: int) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "token_ids": token_ids}
    return event({"id": "a", "choices": [choice]})


# --- what it holds


async def test_what_a_stream_keeps_is_held_before_and_after_it_is_read() -> None:
    protection, holding = a_protection()
    block = a_piece("word ", *range(100_000, 100_100))
    for _ in range(1000):
        protection.add(block, EVENTS)
    assert holding.size == holding.spare > 990 * len(block)
    tracemalloc.start()
    try:
        delivered = await protection.delivered(Turns(Clock()))
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # Text and token ids are left, without an object for each.
    assert (delivered.text_bytes, delivered.tokens) == (4999, 100_000)
    assert delivered.size <= holding.size - len(BODY) <= delivered.size + 100
    assert left < 1.2 * delivered.size
    protection.end()
    assert (holding.size, protection.body, protection.is_active) == (0, b"", False)


async def test_a_stream_is_read_once_and_in_parts_that_leave_turns_to_others() -> None:
    protection, _ = a_protection()
    clock = Clock()
    turns = Turns(clock)
    block = b'data:{"choices":[{}]}\n\n' * 700
    protection.add(a_piece("word"), EVENTS)
    for _ in range(50):
        protection.add(block, EVENTS)
    before = await protection.delivered(turns)
    assert clock.steps >= 20
    clock.steps = 0.0
    protection.add(a_piece(" two"), EVENTS)
    delivered = await protection.delivered(turns)
    assert (delivered, delivered.text, clock.steps) == (before, "word two", 0)


async def test_two_that_read_one_stream_read_it_once_together() -> None:
    protection, _ = a_protection()
    for number in range(2000):
        protection.add(a_piece(f"{number} "), EVENTS)
    turns = Turns(Clock())
    async with asyncio.timeout(60):
        first, second = await asyncio.gather(*(protection.delivered(turns) for _ in range(2)))
    assert first is second
    assert first.text.split() == [str(number) for number in range(2000)]


async def test_a_stream_that_cannot_be_read_is_protected_no_longer() -> None:
    protection, holding = a_protection()
    protection.add(a_piece("word"), EVENTS)
    protection.add(b'data: {"choices":[{"index":1}]}\n\n', EVENTS)
    for _ in range(2):
        with pytest.raises(NotContinuableError):
            await protection.delivered(Turns(Clock()))
    assert holding.size == 0
    assert protection.add(b"next", EVENTS) == UNPROTECTED + b"next"


async def test_protection_that_gives_way_while_it_is_read_keeps_nothing() -> None:
    protection, holding = a_protection()
    for _ in range(2000):
        protection.add(a_piece("word "), EVENTS)
    reading = asyncio.create_task(protection.delivered(Turns(Clock())))
    await asyncio.sleep(0)
    holding.drop_spare()
    with pytest.raises(NotContinuableError):
        await reading
    assert holding.size == 0


async def test_what_waits_at_the_joint_is_held() -> None:
    asked, text = asyncio.Event(), a_delta("word " * 2000)

    async def second(call: EngineCall) -> None:
        if call.path != "/tokenize":
            await call.stream(*REST)
            return
        asked.set()
        await release.wait()
        await going_on(DONE)(call)

    release = asyncio.Event()
    async with replicas(breaking(ROLE, *[text] * 20), second) as (gateway, engines):
        sending = asyncio.create_task(gateway.post(STREAM))
        await asyncio.wait_for(asked.wait(), 60)
        # The text, and what the engine is asked about.
        assert 400_000 <= gateway.held_bytes < 450_000
        release.set()
        answer = await sending
        await gateway.wait_for_held_bytes(0, 0)
    assert answer.body.endswith(RESUMED + DONE)
    assert len(engines[1].calls) == 3


async def test_what_the_next_engine_is_asked_is_held_as_its_request() -> None:
    asked, text = asyncio.Event(), a_delta("word " * 2000)

    async def second(call: EngineCall) -> None:
        if call.path == "/tokenize":
            await going_on(DONE)(call)
            return
        asked.set()
        await release.wait()
        await call.stream(*REST)

    release = asyncio.Event()
    async with replicas(breaking(ROLE, *[text] * 20), second) as (gateway, _):
        sending = asyncio.create_task(gateway.post(STREAM))
        await asyncio.wait_for(asked.wait(), 60)
        assert 400_000 <= gateway.held_bytes < 450_000
        # Protection gives way; the request itself stays.
        (course,) = gateway.app._courses
        course.identified.holding.drop_spare()
        assert 200_000 <= gateway.held_bytes < 250_000
        release.set()
        answer = await sending
        await gateway.wait_for_held_bytes(0, 0)
    assert answer.body.endswith(RESUMED + DONE)


# --- what ends it


async def test_a_stream_with_long_names_runs_on_without_protection() -> None:
    name = "x" * 2_000_000
    first = event({"id": name, "choices": [{"delta": {"content": "a"}}]})
    async with replicas(breaking(first, a_delta()), going_on(*REST)) as (gateway, engines):
        answer = await gateway.post(STREAM)
    assert answer.headers["x-tessera-resumable"] == "false"
    assert answer.body.startswith(first + a_delta())
    assert b"stream_broken" in answer.body
    assert not engines[1].calls


@pytest.mark.parametrize(
    "strange",
    [
        {"choices": [{"index": 0, "delta": {"content": ""}}] * (MAX_VALUES + 1)},
        {f"field-{number}": 1 for number in range(MAX_VALUES + 1)},
    ],
    ids=["choices", "fields"],
)
@pytest.mark.parametrize("is_first", [True, False])
async def test_a_stream_with_an_event_of_too_many_values_runs_on_without_protection(
    strange: dict[str, Any], *, is_first: bool
) -> None:
    large = event(strange)

    async def script(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta() + large * is_first)
        await gateway.wait_for_tokens(1 + is_first * ("choices" in strange))
        await call.chunk(large * (not is_first) + a_delta(" one"))
        call.cut()

    async with replicas(script, going_on(*REST)) as (gateway, engines):
        answer = await gateway.post(STREAM)
    resumable = answer.headers["x-tessera-resumable"], answer.body.count(UNPROTECTED)
    assert resumable == (("false", 0) if is_first else ("true", 1))
    rest = answer.body.replace(UNPROTECTED, b"")
    assert rest.startswith(ROLE + a_delta() + large + a_delta(" one"))
    assert b"stream_broken" in answer.body
    assert not engines[1].calls


async def test_a_request_for_more_choices_than_an_event_may_have_is_answered() -> None:
    async with replicas(going_on(ROLE, a_delta(), END, USAGE, DONE)) as (gateway, _):
        answer = await gateway.post({**STREAM, "n": MAX_VALUES + 1})
    assert answer.headers["x-tessera-resumable"] == "false"
    assert answer.body == ROLE + a_delta() + END + DONE


async def test_a_stream_of_the_longest_id_of_a_request_goes_on() -> None:
    async def first(call: EngineCall) -> None:
        name = f"chatcmpl-{call.headers['x-request-id']}-0123abcd"
        await call.begin()
        await call.chunk(event({"id": name, "choices": [{"index": 0, "delta": {"content": "a"}}]}))
        call.cut()

    request_id = "r" * 128
    async with replicas(first, going_on(*REST)) as (gateway, _):
        answer = await gateway.post(STREAM, **{"x-request-id": request_id})
    assert answer.headers["x-tessera-resumable"] == "true"
    assert answer.body.endswith(RESUMED + DONE)
    names = {
        json.loads(each.removeprefix(b"data: "))["id"]
        for each in answer.body.split(b"\n\n")
        if each.startswith(b"data: {")
    }
    assert names == {f"chatcmpl-{request_id}-0123abcd"}


# --- where it cannot be moved


@pytest.mark.parametrize(
    ("second", "most"),
    [
        # After 1 s, then twice as long each time: 10 times in 600 s, with two questions each.
        (PlayedEngine(tokenizes=whole({}, 404)), 20),
        (PlayedEngine(tokenizes=whole({}, 503)), 20),
        # It reads another prompt, and is asked once.
        (PlayedEngine(begun_tokens=2, prompt_tokens=4), 2),
    ],
    ids=["does not tokenize", "busy", "another prompt"],
)
def test_a_replica_that_a_stream_cannot_be_moved_to_is_asked_seldom(
    second: PlayedEngine, most: int
) -> None:
    known = directory(FIRST, SECOND, moves_streams=True)
    slow = streaming(begun(CHAT_PATH, 2) * 200, gap=1.0011)
    course = a_course(
        "moved nowhere",
        sent(request(CHAT_PATH, streamed(CHAT_PATH))),
        engines={FIRST: engine(slow), SECOND: second},
        directory=known,
        happenings=(Happening(seconds=5.0017, directory=with_leaving(known, "chat-1")),),
    )
    play = Play(course)
    play.run()
    asked = json.dumps([each.log.as_json() for each in play.connections[SECOND]])
    # At its end the stream breaks, and the replica is asked once more.
    assert 4 <= asked.count("POST /tokenize") <= most + 2


async def test_a_stream_is_moved_to_another_replica_than_one_that_did_not_take_it() -> None:
    async def first(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta())
        await call.gone.wait()

    async def refuse(call: EngineCall) -> None:
        await call.whole({}, 404)

    async def is_moved() -> None:
        gateway.app.move_streams(known.moved_replicas())
        assert sending.done()

    async with replicas(first, refuse, going_on(*REST)) as (gateway, engines):
        sending = asyncio.create_task(gateway.post(STREAM))
        await gateway.wait_for_tokens(1)
        known = a_directory(
            a_model(
                a_replica(engines[1].address, "chat-2"),
                a_replica(engines[2].address, "chat-3"),
                a_replica(engines[0].address, "chat-1", leaving=True),
                moves_streams=True,
            )
        )
        gateway.admission.update(known)
        await eventually(is_moved)
        answer = await sending
    assert answer.body.endswith(DONE)
    assert b" two" in answer.body


async def test_of_replicas_that_are_no_more_nothing_is_remembered() -> None:
    async def first(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta())
        await call.gone.wait()

    async def refuse(call: EngineCall) -> None:
        await call.whole({}, 404)

    async with replicas(first, refuse) as (gateway, engines):
        sending = asyncio.create_task(gateway.post(STREAM))
        await gateway.wait_for_tokens(1)
        (course,) = gateway.app._courses
        stream = course.at
        assert isinstance(stream, Sent)
        for number in range(4):
            other = a_replica(engines[1].address, "chat-2", uid=f"uid-{number}")
            first_one = a_replica(engines[0].address, "chat-1", leaving=True)
            known = a_directory(a_model(other, first_one, moves_streams=True))
            gateway.admission.update(known)
            gateway.app.move_streams(known.moved_replicas())
            assert stream.moving is not None
            await stream.moving
            assert set(stream.move_refusals) == {f"uid-{number}"}
        sending.cancel()
