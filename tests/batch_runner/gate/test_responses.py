"""Responses of engines that break the rules of the stream, or have no end."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import web

from tessera.batch_runner.gate import responses
from tessera.batch_runner.gate.asking import AskOptions, PromptAsker, QuestionKey
from tessera.batch_runner.gate.responses import PromptTask
from tessera.batch_runner.gate.scorers import MAX_ANSWER_BYTES, ModelAnswer, ToolCall
from tessera.batch_runner.gate.suite import SuiteRow
from tests.batch_runner.gate.scripted_engine import Script, serve_engine

ROW = SuiteRow(messages=[{"role": "user", "content": "Hi"}], scorer="exact", expected="Hi")


async def answer_to(script: Script, row: SuiteRow = ROW, task: PromptTask = "chat") -> ModelAnswer:
    async with serve_engine(script) as engine:
        options = AskOptions(url=engine.url, model="tiny", task=task, retries=0)
        async with PromptAsker(options) as asker:
            answer = await asker.ask(row, QuestionKey("line-1", 0, 0))
    assert answer is not None
    return answer


def a_stream(*chunks: bytes) -> web.Response:
    return web.Response(body=b"".join(chunks), content_type="text/event-stream")


def an_event(**fields: Any) -> bytes:
    return b"data: %s\r\n\r\n" % json.dumps(fields).encode()


def a_delta(content: Any, reason: str | None = None, **more: Any) -> bytes:
    return an_event(choices=[{"delta": {"content": content, **more}, "finish_reason": reason}])


def test_a_cap_of_output_reduces_the_longest_answer_as_gateways_do() -> None:
    key, row = QuestionKey("line-1", 0, 0), ROW.model_copy(update={"max_tokens": 100})
    lengths = [
        json.loads(AskOptions(url="", model="tiny", max_output_tokens=most).body(row, key))
        for most in (None, 64, 200)
    ]
    assert [each["max_tokens"] for each in lengths] == [100, 64, 100]


async def test_tokens_and_times_of_a_stream_are_counted() -> None:
    answer = await answer_to(lambda _: "one two three")
    assert (answer.text, answer.output_tokens, answer.finish_reason) == ("one two three", 3, "stop")
    assert answer.ttft_seconds is not None
    assert len(answer.gaps) == 2


async def test_an_answer_without_end_is_cut_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    long = a_delta("x" * 100_000)
    answer = await answer_to(lambda _: a_stream(*[long] * 20))
    # A comparison of such texts would take minutes.
    length = len(answer.text)
    assert (answer.finish_reason, answer.is_refused, length) == ("length", False, MAX_ANSWER_BYTES)
    no_lines = b"x" * (responses._MAX_EVENT_BYTES + 100_000)
    refused = (await answer_to(lambda _: a_stream(no_lines))).is_refused
    assert refused
    monkeypatch.setattr(responses, "_MAX_RESPONSE_BYTES", 200_000)
    silent = b": still there\n" * 20_000
    assert (await answer_to(lambda _: a_stream(silent, a_delta("Hi", "stop")))).is_refused


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"\xff",
        b'{"choices": 3}',
        b'{"choices": [{"message": []}]}',
        b'{"error": {"message": "no"}}',
    ],
)
async def test_what_is_no_answer_is_refused(body: bytes) -> None:
    def script(_: Mapping[str, Any]) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    assert (await answer_to(script)).is_refused


async def test_fields_of_other_types_and_events_that_are_no_json_are_left_out() -> None:
    chunks = (
        *(b"data: {\n\n", b"event: ping\n\n", b"data: [1]\n\n", a_delta(7), a_delta(None)),
        *(a_delta("H"), a_delta("i \ud83d", tool_calls=[None, {"index": "x", "function": {}}])),
        an_event(choices=[{"delta": {}, "finish_reason": "stop"}]),
        an_event(choices=[], usage={"completion_tokens": -4}),
    )
    answer = await answer_to(lambda _: a_stream(*chunks))
    assert (answer.text, answer.tool_calls, answer.output_tokens) == ("Hi ?", (), 2)


async def test_a_tool_call_is_joined_from_its_parts_and_a_refusal_is_one() -> None:
    parts = [
        {"index": 0, "function": {"name": "weather", "arguments": '{"city"'}},
        {"index": 0, "function": {"arguments": ': "Bern"}'}},
    ]
    calls = [a_delta(None, tool_calls=[part]) for part in parts]
    answer = await answer_to(lambda _: a_stream(*calls, a_delta(None, "tool_calls")))
    assert answer.tool_calls == (ToolCall(name="weather", arguments='{"city": "Bern"}'),)
    said = a_delta(None, refusal="I cannot"), a_delta(None, "stop")
    assert (await answer_to(lambda _: a_stream(*said))).is_refused


async def test_probabilities_of_the_first_token_are_read_where_they_are_numbers() -> None:
    listed = [
        {"token": "A", "logprob": -0.5},
        {"token": "B", "logprob": "x"},
        {"token": 3, "logprob": -1},
        None,
    ]
    row = SuiteRow(
        messages=ROW.messages, scorer="choice", expected={"choices": ["A", "B"], "answer": "A"}
    )
    asked: list[Mapping[str, Any]] = []

    def script(body: Mapping[str, Any]) -> Any:
        asked.append(body)
        return {"content": "A", "logprobs": {"content": [{"top_logprobs": listed}]}}

    answer = await answer_to(script, row)
    assert answer.logprobs == {"A": -0.5}
    assert (asked[0]["max_tokens"], asked[0]["logprobs"]) == (1, True)


@pytest.mark.parametrize(
    "fields",
    [
        {"data": [{"index": 0, "embedding": ["x"]}]},
        {"data": [{"index": 1, "embedding": [1.0]}]},
        {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}]},
        {"data": 3},
    ],
)
async def test_vectors_that_are_none_rank_nothing(fields: Mapping[str, Any]) -> None:
    row = SuiteRow(query="q", documents=["a", "b"], scorer="ranking", expected=[0])
    assert (await answer_to(lambda _: fields, row, "embed")).is_empty
