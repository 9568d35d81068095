"""Events of the engine that goes on with a stream, whatever they are: one stream within bounds."""

import json
import sys
import tracemalloc
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.gateway.http.continued_events import (
    MAX_REWRITTEN_BYTES,
    PART_BYTES,
    ContinuedEvents,
    Joint,
)
from tessera.gateway.http.event_fields import (
    MAX_HEAD_BYTES,
    MAX_VALUES,
    has_too_many,
    read_head,
)
from tessera.gateway.http.sse import event_data, split_events
from tests.gateway.harness import DONE, END, MODEL, ROLE, USAGE, a_delta, event
from tests.gateway.http.test_sse import the_format

HEAD = {"id": msgspec.Raw(b'"first"'), "model": msgspec.Raw(b'"chat"')}


def a_joint(repeated: str = "", head: Mapping[str, msgspec.Raw] = HEAD) -> Joint:
    return Joint(head=head, tokens=2, repeated=repeated, resumed=1)


def continuing(joint: Joint | None = None) -> ContinuedEvents:
    events = ContinuedEvents(the_format(), joint or a_joint(), keep_usage=True)
    events.feed(ROLE + a_delta())
    return events


def passed(events: ContinuedEvents, block: bytes) -> list[bytes]:
    return list(events.parts(events.feed(block)))


def rewritten(block: bytes, joint: Joint | None = None) -> list[Any]:
    """Return what the events of a block say for the client."""
    whole = b"".join(passed(continuing(joint), block))
    return [json.loads(event_data(each)) for each in split_events(whole)]


def a_choice(**fields: Any) -> dict[str, Any]:
    return {"index": 0, "delta": {"content": "x"}, **fields}


# --- what a client reads


def test_an_event_has_the_names_of_its_stream_and_all_else_that_the_engine_says() -> None:
    given_event = {"id": "second", "model": "x", "service_tier": "a", "choices": [a_choice()]}
    (seen,) = rewritten(event(given_event))
    assert seen == {**given_event, "id": "first", "model": "chat"}


@pytest.mark.parametrize("size", [1, 100_000], ids=["small", "large"])
def test_an_event_has_nothing_that_only_begins_a_stream(size: int) -> None:
    ids = [7] * size
    delta = {"role": "assistant", "content": "x" * size}
    choice = a_choice(delta=delta, prompt_token_ids=ids)
    (seen,) = rewritten(event({"choices": [choice], "prompt_token_ids": ids}))
    expected = a_choice(delta={"content": "x" * size}, prompt_token_ids=None)
    assert seen == {"id": "first", "model": "chat", "choices": [expected]}


@given(st.text(" \n\t\u3000", max_size=8), st.text(" \nab", max_size=12), st.integers(1, 4))
def test_space_that_the_client_has_does_not_come_again(repeated: str, text: str, step: int) -> None:
    pieces = [text[place : place + step] for place in range(0, len(text), step)]
    joint = a_joint(repeated)
    seen = rewritten(b"".join(map(a_delta, pieces)), joint)
    texts = "".join(each["choices"][0]["delta"]["content"] for each in seen)
    common = next(
        (n for n in range(min(len(text), len(repeated)), 0, -1) if text[:n] == repeated[:n]), 0
    )
    assert texts == text[common:]
    # What may still come again waits, and nothing else.
    assert joint.waiting_bytes == (2 * len(repeated) if common == len(text) < len(repeated) else 0)


def test_an_event_of_too_many_fields_passes_as_it_is() -> None:
    fields = {f"field-{number}": 1 for number in range(MAX_VALUES)}
    strange = event({"id": "second", "choices": [], **fields})
    assert b"".join(passed(continuing(), strange)) == strange


def test_an_event_of_more_than_a_mebibyte_passes_as_it_is() -> None:
    before, after = b'data: {"id":"second","choices":[{"delta":{"role":"a","content":"', b'"}}]}'
    text = b"x" * (MAX_REWRITTEN_BYTES - len(before + after) + len(b"data: "))
    (seen,) = rewritten(before + text + after + b"\n\n")
    assert (seen["id"], list(seen["choices"][0]["delta"])) == ("first", ["content"])
    large = before + text + b"x" + after + b"\n\n"
    assert passed(continuing(), large) == [large]


# --- what it costs


