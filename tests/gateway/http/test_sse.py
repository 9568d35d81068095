"""The relay of events, fed in pieces of every size."""

import itertools
import json
import sys
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.gateway.http.sse import (
    MAX_BYTES_WITHOUT_TOKEN,
    MAX_EVENT_BYTES,
    MAX_EVENTS_WITHOUT_TOKEN,
    EventRelay,
    EventTooLargeError,
    InvalidStreamError,
    StreamFormat,
)
from tessera.gateway.http.token_counts import TokenCounts, Usage
from tessera.gateway.paths import PATHS
from tests.gateway.harness import DONE, END, ROLE, USAGE, a_delta, event


def the_format(path: str = "/v1/chat/completions") -> StreamFormat:
    stream = PATHS[path].stream
    assert stream is not None
    return stream


def relayed(data: bytes, cuts: list[int], *, keep_usage: bool = False) -> tuple[bytes, EventRelay]:
    relay = EventRelay(the_format(), keep_usage=keep_usage)
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    parts = [data[start:end] for start, end in itertools.pairwise(places)]
    return b"".join(relay.feed(part) for part in parts), relay


def lines(data: bytes) -> list[bytes]:
    """Return what is not blank: of more than two line ends, some may be lost."""
    return [line for line in data.replace(b"\r", b"\n").split(b"\n") if line]


CUTS = st.lists(st.integers(0, 10_000), max_size=30)
TEXTS = st.lists(st.text(max_size=20), max_size=10)


@given(TEXTS, CUTS, st.booleans(), st.booleans())
def test_the_client_gets_the_same_bytes_however_they_are_cut(
    texts: list[str], cuts: list[int], keep_usage: bool, crlf: bool
) -> None:
    deltas = b"".join(a_delta(text) for text in texts)
    whole, expected = ROLE + deltas + END + USAGE + DONE, ROLE + deltas + END + DONE
    if keep_usage:
        expected = whole
    if crlf:
        whole, expected = whole.replace(b"\n", b"\r\n"), expected.replace(b"\n", b"\r\n")
    out, relay = relayed(whole, cuts, keep_usage=keep_usage)
    assert out == expected
    assert relay.ended
    assert relay.counts is not None
    assert relay.counts.output == 3
    assert relay.deltas >= sum(bool(text) for text in texts)


@given(st.binary(max_size=400), CUTS)
def test_any_bytes_are_relayed_the_same_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    begin = ROLE + a_delta()
    out, relay = relayed(begin + data + b"\n\n", cuts)
    again, at_once = relayed(begin + data + b"\n\n", [])
    assert (lines(out), relay.closed, relay.counts) == (
        lines(again),
        at_once.closed,
        at_once.counts,
    )


@given(st.binary(max_size=400), CUTS)
def test_any_beginning_is_relayed_or_refused(data: bytes, cuts: list[int]) -> None:
    try:
        out, relay = relayed(data, cuts)
    except InvalidStreamError:
        return
    assert relay.started or not out


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=8), CUTS)
def test_events_of_any_shape_pass(value: object, cuts: list[int]) -> None:
    strange = event({"choices": value, "usage": value, "error": None, "message": value})
    if isinstance(value, list) and not value:
        return
    out, _ = relayed(ROLE + a_delta() + strange + DONE, cuts)
    assert out in (ROLE + a_delta() + strange + DONE, ROLE + a_delta() + DONE)


def test_text_that_looks_like_a_signal_is_text() -> None:
    texts = ['"usage"', "usage", "[DONE]", "data: [DONE]\n\n", "abort", '{"error": 1}', "\r\n\r\n"]
    data = ROLE + b"".join(a_delta(text) for text in texts) + END + DONE
    out, relay = relayed(data, [])
    assert out == data
    assert relay.error is None
    assert not relay.aborted


def test_nothing_comes_out_before_the_first_token() -> None:
    relay = EventRelay(the_format(), keep_usage=False)
    assert relay.feed(b": ping\n\n" + ROLE) == b""
    assert not relay.started
    assert relay.feed(a_delta("x")) == ROLE + a_delta("x")


def test_an_event_without_an_end_is_refused() -> None:
    relay = EventRelay(the_format(), keep_usage=False)
    relay.feed(ROLE + a_delta())
    relay.feed(b"x" * MAX_EVENT_BYTES)
    with pytest.raises(EventTooLargeError, match="an event has more than"):
        relay.feed(b"x")


