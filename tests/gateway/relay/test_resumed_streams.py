"""Streams whose replica is lost, and that go on at another one."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tessera.domain.gateway.requests import RunningRequest
from tessera.domain.gateway.usage_record import Phase
from tessera.gateway.bodies.memory import Memory
from tessera.gateway.receive.receiver import BodyBounds
from tessera.gateway.relay.relay import MAX_RESUMPTIONS
from tests.gateway.harness import (
    DONE,
    END,
    MODEL,
    ROLE,
    STREAM,
    USAGE,
    EngineCall,
    RunningGateway,
    Script,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    event,
)
from tests.gateway.resumed import (
    RESUMED,
    UNPROTECTED,
    WITH_USAGE,
    breaking,
    data_of,
    events_of,
    going_on,
    in_turn,
    replicas,
    text_of,
    usage_of,
)
from tests.lab.sim.running import SimulatedEngine, running
from world.testing import eventually

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 60
STREAMS = 20
# The prompt and the stream so far are tokenized before it leaves and again when it goes on.
_CALLS_OF_MOVE = 5


# --- against simulated engines


@asynccontextmanager
async def losing(
    engine: SimulatedEngine, places: dict[str, int]
) -> AsyncIterator[tuple[RunningGateway, asyncio.Event, asyncio.Event]]:
    """Run a gateway before a replica that breaks each stream after some of its events.

    The first event is set when all are there; the second lets them break, once another is known.
    """
    reached, may_break, waiting = asyncio.Event(), asyncio.Event(), 0

    async def script(call: EngineCall) -> None:
        nonlocal waiting
        headers = {"x-request-id": call.headers["x-request-id"], "content-type": "application/json"}
        async with engine.http.stream(
            "POST", call.path, content=call.body, headers=headers
        ) as answer:
            await call.begin()
            left = places[call.headers["x-request-id"]]
            async for block in events_of(answer):
                await call.chunk(block)
                left -= 1
                if not left:
                    break
        waiting += 1
        if waiting == len(places):
            reached.set()
        await may_break.wait()
        call.cut()

    async with ScriptedEngine(script) as front:
        lost = a_replica(front.address, "chat-1")
        async with a_gateway(a_directory(a_model(lost))) as gateway:

            async def lose() -> None:
                await reached.wait()
                other = a_replica(engine.url.removeprefix("http://"), "chat-2")
                gateway.admission.update(a_directory(a_model(lost, other)))
                may_break.set()

            task = asyncio.create_task(lose())
            yield gateway, reached, may_break
            await task


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_streams_whose_replica_dies_at_any_token_are_as_if_it_had_not(path: str) -> None:
    # Given: streams, of which some end by themselves, and a place in each where its replica is lost
    chance = random.Random(7)  # noqa: S311 - not for secrets
    bodies: dict[str, Any] = {}
    for number in range(STREAMS):
        question = f"Question {number}: what is {chance.random()}?"
        prompt = (
            {"prompt": question}
            if path == "/v1/completions"
            else {"messages": [{"role": "user", "content": question}]}
        )
        limit = {"max_tokens": 1000} if number % 4 == 0 else {"max_tokens": 60, "ignore_eos": True}
        bodies[f"stream-{number}"] = {"model": MODEL, **prompt, **limit, **WITH_USAGE}
    places = {name: chance.randint(2, 58) for name in bodies}
    async with running("--served-model-name", MODEL) as engine:
        expected = {
            name: (await engine.http.post(path, json=body)).content for name, body in bodies.items()
        }
        # When
        async with losing(engine, places) as (gateway, _, _):

            async def all_are_recorded() -> None:
                assert (len(gateway.records), gateway.held_bytes) == (STREAMS, 0)

            answers = await asyncio.gather(
                *(
                    gateway.post(body, path, **{"x-request-id": name})
                    for name, body in bodies.items()
                )
            )
            await eventually(all_are_recorded)
            records = {record.request_id: record for record in gateway.records}
    # Then: all are complete, and say what they used in all
    assert len(records) == STREAMS
    for name, answer in zip(bodies, answers, strict=True):
        assert answer.headers["x-tessera-resumable"] == "true"
        assert answer.body.endswith(RESUMED + DONE), name
        events, whole = data_of(answer.body), data_of(expected[name])
        assert text_of(events) == text_of(whole)
        assert usage_of(events) == usage_of(whole)
        assert len({(each["id"], each["created"], each["model"]) for each in events}) == 1
        reasons = [choice["finish_reason"] for each in events for choice in each["choices"]]
        assert reasons[-1] in ("length", "stop")
        assert not any(reasons[:-1])
        roles = [each for each in events for choice in each["choices"] if "role" in str(choice)]
        assert len(roles) == (path == "/v1/chat/completions")
        # One record has the tokens of both replicas once.
        record, usage = records[name], usage_of(whole)
        assert (record.phase, record.replica, record.resumed) == (Phase.COMPLETED, "chat-2", 1)
        assert record.input_tokens == usage["prompt_tokens"]
        assert record.output_tokens == usage["completion_tokens"]
        assert (record.estimated, record.unchecked_joints) == (False, 0)


async def test_a_stream_whose_engine_crashes_goes_on() -> None:
    body = {**STREAM, "max_tokens": 3000, "ignore_eos": True, **WITH_USAGE}
    async with (
        running("--served-model-name", MODEL) as first,
        running("--served-model-name", MODEL) as second,
    ):
        expected = data_of((await second.http.post("/v1/chat/completions", json=body)).content)
        lost, other = (
            a_replica(engine.url.removeprefix("http://"), f"chat-{number}")
            for number, engine in enumerate((first, second))
        )
        async with a_gateway(a_directory(a_model(lost))) as gateway:
            sending = asyncio.create_task(gateway.post(body))

            async def is_under_way() -> None:
                requests, _ = gateway.app.running(1)
                assert sum(each.output_tokens for each in requests) > 5

            await eventually(is_under_way)
            gateway.admission.update(a_directory(a_model(lost, other)))
            await first.http.post("/sim/crash")
            answer = await sending
            record = await gateway.record()
    assert answer.body.endswith(RESUMED + DONE)
    assert text_of(data_of(answer.body)) == text_of(expected)
    assert (record.resumed, record.output_tokens) == (1, 3000)


# --- what the next engine is asked for


async def test_the_next_engine_gets_the_text_so_far_as_the_beginning_of_the_turn() -> None:
    body = {**STREAM, "max_tokens": 10, "min_tokens": 4, "tools": [], "tool_choice": "auto"}
    first = breaking(ROLE, a_delta(" word"), a_delta(" two"))
    async with replicas(first, going_on(ROLE, a_delta(" three"), END, USAGE, DONE)) as (
        gateway,
        engines,
    ):
        answer = await gateway.post(body, **{"x-request-id": "r-1"})
        record = await gateway.record()
    prompt, continued, request = engines[1].calls
    assert answer.body == (
        ROLE + a_delta(" word") + a_delta(" two") + a_delta(" three") + END + RESUMED + DONE
    )
    turn = {"role": "assistant", "content": " word two"}
    assert (prompt.path, prompt.json["messages"]) == ("/tokenize", STREAM["messages"])
    for call in (continued, request):
        assert call.json["messages"][:-1] == STREAM["messages"]
        assert call.json["messages"][-1] == turn
        assert call.json["continue_final_message"] is True
        assert call.json["add_generation_prompt"] is False
        assert call.headers["x-request-id"] == "r-1"
    # Two events had two tokens at least.
    assert (request.json["max_tokens"], request.json["min_tokens"]) == (8, 2)
    # Of the 7 tokens of its prompt, 2 were the answer's: the engine itself made 3 more.
    assert (record.input_tokens, record.output_tokens) == (5, 5)
    assert (record.request_id, record.cached_tokens, record.estimated) == ("r-1", 0, False)


async def test_space_at_the_end_of_a_turn_that_templates_cut_is_not_repeated() -> None:
    first = breaking(ROLE, a_delta(" word"), a_delta("\n"), a_delta("\n"))
    rest = a_delta("\n"), a_delta("\n  two"), a_delta("\n")
    async with replicas(first, going_on(ROLE, *rest, END, USAGE, DONE)) as (gateway, engines):
        answer = await gateway.post({**STREAM, "max_tokens": 9})
        record = await gateway.record()
    request = engines[1].calls[-1].json
    assert request["messages"][-1]["content"] == " word"
    assert text_of(data_of(answer.body)) == " word\n\n  two\n"
    # The engine generates the space again, and counts it.
    assert request["max_tokens"] == 8
    assert (record.input_tokens, record.output_tokens) == (6, 4)


async def test_a_completion_of_token_ids_goes_on_by_its_token_ids() -> None:
    def piece(text: str, *ids: int) -> bytes:
        choice = {"index": 0, "text": text, "token_ids": ids, "finish_reason": None}
        return event({"id": "cmpl-1", "created": 1, "model": MODEL, "choices": [choice]})

    end = event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}], "id": "x"})
    body = {"model": MODEL, "prompt": [5, 6], "stream": True, "return_token_ids": True}
    first = breaking(piece("a", 1), piece("bc", 2, 3))
    async with replicas(first, going_on(piece("d", 4), end, USAGE, DONE)) as (gateway, engines):
        answer = await gateway.post(body, "/v1/completions")
    (request,) = engines[1].calls
    assert request.json["prompt"] == [5, 6, 1, 2, 3]
    # Without `max_tokens` there are 16.
    assert request.json["max_tokens"] == 13
    assert text_of(data_of(answer.body)) == "abcd"
    assert b'"id":"x"' not in answer.body


async def test_an_engine_that_does_not_tokenize_goes_on_unchecked() -> None:
    async def script(call: EngineCall) -> None:
        if call.path == "/tokenize":
            await call.whole({"error": {"message": "Not Found"}}, status=404)
        else:
            await call.stream(ROLE, a_delta(" two"), END, USAGE, DONE)

    async with replicas(breaking(ROLE, a_delta(" word")), script) as (gateway, engines):
        answer = await gateway.post({**STREAM, "max_tokens": 5})
        record = await gateway.record()
    assert answer.body.endswith(RESUMED + DONE)
    assert engines[1].calls[-1].json["max_tokens"] == 4
    assert (record.resumed, record.unchecked_joints, record.estimated) == (1, 1, True)


async def test_tokens_that_an_engine_counts_take_room_like_all_else() -> None:
    lost, memory = breaking(ROLE, a_delta(" word")), Memory(60_000)
    rest = going_on(ROLE, a_delta(" two"), END, USAGE, DONE, prompt=20_000, begun=20_001)
    async with replicas(lost, rest, memory=memory) as (gateway, _):
        answer = await gateway.post({**STREAM, "max_tokens": 5})
        record = await gateway.record()
        assert gateway.held_bytes == 0
    assert answer.body.endswith(RESUMED + DONE)
    assert (record.resumed, record.unchecked_joints) == (1, 1)


async def test_two_losses_in_a_row_and_the_client_reads_one_stream() -> None:
    first, second, third = a_delta(" word"), a_delta(" two"), a_delta(" three")
    asked: list[Any] = []
    script = in_turn(
        asked,
        breaking(ROLE, first),
        breaking(ROLE, second),
        going_on(ROLE, third, END, USAGE, DONE),
    )
    async with replicas(script, script, script) as (gateway, _):
        answer = await gateway.post(STREAM)
        record = await gateway.record()
    assert answer.body == ROLE + first + second + third + END + b": x-tessera-resumed: 2\n\n" + DONE
    assert asked[-1]["messages"][-1]["content"] == " word two"
    assert record.resumed == 2


async def test_after_three_tries_the_client_gets_the_error() -> None:
    asked: list[Any] = []
    script = in_turn(asked, *[breaking(ROLE, a_delta())] * 5)
    async with replicas(*[script] * 5) as (gateway, _):
        answer = await gateway.post(STREAM)
        record = await gateway.record()
    assert len(asked) == 4
    assert b"stream_broken" in answer.body
    assert not answer.body.endswith(DONE)
    assert (record.phase, record.resumed) == (Phase.FAILED, 3)


async def test_a_request_that_kills_engines_at_once_kills_three_at_most() -> None:
    async def die(call: EngineCall) -> None:
        call.cut()

    asked: list[Any] = []
    script = in_turn(asked, breaking(ROLE, a_delta()), die, die, die)
    async with replicas(*[script] * 4) as (gateway, _):
        answer = await gateway.post(STREAM)
    assert len(asked) == 3
    assert b"stream_broken" in answer.body
    # It is the error of the first loss.
    assert b"chat-1" in answer.body


# --- what is not resumed


@pytest.mark.parametrize("engines", [("a", "b"), ("a", "")])
async def test_a_replica_with_another_model_does_not_go_on(engines: Sequence[str]) -> None:
    other = going_on(ROLE, a_delta(), END, USAGE, DONE)
    async with replicas(breaking(ROLE, a_delta()), other, engines=engines) as (gateway, servers):
        answer = await gateway.post(STREAM)
    assert answer.body.startswith(ROLE + a_delta() + b"data: ")
    assert b"stream_broken" in answer.body
    assert not servers[1].calls


async def test_an_engine_that_reads_another_prompt_does_not_go_on() -> None:
    async def script(call: EngineCall) -> None:
        assert call.path == "/tokenize"
        tokens = [9, 2, 3] if call.json.get("continue_final_message") else [1, 2]
        await call.whole({"count": len(tokens), "tokens": tokens, "max_model_len": 99})

    async with replicas(breaking(ROLE, a_delta()), script) as (gateway, engines):
        answer = await gateway.post(STREAM)
    assert b"stream_broken" in answer.body
    assert len(engines[1].calls) == 2


@pytest.mark.parametrize(
    "part",
    [
        b'data: {"choices":[{"index":0,"delta":{"content":"\xff"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"\\x"}}]}\n\n',
        b'data: {"choices":[{"index":1,"delta":{"content":"other"}}]}\n\n',
        b'data: {"choices":' + b"[" * 5000 + b"]" * 5000 + b"}\n\n",
    ],
)
async def test_a_stream_that_cannot_be_read_ends_with_the_error(part: bytes) -> None:
    other = going_on(ROLE, a_delta(), END, USAGE, DONE)
    async with replicas(breaking(ROLE, a_delta(), part), other) as (gateway, engines):
        answer = await gateway.post(STREAM)
    assert answer.body.startswith(ROLE + a_delta() + part + b"data: ")
    assert b"stream_broken" in answer.body
    assert not engines[1].calls


@pytest.mark.parametrize("refusal", [400, 404])
async def test_an_engine_that_refuses_to_go_on_leaves_the_first_error(refusal: int) -> None:
    async def script(call: EngineCall) -> None:
        if call.path == "/tokenize":
            await going_on(DONE)(call)
        else:
            await call.whole({"error": {"message": "no such thing"}}, status=refusal)

    async with replicas(breaking(ROLE, a_delta()), script) as (gateway, _):
        answer = await gateway.post(STREAM)
        record = await gateway.record()
    assert b"stream_broken" in answer.body
    assert b"no such thing" not in answer.body
    assert (record.phase, record.resumed, record.reason) == (Phase.FAILED, 0, "StreamBroken")


# --- what says before that it is not protected


@pytest.mark.parametrize(
    "changes",
    [
        {"logprobs": True},
        {"n": 2},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a"}},
        {"guided_json": {}},
        {"tool_choice": "required"},
        {"messages": [{"role": "user", "content": "x" * 2**18}]},
    ],
)
async def test_a_stream_that_cannot_go_on_says_so_in_its_header(changes: Any) -> None:
    other = going_on(ROLE, a_delta(), END, USAGE, DONE)
    async with replicas(breaking(ROLE, a_delta()), other) as (gateway, engines):
        answer = await gateway.post({**STREAM, **changes})
    assert answer.headers["x-tessera-resumable"] == "false"
    assert b"stream_broken" in answer.body
    assert not engines[1].calls


async def test_a_stream_that_begins_with_reasoning_says_so_in_its_header() -> None:
    reasoning = event({"choices": [{"index": 0, "delta": {"reasoning": "let me see"}}]})
    async with replicas(breaking(ROLE, reasoning), going_on(DONE)) as (gateway, _):
        answer = await gateway.post(STREAM)
    assert answer.headers["x-tessera-resumable"] == "false"
    assert b"stream_broken" in answer.body


async def test_a_stream_says_so_when_a_call_of_a_tool_begins() -> None:
    function = {"name": "f", "arguments": '{"a'}
    call = event({"choices": [{"index": 0, "delta": {"tool_calls": [{"function": function}]}}]})

    async def script(engine_call: EngineCall) -> None:
        await engine_call.begin()
        await engine_call.chunk(ROLE + a_delta())
        await gateway.wait_for_tokens(1)
        await engine_call.chunk(call)
        engine_call.cut()

    async with replicas(script, going_on(DONE)) as (gateway, engines):
        answer = await gateway.post({**STREAM, "tools": [{"type": "function"}]})
    assert answer.headers["x-tessera-resumable"] == "true"
    assert answer.body.startswith(ROLE + a_delta() + UNPROTECTED + call)
    assert b"stream_broken" in answer.body
    assert not engines[1].calls


# --- bounds


async def test_an_endless_stream_is_not_protected_for_ever() -> None:
    part = a_delta("x" * 10_000) * 5

    async def script(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE)
        for _ in range(60):
            await call.chunk(part)
        call.cut()

    async with replicas(script, going_on(DONE)) as (gateway, engines):
        answer = await gateway.post(STREAM)
        await gateway.wait_for_held_bytes(0, 0)
    assert answer.body.count(UNPROTECTED) == 1
    assert b"stream_broken" in answer.body
    assert not engines[1].calls


async def test_where_memory_is_short_a_stream_loses_its_protection_and_goes_on() -> None:
    memory, release = Memory(60_000), asyncio.Event()

    async def script(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta())
        await release.wait()
        await call.chunk(a_delta(" two") + END + USAGE + DONE)
        await call.finish()

    body = {**STREAM, "messages": [{"role": "user", "content": "x" * 20_000}]}
    async with replicas(script, script, memory=memory) as (gateway, _):
        first = asyncio.create_task(gateway.post(body))

        async def both_decode() -> None:
            assert [str(each.phase) for each in gateway.app.running(9)[0]] == ["Decode"] * 2

        await gateway.wait_for_held_bytes(20_001, 24_999)
        second = asyncio.create_task(gateway.post(body))
        await eventually(both_decode)
        release.set()
        answers = await asyncio.gather(first, second)
        await gateway.wait_for_held_bytes(0, 0)
    lost = [UNPROTECTED in answer.body for answer in answers]
    assert lost == [True, False]
    assert all(answer.body.endswith(END + DONE) for answer in answers)


# --- the end of a stream


async def test_a_loss_after_the_reason_of_the_end_is_none() -> None:
    async with replicas(breaking(ROLE, a_delta(), END), going_on(DONE)) as (gateway, engines):
        answer = await gateway.post(STREAM)
        record = await gateway.record()
    assert answer.body == ROLE + a_delta() + END + DONE
    assert not engines[1].calls
    assert (record.phase, record.resumed, record.estimated) == (Phase.COMPLETED, 0, True)


async def test_a_loss_after_the_last_token_ends_the_stream_without_an_engine() -> None:
    body = {**STREAM, "max_tokens": 2, "stream_options": {"include_usage": True}}
    async with replicas(breaking(ROLE, a_delta(), a_delta()), going_on(DONE)) as (
        gateway,
        engines,
    ):
        answer = await gateway.post(body)
        record = await gateway.record()
    assert [call.path for call in engines[1].calls] == ["/tokenize", "/tokenize"]
    events = data_of(answer.body)
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    usage = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    assert events[-1]["usage"] == usage
    assert answer.body.endswith(DONE)
    assert (record.phase, record.input_tokens, record.output_tokens) == (Phase.COMPLETED, 4, 2)


# --- around it


async def test_a_client_that_leaves_while_its_stream_is_resumed_ends_it() -> None:
    tokenized = asyncio.Event()

    async def script(call: EngineCall) -> None:
        tokenized.set()
        await call.gone.wait()

    async with replicas(breaking(ROLE, a_delta()), script) as (gateway, engines):
        sending = asyncio.create_task(gateway.post(STREAM))
        async with asyncio.timeout(WAIT_SECONDS):
            await tokenized.wait()
            sending.cancel()
            record = await gateway.record()
            await engines[1].calls[0].gone.wait()
        assert gateway.held_bytes == 0
    assert (record.phase, record.reason, record.resumed) == (Phase.ABORTED, "ClientGone", 0)


async def test_comments_come_while_a_stream_waits_for_its_next_engine() -> None:
    release = asyncio.Event()

    async def script(call: EngineCall) -> None:
        if call.path == "/tokenize":
            await going_on(DONE)(call)
            return
        await release.wait()
        await call.stream(ROLE, a_delta(" two"), END, USAGE, DONE)

    bounds = BodyBounds(heartbeat_seconds=0.02)
    async with (
        replicas(breaking(ROLE, a_delta()), script, bounds=bounds) as (gateway, _),
        gateway.client.post(f"{gateway.url}/v1/chat/completions", json=STREAM) as response,
    ):
        assert await response.content.readuntil(b" word") != b""
        await response.content.readuntil(b": waiting\n\n")
        release.set()
        rest = await response.content.read()
    assert rest.replace(b": waiting\n\n", b"") == a_delta(" two") + END + RESUMED + DONE


async def test_the_pause_is_a_late_gap() -> None:
    other = going_on(ROLE, a_delta(" two"), END, USAGE, DONE)
    async with replicas(breaking(ROLE, a_delta()), other) as (gateway, engines):
        known = [a_replica(each.address, f"chat-{i}") for i, each in enumerate(engines, start=1)]
        model = a_model(*known[::-1], itl_seconds=0.0)
        gateway.admission.update(a_directory(model))
        await gateway.post(STREAM)
        record = await gateway.record()
    assert record.latency is not None
    # The token after the pause, and the end, which counts like one and came with it.
    assert (record.latency.gaps, record.latency.late_gaps) == (2, 1)


async def test_a_stream_leaves_a_replica_that_the_directory_does_not_have_any_more() -> None:
    async def hang(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta())
        await call.gone.wait()

    other = going_on(ROLE, a_delta(" two"), END, USAGE, DONE)
    async with replicas(hang, other, idle_seconds=3600) as (gateway, engines):
        sending = asyncio.create_task(gateway.post(STREAM))
        await gateway.wait_for_tokens(1)
        rest = a_model(a_replica(engines[1].address, "chat-2"))
        changes = gateway.admission.update(a_directory(rest))
        gateway.app.leave_replicas(changes.removed_replicas)
        answer = await sending
    assert answer.body == ROLE + a_delta() + a_delta(" two") + END + RESUMED + DONE


async def test_a_stream_stays_at_a_replica_that_has_no_other_beside_it() -> None:
    release = asyncio.Event()

    async def script(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta())
        await release.wait()
        await call.chunk(END + USAGE + DONE)
        await call.finish()

    async with replicas(script) as (gateway, _):
        sending = asyncio.create_task(gateway.post(STREAM))
        async with asyncio.timeout(WAIT_SECONDS):
            await gateway.wait_for_tokens(1)
            changes = gateway.admission.update(a_directory(a_model()))
            gateway.app.leave_replicas(changes.removed_replicas)
            release.set()
            answer = await sending
    assert answer.body == ROLE + a_delta() + END + DONE


@pytest.mark.parametrize(
    ("prompt", "moves", "body", "is_moved"),
    [
        (4, True, STREAM, True),
        # The other engine reads another prompt.
        (6, True, STREAM, False),
        (4, False, STREAM, False),
        (4, True, STREAM | {"logprobs": True}, False),
    ],
    ids=["moved", "another prompt", "not asked for", "not protected"],
)
async def test_a_stream_is_moved_from_a_replica_that_leaves_if_another_one_can_go_on(
    prompt: int, moves: bool, body: Any, is_moved: bool
) -> None:
    release, asked = asyncio.Event(), asyncio.Event()
    other = going_on(ROLE, a_delta(" two"), END, USAGE, DONE, prompt=prompt)

    async def first(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta())
        await asyncio.wait(
            [asyncio.create_task(each.wait()) for each in (release, call.gone)],
            return_when=asyncio.FIRST_COMPLETED,
        )
        await call.chunk(a_delta(" one") + END + USAGE + DONE)
        await call.finish()

    async def second(call: EngineCall) -> None:
        await other(call)
        asked.set()

    async with replicas(first, second) as (gateway, engines):
        sending = asyncio.create_task(gateway.post(body))
        await gateway.wait_for_tokens(1)
        leaving = a_replica(engines[0].address, "chat-1", leaving=True)
        model = a_model(a_replica(engines[1].address, "chat-2"), leaving, moves_streams=moves)
        directory = a_directory(model)
        gateway.admission.update(directory)
        gateway.app.move_streams(directory.moved_replicas())
        if not is_moved:
            if prompt != 4:
                await asked.wait()
            release.set()
        answer = await sending
        record = await gateway.record()
        health = [state.health.failures for state in gateway.admission.replicas.states(model)]
    assert record.resumed == is_moved
    assert text_of(data_of(answer.body)) == (" word two" if is_moved else " word one")
    assert health == [0, 0]


async def test_an_engine_that_did_not_say_how_it_reads_a_stream_is_asked_again() -> None:
    rest, asked = going_on(ROLE, a_delta(" two"), END, USAGE, DONE), 0

    async def first(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta())
        await call.gone.wait()

    async def second(call: EngineCall) -> None:
        nonlocal asked
        asked += 1
        await (busy(call) if asked == 1 else rest(call))

    async def is_moved() -> None:
        gateway.app.move_streams(directory.moved_replicas())
        assert sending.done()

    async with replicas(first, second) as (gateway, engines):
        sending = asyncio.create_task(gateway.post(STREAM))
        await gateway.wait_for_tokens(1)
        leaving = a_replica(engines[0].address, "chat-1", leaving=True)
        model = a_model(a_replica(engines[1].address, "chat-2"), leaving, moves_streams=True)
        directory = a_directory(model)
        gateway.admission.update(directory)
        await eventually(is_moved)
        answer = await sending
    assert text_of(data_of(answer.body)) == " word two"
    assert asked > 1


async def busy(call: EngineCall) -> None:
    await call.whole({}, 503)


@pytest.mark.parametrize(
    ("others", "before"),
    [
        (1, [busy]),
        (MAX_RESUMPTIONS + 1, [breaking(ROLE, a_delta(" word"))] * MAX_RESUMPTIONS),
    ],
    ids=["all others were tried", "it went on three times"],
)
async def test_a_stream_that_could_not_go_on_stays_at_a_replica_that_leaves(
    others: int, before: list[Script]
) -> None:
    release = asyncio.Event()

    async def last(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta(" last"))
        await asyncio.wait(
            [asyncio.create_task(each.wait()) for each in (release, call.gone)],
            return_when=asyncio.FIRST_COMPLETED,
        )
        await call.chunk(END + USAGE + DONE)
        await call.finish()

    asked: list[Any] = []
    script = in_turn(asked, *before, last)

    async def is_at_the_last() -> RunningRequest:
        requests, _ = gateway.app.running(1)
        assert (len(asked), [each.output_tokens for each in requests]) == (
            len(before) + 1,
            [tokens],
        )
        return requests[0]

    tokens = before.count(before[0]) * (before[0] is not busy) + 1
    async with replicas(*[script] * (others + 1)) as (gateway, engines):
        sending = asyncio.create_task(gateway.post(STREAM))
        request = await eventually(is_at_the_last)
        known = [
            a_replica(engine.address, name, leaving=request.replica == name)
            for number, engine in enumerate(engines, start=1)
            for name in [f"chat-{number}"]
        ]
        assert [replica.leaving for replica in known].count(True) == 1
        directory = a_directory(a_model(*known, moves_streams=True))
        gateway.admission.update(directory)
        gateway.app.move_streams(directory.moved_replicas())
        gateway.app.leave_replicas(directory.moved_replicas())
        release.set()
        answer = await sending
    assert text_of(data_of(answer.body)).endswith(" last")
    assert answer.body.endswith(DONE)


@pytest.mark.parametrize(("places", "resumed"), [(1, 0), (2, 1)])
async def test_a_stream_is_moved_where_a_place_is_free(places: int, resumed: int) -> None:
    release, rest = asyncio.Event(), going_on(ROLE, a_delta(" two"), END, USAGE, DONE)

    async def script(call: EngineCall) -> None:
        if call.path == "/tokenize" or call.json["messages"] != STREAM["messages"]:
            await rest(call)
            return
        await call.begin()
        await call.chunk(ROLE + a_delta())
        await asyncio.wait(
            [asyncio.create_task(each.wait()) for each in (release, call.gone)],
            return_when=asyncio.FIRST_COMPLETED,
        )
        await call.chunk(END + USAGE + DONE)
        await call.finish()

    async def both_have_begun() -> None:
        assert [each.output_tokens for each in gateway.app.running(2)[0]] == [1, 1]

    async def are_resumed() -> None:
        calls = [len(engine.calls) for engine in engines]
        assert sum(calls) == 2 + _CALLS_OF_MOVE * resumed, calls

    async with replicas(script, script) as (gateway, engines):
        sending = [asyncio.create_task(gateway.post(STREAM)) for _ in range(2)]
        await eventually(both_have_begun)
        assert [len(engine.calls) for engine in engines] == [1, 1]
        full = a_replica(engines[0].address, "chat-1", max_num_seqs=places)
        leaving = a_replica(engines[1].address, "chat-2", leaving=True)
        directory = a_directory(a_model(full, leaving, moves_streams=True))
        gateway.admission.update(directory)
        gateway.app.move_streams(directory.moved_replicas())
        await eventually(are_resumed)
        release.set()
        answers = await asyncio.gather(*sending)
    assert sum(answer.body.endswith(RESUMED + DONE) for answer in answers) == resumed
    assert all(answer.body.endswith(DONE) for answer in answers)


async def test_a_client_that_reads_slowly_gets_all_of_a_stream_that_is_resumed() -> None:
    large = a_delta("x" * 50_000)

    async def first(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE)
        for _ in range(10):
            await call.chunk(large)
        call.cut()

    other = going_on(ROLE, *[large] * 10, END, USAGE, DONE)
    async with (
        replicas(first, other) as (gateway, engines),
        gateway.client.post(f"{gateway.url}/v1/chat/completions", json=STREAM) as response,
    ):
        # Nothing is read until the second engine has been asked.
        async def is_asked() -> None:
            assert len(engines[1].calls) == 3

        await eventually(is_asked)
        body = await response.content.read()
    assert body == ROLE + large * 20 + END + RESUMED + DONE