def repeated(before: bytes, unit: bytes, after: bytes) -> bytes:
    """Return an event of nearly the largest size that is looked into."""
    size = MAX_REWRITTEN_BYTES - len(before + after)
    return before + unit * (size // len(unit)) + after + b"\n\n"


def many_fields(before: bytes, after: bytes) -> bytes:
    fields = b",".join(b'"%06x":1' % number for number in range(90_000))
    return before + fields + after + b"\n\n"


LARGE = {
    "fields": many_fields(b"data: {", b',"choices":[]}'),
    "one field again and again": repeated(b"data: {", b'"a":1,', b'"choices":[{"role":1}]}'),
    "choices": repeated(b'data: {"choices":[{"role":1},', b"{},", b"{}]}"),
    "no objects": repeated(b'data: {"choices":[{"role":1},', b"1,", b"1]}"),
    "fields of a choice": many_fields(b'data: {"choices":[{"role":1,', b"}]}"),
    "fields of a delta": many_fields(b'data: {"choices":[{"delta":{"role":"a",', b"}}]}"),
    "fields of usage": many_fields(b'data: {"choices":[],"usage":{', b"}}"),
    "lists": repeated(b'data: {"choices":[{"delta":{"role":"a","content":[', b"[],", b"1]}}]}"),
    "text": repeated(b'data: {"choices":[{"delta":{"role":"a","content":"', b"{,:", b'"}}]}'),
    "token ids": repeated(b'data: {"choices":[{"prompt_token_ids":[', b"7,", b"7]}]}"),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_event_costs_about_what_its_bytes_do(name: str) -> None:
    calls = 0

    def count(*called: object) -> None:
        nonlocal calls
        calls += called[1] == "c_call"

    events, large = continuing(), LARGE[name]
    events.feed(large[:-1])
    tracemalloc.start()
    sys.setprofile(count)
    try:
        passed(events, large[-1:])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        sys.setprofile(None)
        tracemalloc.stop()
    # Its copies, and nothing for each of its values.
    assert peak < 10 * len(large)
    assert calls < 1000


def test_events_that_grow_by_the_names_of_their_stream_come_in_parts() -> None:
    head = {"id": msgspec.Raw(b'"%b"' % (b"x" * (MAX_HEAD_BYTES - 2)))}
    events = continuing(a_joint(head=head))
    small = b'data:{"choices":[{}]}\n\n' * 700
    block, sizes = events.feed(small), []
    tracemalloc.start()
    try:
        for part in events.parts(block):
            sizes.append(len(part))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(sizes) > 10 * len(small)
    assert max(sizes) < PART_BYTES + 1000
    assert peak < 6 * PART_BYTES


def test_what_no_part_has_yet_of_a_block_waits_for_the_client() -> None:
    events = continuing(a_joint(head={"id": msgspec.Raw(b'"%b"' % (b"x" * (MAX_HEAD_BYTES - 2)))}))
    small = b'data:{"choices":[{}]}\n\n' * 700
    parts, unpassed = events.parts(events.feed(small)), []
    for _ in parts:
        unpassed.append(events.unpassed_bytes)
        assert events.waiting_bytes == unpassed[-1]
    assert len(small) > unpassed[0] > unpassed[1] > 0
    assert unpassed[-1] == 0


def test_much_space_at_the_joint_is_compared_as_a_whole() -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    joint = a_joint(" " * 1_000_000)
    events = continuing(joint)
    block = events.feed(a_delta(" " * 999_999 + "a") + DONE)
    sys.setprofile(count)
    try:
        parts = list(events.parts(block))
    finally:
        sys.setprofile(None)
    assert b'"content":"a"' in parts[0]
    assert calls < 500


# --- what ends protection


def test_the_names_of_a_stream_are_those_of_its_first_event() -> None:
    head = read_head(b": waiting\n\n" + ROLE + a_delta() + END + USAGE)
    assert head is not None
    assert {name: json.loads(bytes(value)) for name, value in head.items()} == {
        "id": "chatcmpl-0",
        "model": MODEL,
    }


@pytest.mark.parametrize("name", ["id", "object", "created", "model"])
def test_names_of_more_than_256_bytes_do_not_go_on(name: str) -> None:
    def begun(size: int) -> bytes:
        return event({name: "x" * (size - 2), "choices": [a_choice()]})

    assert read_head(begun(MAX_HEAD_BYTES)) is not None
    assert read_head(begun(MAX_HEAD_BYTES + 1)) is None
    assert read_head(b'data: {"choices":\n\n') is None


def test_the_longest_id_of_a_request_goes_on_with_all_that_is_put_around_it() -> None:
    suffix = "0123abcd-0123-4567-89ab-0123456789ab"
    name = f"chatcmpl-{'r' * 128}-{suffix}-0123abcd"
    assert read_head(event({"id": name, "choices": [a_choice()]})) is not None


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (ROLE + a_delta() * 100 + END + USAGE + DONE, False),
        (a_delta("{}, " * 1000), False),
        (event({"choices": [a_choice(token_ids=[7] * 10_000)]}), False),
        (event({"choices": [a_choice()] * MAX_VALUES}), False),
        (event({"choices": [a_choice()] * (MAX_VALUES + 1)}), True),
        (b'data: {"choices":[' + b"{}," * MAX_VALUES + b"{}]}\n\n", True),
        (a_delta() + b'data: {"choices":[' + b"{}," * 650_000 + b"{}]}\n\n", True),
        (event({f"field-{number}": 1 for number in range(MAX_VALUES + 1)}), True),
        (b'data: {"choices":[' + b"," * 100 + b"\n\n", False),
    ],
)
def test_events_of_too_many_values_are_noticed(block: bytes, *, expected: bool) -> None:
    assert has_too_many(block) is expected


def test_of_a_block_only_what_has_not_passed_is_kept() -> None:
    events = continuing()
    tracemalloc.start()
    try:
        parts = events.parts(events.feed(repeated(b'data: {"a":"', b"x", b'"}') + a_delta() * 2000))
        assert len(next(parts)) > MAX_REWRITTEN_BYTES
        allocated = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # Each of the small events is an object beside its bytes.
    assert 0 < events.unpassed_bytes < allocated < 2 * events.unpassed_bytes
