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


def cut(
    path: str, *events: bytes, choices: int = 1, usage: CutUsage | None = USAGE
) -> list[Any]:
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
