"""What the gateway reads of the answers of providers."""

import json
from typing import Any

import pytest

from tessera.domain.model.paths import PROTOCOLS
from tessera.gateway.http.sse import InvalidStreamError
from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.outside.answers import ProviderEvents, read_answer
from tessera.gateway.paths import PATHS

CHAT, RESPONSES, MESSAGES = PROTOCOLS
MARK = b"mark."


def whole(path: str, **fields: Any) -> Any:
    return read_answer(path, json.dumps(fields).encode(), MARK)


def a_relay(path: str, *, keep_usage: bool = True) -> ProviderEvents:
    stream = PATHS[path].stream
    assert stream is not None
    return ProviderEvents(path, stream, MARK, keep_usage=keep_usage)


def an_event(data: Any, kind: str = "") -> bytes:
    name = f"event: {kind}\n" if kind else ""
    return f"{name}data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def a_chunk(finish: str | None = None, usage: Any = None, **delta: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return an_event({"id": "1", "choices": choices, "usage": usage})


USAGE = an_event(
    {
        "choices": [],
        "usage": {
            **{"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
    }
)
COUNTS = TokenCounts(input=10, cached=4, output=5, reasoning=2)


@pytest.mark.parametrize(
    ("path", "usage", "counts"),
    [
        (
            CHAT,
            {"prompt_tokens": 9, "completion_tokens": 3, "num_sources_used": 2},
            TokenCounts(input=9, output=3),
        ),
        (
            RESPONSES,
            {
                **{"input_tokens": 9, "output_tokens": 3},
                "input_tokens_details": {"cached_tokens": 8},
                "output_tokens_details": {"reasoning_tokens": 1},
            },
            TokenCounts(input=9, cached=8, output=3, reasoning=1),
        ),
        (
            MESSAGES,
            {
                **{"input_tokens": 2, "output_tokens": 3},
                **{"cache_read_input_tokens": 5, "cache_creation_input_tokens": 4},
                "output_tokens_details": {"thinking_tokens": 2},
            },
            TokenCounts(input=11, cached=5, output=3, reasoning=2),
        ),
        (CHAT, {"prompt_tokens": -1, "completion_tokens": 3}, TokenCounts(output=3)),
        (CHAT, {"prompt_tokens": "many"}, None),
        (CHAT, {"prompt_tokens": 10**18}, None),
        (CHAT, [], None),
        (CHAT, None, None),
    ],
)
def test_a_whole_answer_has_counts_that_can_be_or_none(path: str, usage: Any, counts: Any) -> None:
    answer = whole(path, usage=usage, choices=[])
    assert (answer.counts, answer.is_filtered) == (counts, False)
    assert json.loads(answer.body) == {"usage": usage, "choices": []}


@pytest.mark.parametrize("body", [b"<html></html>", b"", b"[]", b'{"a": "\xff"}', b"[" * 5000])
def test_what_is_no_json_object_is_no_answer(body: bytes) -> None:
    with pytest.raises(InvalidStreamError):
        read_answer(CHAT, body, MARK)


@pytest.mark.parametrize(
    ("path", "fields", "is_filtered"),
    [
        (CHAT, {"choices": [{"finish_reason": "content_filter"}]}, True),
        (
            CHAT,
            {"choices": [{"finish_reason": "content_filter"}, {"finish_reason": "stop"}]},
            False,
        ),
        (
            CHAT,
            {"choices": [{"finish_reason": "stop", "message": {"content": "a content_filter"}}]},
            False,
        ),
        (CHAT, {"choices": [{"finish_reason": "stop", "message": {"refusal": "No"}}]}, False),
        (RESPONSES, {"incomplete_details": {"reason": "content_filter"}}, True),
        (RESPONSES, {"incomplete_details": {"reason": "max_output_tokens"}}, False),
        (MESSAGES, {"stop_reason": "refusal", "content": []}, True),
        (MESSAGES, {"stop_reason": "end_turn", "content": [{"input": {"a": "refusal"}}]}, False),
    ],
)
def test_a_filter_is_known_by_the_words_of_each_protocol(
    path: str, fields: dict[str, Any], is_filtered: bool
) -> None:
    assert whole(path, **fields).is_filtered is is_filtered


NO_ERRORS: tuple[Any, ...] = ("", {}, False, 0)
CUT = {"finish_reason": "error", "error": {"code": 502}, "message": {"content": ""}}


@pytest.mark.parametrize(
    ("fields", "is_error"),
    [
        ({"error": {"code": 502}}, True),
        *(({"error": each, "choices": [{}]}, False) for each in NO_ERRORS),
        *(({"error": each, "choices": None}, True) for each in NO_ERRORS),
        ({"error": {}, "content": [{"type": "text"}]}, False),
        ({"choices": None, "base_resp": {"status_code": 1008}}, True),
        ({"choices": None, "base_resp": {"status_code": 0}}, False),
        ({"choices": [{}], "base_resp": {"status_code": 1008}}, False),
        ({"choices": None, "base_resp": {"status_code": "1008"}}, False),
        ({"object": "error", "message": "no"}, True),
        ({"type": "error", "code": "no"}, True),
        ({"choices": [CUT, CUT]}, True),
        ({"choices": [CUT, {"finish_reason": "stop"}]}, False),
        ({"choices": [{"message": {"content": '"error": {}'}}], "error": None}, False),
        ({"choices": [{"message": {"error": 1}}]}, False),
        ({"object": "chat.completion", "choices": []}, False),
    ],
)
def test_an_answer_that_is_an_error_is_seen(fields: dict[str, Any], is_error: bool) -> None:
    assert whole(CHAT, **fields).is_error is is_error


@pytest.mark.parametrize("keep_usage", [True, False])
def test_a_stream_is_passed_on_without_usage_that_was_not_asked_for(keep_usage: bool) -> None:
    relay = a_relay(CHAT, keep_usage=keep_usage)
    stream = a_chunk(role="assistant") + a_chunk(content="Hi") + a_chunk("stop")
    passed = relay.feed(stream + USAGE + an_event("[DONE]"))
    assert passed == stream + (USAGE if keep_usage else b"") + an_event("[DONE]")
    assert (relay.counts, relay.ended, relay.is_filtered) == (COUNTS, True, False)


def test_lines_that_end_as_those_of_http_are_read_in_pieces_of_any_size() -> None:
    stream = a_chunk(content="a\r\nb") + a_chunk("stop") + USAGE + an_event("[DONE]")
    relay = a_relay(CHAT)
    pieces = stream.replace(b"\n", b"\r\n")
    passed = b"".join(relay.feed(pieces[at : at + 1]) for at in range(len(pieces)))
    assert (passed, relay.ended, relay.counts) == (stream, True, COUNTS)


def test_the_ends_of_the_other_protocols_are_known() -> None:
    usage = {"input_tokens": 10, "output_tokens": 5}
    relay = a_relay(MESSAGES)
    relay.feed(
        an_event({"message": {"usage": {"input_tokens": 10}}}, "message_start")
        + an_event({"delta": {"text": "Hi"}}, "content_block_delta")
        + an_event({"delta": {"stop_reason": "end_turn"}, "usage": usage}, "message_delta")
        + an_event({}, "message_stop")
    )
    assert (relay.counts, relay.ended) == (TokenCounts(input=10, output=5), True)
    relay = a_relay(RESPONSES)
    relay.feed(
        an_event({"response": {}}, "response.created")
        + an_event({"delta": "Hi"}, "response.output_text.delta")
        + an_event({"response": {"usage": usage}}, "response.completed")
    )
    assert (relay.counts, relay.ended) == (TokenCounts(input=10, output=5), True)


FILTERED = {
    CHAT: [
        *(a_chunk(role="assistant"), a_chunk("content_filter"), a_chunk(content="more")),
        *(USAGE, an_event("[DONE]")),
    ],
    RESPONSES: [
        an_event({"response": {}}, "response.created"),
        an_event(
            {
                "response": {
                    "incomplete_details": {"reason": "content_filter"},
                    "usage": {"input_tokens": 10, "output_tokens": 5},
                }
            },
            "response.incomplete",
        ),
    ],
    MESSAGES: [
        an_event({"message": {"usage": {"input_tokens": 10}}}, "message_start"),
        an_event(
            {"delta": {"stop_reason": "refusal"}, "usage": {"output_tokens": 5}}, "message_delta"
        ),
        an_event({}, "message_stop"),
    ],
}


@pytest.mark.parametrize("path", PROTOCOLS)
def test_a_stream_that_a_filter_refuses_gives_nothing_but_its_counts(path: str) -> None:
    relay = a_relay(path)
    assert b"".join(relay.feed(event) for event in FILTERED[path]) == b""
    assert (relay.is_filtered, relay.closed, relay.started) == (True, True, False)
    assert relay.counts is not None
    assert (relay.counts.input, relay.counts.output) == (10, 5)


def test_after_the_first_token_a_filter_is_what_the_client_reads() -> None:
    relay = a_relay(CHAT)
    stream = a_chunk(content="Hi") + a_chunk("content_filter") + an_event("[DONE]")
    assert relay.feed(stream) == stream
    assert (relay.is_filtered, relay.ended) == (False, True)


def test_a_first_token_that_speaks_of_a_filter_passes() -> None:
    relay = a_relay(CHAT)
    chunk = a_chunk(content='"finish_reason": "content_filter" or a refusal')
    assert relay.feed(chunk) == chunk


def test_an_error_in_a_stream_is_not_passed_on() -> None:
    relay = a_relay(MESSAGES)
    overloaded = an_event({"error": {"type": "overloaded_error"}}, "error")
    assert (relay.feed(overloaded), relay.error) == (b"", overloaded)
