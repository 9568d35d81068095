"""What a priced stream ends with, in the words of each path."""

import json
from typing import Any

import pytest

from tessera.gateway.http.cut_streams import CutUsage, passed_events, with_cost
from tessera.gateway.http.sse import event_data, split_events
from tessera.gateway.paths import PATHS
from tests.gateway.course.paths import stream_of
from tests.gateway.harness import DONE

USAGE = CutUsage(7, 20, "0.00021")
STREAMING = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]


def cut(path: str, *events: bytes, choices: int = 1, usage: CutUsage | None = USAGE) -> list[Any]:
    stream_format = PATHS[path].stream
    assert stream_format is not None
    passed = passed_events(stream_format, choices)
    for each in events:
        passed.add(each)
    end = passed.cut("BudgetExceeded", usage)
    datas = map(event_data, split_events(end))
    return [data if data == b"[DONE]" else json.loads(data) for data in datas]


def cut_begun(path: str, **changes: Any) -> list[Any]:
    before, words, _ = stream_of(path)
    return cut(path, b"".join([*before, words[0]]), words[1], **changes)


def test_a_chat_ends_by_its_length_with_its_usage() -> None:
    finish, usage, done = cut_begun("/v1/chat/completions")
    assert finish["choices"] == [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    ]
    assert usage["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 20,
        "total_tokens": 27,
        "cost": 0.00021,
    }
    assert (usage["choices"], usage["model"], usage["id"]) == ([], "chat", "chatcmpl-0")
    assert [each["x_tessera_reason"] for each in (finish, usage)] == ["BudgetExceeded"] * 2
    assert done == b"[DONE]"


def test_each_choice_of_a_completion_ends() -> None:
    finish, done = cut_begun("/v1/completions", choices=3, usage=None)
    assert [(each["index"], each["text"]) for each in finish["choices"]] == [
        (0, ""),
        (1, ""),
        (2, ""),
    ]
    assert done == b"[DONE]"


def test_a_response_is_incomplete_as_it_began() -> None:
    [last] = cut_begun("/v1/responses")
    assert (last["type"], last["x_tessera_reason"]) == ("response.incomplete", "BudgetExceeded")
    assert last["response"] == {
        "id": "resp-0",
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "usage": {"input_tokens": 7, "output_tokens": 20, "total_tokens": 27, "cost": 0.00021},
    }