def test_a_stream_of_nothing_but_preludes_is_refused() -> None:
    relay = EventRelay(the_format(), keep_usage=False)
    prelude = ROLE.replace(b"chatcmpl-0", b"x" * 1000)
    relay.feed(prelude * (MAX_EVENT_BYTES // len(prelude)))
    with pytest.raises(InvalidStreamError, match="without a token"):
        relay.feed(prelude)


@pytest.mark.parametrize(
    "idle",
    [b"\n\n", b":\n\n", b"\r\n\r\n", b"data:\n\n", b'data:{"choices":[],"usage":{}}\n\n'],
)
@pytest.mark.parametrize("begin", [b"", ROLE + a_delta()], ids=["without a token", "after one"])
def test_events_without_a_token_have_a_bound(idle: bytes, begin: bytes) -> None:
    relay = EventRelay(the_format(), keep_usage=False)
    relay.feed(begin)
    # The role is one of them, and before the first token it is held.
    relay.feed(idle * (MAX_EVENTS_WITHOUT_TOKEN - 1))
    with pytest.raises(InvalidStreamError, match=r"1000\d events came without a token"):
        relay.feed(idle + idle)


def test_bytes_without_a_token_have_a_bound() -> None:
    relay = EventRelay(the_format(), keep_usage=False)
    relay.feed(ROLE + a_delta())
    comment = b":" + b" " * (MAX_EVENT_BYTES - 3) + b"\n\n"
    for _ in range(MAX_BYTES_WITHOUT_TOKEN // MAX_EVENT_BYTES - 1):
        assert relay.feed(comment) == comment
    with pytest.raises(InvalidStreamError, match="bytes came without a token"):
        relay.feed(comment + comment)


def repeated(before: bytes, unit: bytes, after: bytes) -> bytes:
    """Return an event of nearly the largest size."""
    return before + unit * ((MAX_EVENT_BYTES - 200) // len(unit)) + after + b"\n\n"


@pytest.mark.parametrize(
    "large",
    [
        repeated(b'data: {"choices":[', b"{},", b"{}]}"),
        repeated(b'data: {"choices":[{"delta":{"content":[', b"[],", b"1]}}]}"),
        repeated(b'data: {"choices":[', b"{},", b'{}],"usage":null}'),
        repeated(b'data: {"choices":[{"delta":{"content":[', b"[],", b'1]}}],"usage":null}'),
        repeated(b'data: {"choices":[{', b'"content":"",', b'"a":1}]}'),
        repeated(b'data: {"choices":[{"text":"', b'\\"', b'"}]}'),
    ],
    ids=["choices", "lists", "choices and usage", "lists and usage", "texts", "escapes"],
)
@pytest.mark.parametrize("begin", [b"", ROLE + a_delta()], ids=["first", "later"])
def test_a_large_event_costs_about_what_its_bytes_do(begin: bytes, large: bytes) -> None:
    calls = 0

    def count(*called: object) -> None:
        nonlocal calls
        calls += called[1] == "c_call"

    relay = EventRelay(the_format(), keep_usage=True)
    relay.feed(begin)
    relay.feed(large[:-1])
    tracemalloc.start()
    sys.setprofile(count)
    try:
        relay.feed(large[-1:])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        sys.setprofile(None)
        tracemalloc.stop()
    # Its copies, and nothing for each of its parts.
    assert peak < 8 * len(large)
    assert calls < 10_000


@pytest.mark.parametrize("line", [b"\r", b"x\n", b"data:\n"])
def test_an_event_of_very_many_lines_is_refused(line: bytes) -> None:
    relay = EventRelay(the_format(), keep_usage=False)
    with pytest.raises(InvalidStreamError, match="more than 1000 lines"):
        relay.feed(line * 1001 + b"\n\n")


def test_the_streams_of_responses_and_messages_end_with_events_of_their_own() -> None:
    def named(name: str, **fields: object) -> bytes:
        return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()

    usage = {"input_tokens": 5, "output_tokens": 2}
    delta = named("response.output_text.delta", delta="x")
    responses = [
        named("response.created", response={"usage": None, "error": None}),
        delta,
        named("response.completed", response={"usage": usage}),
    ]
    relay = EventRelay(the_format("/v1/responses"), keep_usage=True)
    assert [relay.feed(each) for each in responses] == [b"", responses[0] + delta, responses[2]]
    assert relay.counts is not None
    assert (relay.ended, relay.counts.input, relay.deltas) == (True, 5, 1)

    messages = [
        named("message_start", message={"usage": {"input_tokens": 5, "output_tokens": 0}}),
        named("content_block_delta", delta={"text": "x"}),
        named("message_delta", usage={"output_tokens": 2}),
        named("message_stop"),
    ]
    relay = EventRelay(the_format("/v1/messages"), keep_usage=True)
    assert b"".join(relay.feed(each) for each in messages) == b"".join(messages)
    assert relay.counts is not None
    assert (relay.ended, relay.counts.input, relay.counts.output) == (True, 5, 2)


def test_input_of_messages_has_what_the_cache_had_although_the_engine_reports_it_apart() -> None:
    """As vLLM writes it with --enable-prompt-tokens-details: the parts come at the end alone."""
    end = {
        "input_tokens": 17,
        "output_tokens": 2,
        "cache_read_input_tokens": 384,
        "cache_creation_input_tokens": 8,
    }
    events = [
        {"type": "message_start", "message": {"usage": {"input_tokens": 409, "output_tokens": 0}}},
        {"type": "content_block_delta", "delta": {"text": "x"}},
        {"type": "message_delta", "usage": end},
    ]
    relay = EventRelay(the_format("/v1/messages"), keep_usage=True)
    for each in events:
        relay.feed(event(each))
    assert relay.counts == TokenCounts(input=409, cached=384, output=2)
    assert msgspec.convert(end, Usage).counts() == relay.counts