def named(name: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (
        name.encode(),
        json.dumps({"type": name, **fields}, separators=(",", ":")).encode(),
    )


def output(name: str, index: int, **fields: Any) -> bytes:
    return named(f"response.{name}", output_index=index, **fields)


CREATED = named("response.created", sequence_number=0, response={"id": "resp-0", "output": []})
THOUGHT = {"type": "reasoning", "id": "rs-0", "content": [{"type": "reasoning_text", "text": "hm"}]}
MESSAGE = {"type": "message", "id": "msg-0", "status": "in_progress", "content": []}
CALL = {"type": "function_call", "id": "fc-0", "call_id": "c", "name": "f", "arguments": ""}
PART = {"type": "output_text", "text": "", "annotations": []}


def test_items_of_a_response_that_are_done_stay_as_they_are() -> None:
    [last] = cut(
        "/v1/responses",
        CREATED,
        output("output_item.added", 0, item={**THOUGHT, "content": []}),
        output("reasoning_text.delta", 0, content_index=0, delta="h"),
        output("output_item.done", 0, item=THOUGHT),
    )
    assert last["response"]["output"] == [THOUGHT]
    assert (last["response"]["id"], last["sequence_number"]) == ("resp-0", 1)


def test_what_is_open_of_a_response_is_done_before_its_end() -> None:
    events = cut(
        "/v1/responses",
        CREATED,
        output("output_item.added", 1, item=MESSAGE),
        output("content_part.added", 1, content_index=0, part=PART),
        output("output_text.delta", 1, content_index=0, delta='a "wo'),
        output("output_text.delta", 1, content_index=0, delta="rd\u00e9\n", sequence_number=9),
        output("output_item.added", 2, item=CALL),
        output("function_call_arguments.delta", 2, delta='{"x":'),
    )
    part = {**PART, "text": 'a "wordé\n'}
    message = {**MESSAGE, "status": "incomplete", "content": [part]}
    call = {**CALL, "status": "incomplete", "arguments": '{"x":'}
    assert [
        (each["type"].removeprefix("response."), each["sequence_number"]) for each in events
    ] == [
        ("output_text.done", 10),
        ("content_part.done", 11),
        ("output_item.done", 12),
        ("function_call_arguments.done", 13),
        ("output_item.done", 14),
        ("incomplete", 15),
    ]
    text_done, part_done, message_done, arguments_done, call_done, last = events
    place = {"output_index": 1, "item_id": "msg-0", "content_index": 0}
    assert all(place.items() <= each.items() for each in (text_done, part_done))
    assert (text_done["text"], text_done["logprobs"]) == (part["text"], [])
    assert part_done["part"] == part
    assert arguments_done["arguments"] == '{"x":'
    assert [message_done["item"], call_done["item"]] == [message, call]
    assert last["response"]["output"] == [message, call]


def test_parts_of_an_item_end_once_and_unannounced_ones_are_in_it() -> None:
    events = cut(
        "/v1/responses",
        output("output_item.added", 0, item={"type": "reasoning", "id": "rs-0", "summary": []}),
        output("reasoning_summary_text.delta", 0, summary_index=0, delta="so"),
        output("reasoning_summary_text.done", 0, summary_index=0, text="so"),
        output("reasoning_text.delta", 0, content_index=0, delta="h"),
    )
    assert [each["type"] for each in events] == [
        "response.reasoning_text.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert events[1]["item"] == {
        "type": "reasoning",
        "id": "rs-0",
        "status": "incomplete",
        "summary": [{"type": "summary_text", "text": "so"}],
        "content": [{"type": "reasoning_text", "text": "h"}],
    }


def test_of_a_long_response_little_more_than_its_text_is_kept() -> None:
    stream_format = PATHS["/v1/responses"].stream
    assert stream_format is not None
    passed = passed_events(stream_format, 1)
    size = passed.add(CREATED + output("output_item.added", 0, item=MESSAGE))
    word = output("output_text.delta", 0, content_index=0, item_id="m" * 100, delta="words")
    for _ in range(100):
        size += passed.add(word * 100)
        assert 0 < size < 2**16 + 100 * len(word) + 50_000 + 2_000
    end = passed.cut("BudgetExceeded", None)
    last = json.loads(event_data(split_events(end)[-1]))
    assert last["response"]["output"][0]["content"][0]["text"] == "words" * 10_000


def test_a_message_stops_at_its_maximum() -> None:
    last = b'event: content_block_delta\ndata: {"index":2,"delta":{"text":"a"}}\n\n'
    block, delta, stop = cut("/v1/messages", b"", last)
    assert (block["type"], block["index"]) == ("content_block_stop", 2)
    assert delta["delta"]["stop_reason"] == "max_tokens"
    assert delta["usage"] == {"input_tokens": 7, "output_tokens": 20, "cost": 0.00021}
    assert stop == {"type": "message_stop", "x_tessera_reason": "BudgetExceeded"}


@pytest.mark.parametrize(
    ("after", "stopped"),
    [
        (b'event: ping\ndata: {"type":"ping"}\n\n', True),
        (b'event: content_block_stop\ndata: {"type":"content_block_stop","index":2}\n\n', False),
    ],
)
def test_a_message_stops_no_block_that_is_not_open(after: bytes, stopped: bool) -> None:
    last = b'event: content_block_delta\ndata: {"index":2,"delta":{"text":"a"}}\n\n'
    events = cut("/v1/messages", b"", last + after)
    blocks = [each["index"] for each in events if each["type"] == "content_block_stop"]
    assert blocks == [2] * stopped


@pytest.mark.parametrize("path", STREAMING)
@pytest.mark.parametrize(
    "shape", [b"", b": a comment\n\n", b"data: nonsense\n\n", b"data: [1]\n\n"]
)
def test_streams_of_other_shapes_end_as_well(path: str, shape: bytes) -> None:
    assert cut(path, shape, shape)


@pytest.mark.parametrize("path", STREAMING)
def test_the_cost_stands_in_the_last_usage_alone(path: str) -> None:
    stream_format = PATHS[path].stream
    assert stream_format is not None
    before, words, after = stream_of(path)
    stream = b"".join([*before, *words, *after])
    priced = with_cost(stream, stream_format, "0.00021")
    assert priced.count(b'"cost":0.00021') == 1
    assert priced.replace(b',"cost":0.00021', b"") == stream
    begun = b"".join([*before, *words])
    assert with_cost(begun, stream_format, "1") == begun


@pytest.mark.parametrize(
    "event",
    [
        DONE,
        b'data: {"usage":nonsense}\n\n',
        b'data: {"choices":[],"usage":[]}\n\n',
        b'event: response.completed\ndata: {"usage":{}}\n\n',
        b'event: message_delta\ndata: {"delta":{"usage":{}}}\n\n',
    ],
)
@pytest.mark.parametrize("path", STREAMING)
def test_usage_of_other_shapes_passes_as_it_is(path: str, event: bytes) -> None:
    stream_format = PATHS[path].stream
    assert stream_format is not None
    assert with_cost(event, stream_format, "1") == event
