"""Thinking that a provider signed comes back to this provider alone."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.gateway.bodies.signed import thinking_mark, unmarked, without_marked
from tessera.gateway.outside.answers import ProviderEvents, read_answer
from tessera.gateway.outside.bodies import outside_body
from tessera.gateway.paths import PATHS
from tests.gateway_builders import an_offered_provider, an_outside_model

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
ACME, OTHER = an_offered_provider("acme"), an_offered_provider("other")
MARK = thinking_mark(ACME)
THOUGHT = {"type": "thinking", "thinking": "Hm", "signature": "EqQB+/=="}
REDACTED = {"type": "redacted_thinking", "data": "EmwK"}
# The model chose the names of the fields of its input.
CALL = {"type": "tool_use", "id": "1", "name": "sign", "input": {"signature": "a", "data": "b"}}
TEXT = {"type": "text", "text": 'Write "signature": "x", and "data": "y"'}
REASONING = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}


def answered(path: str, parts: list[Any]) -> Any:
    """Return the parts of an answer as the client gets them."""
    name = "content" if path == MESSAGES else "output"
    body = read_answer(path, json.dumps({"id": "a", name: parts}).encode(), MARK).body
    return json.loads(body)[name]


def asked(path: str, parts: list[Any], provider: Any = ACME) -> Any:
    """Return the parts as a provider gets them with the next request."""
    turn = {"role": "user", "content": "Hello"}
    items = [turn, {"role": "assistant", "content": parts}] if path == MESSAGES else [turn, *parts]
    body = {"model": "m", "messages" if path == MESSAGES else "input": items}
    outside = an_outside_model(provider=provider)
    sent = json.loads(outside_body(path, json.dumps(body).encode(), outside, 100))
    if path == RESPONSES:
        return sent["input"][1:]
    return sent["messages"][1]["content"] if len(sent["messages"]) > 1 else []


@pytest.mark.parametrize("space", ["", " " * 20_000])
def test_thinking_comes_back_as_its_maker_signed_it(space: str) -> None:
    parts = [THOUGHT, REDACTED, {"type": "text", "text": TEXT["text"] + space}, CALL]
    answer = answered(MESSAGES, parts)
    assert answer[2:] == parts[2:]
    assert answer[0]["signature"] == MARK.decode() + "EqQB+/=="
    assert asked(MESSAGES, answer) == parts
    assert asked(RESPONSES, answered(RESPONSES, [REASONING])) == [REASONING]


def test_no_other_provider_gets_it() -> None:
    answer = answered(MESSAGES, [THOUGHT, REDACTED, TEXT])
    moved = an_offered_provider("acme", base_url="https://elsewhere.example/v1")
    for provider in (OTHER, moved):
        assert asked(MESSAGES, answer, provider) == [TEXT]
        assert asked(RESPONSES, answered(RESPONSES, [REASONING]), provider) == []


def test_what_has_no_mark_was_made_elsewhere_and_is_left_out() -> None:
    assert asked(MESSAGES, [THOUGHT, REDACTED, TEXT]) == [TEXT]
    assert asked(RESPONSES, [REASONING, {"type": "reasoning", "summary": []}]) == []


def test_a_turn_of_nothing_but_thinking_of_others_is_left_out() -> None:
    assert asked(MESSAGES, [THOUGHT]) == []


def test_engines_of_the_cluster_get_nothing_signed() -> None:
    for path, parts, rest in (
        (MESSAGES, [THOUGHT, REDACTED, TEXT, CALL], [TEXT, CALL]),
        (RESPONSES, [REASONING], []),
    ):
        answer = answered(path, parts)
        turn = {"role": "user", "content": "Hello", "unknown": {"a": 1.50}}
        name = "messages" if path == MESSAGES else "input"
        items = [
            turn,
            *([{"role": "assistant", "content": answer}] if path == MESSAGES else answer),
        ]
        body = json.loads(without_marked(path, json.dumps({name: items, "top_k": 3}).encode()))
        assert (body["top_k"], body[name][0]) == (3, turn)
        assert [*body[name][1:]] == (
            [{"role": "assistant", "content": rest}] if path == MESSAGES else rest
        )
    for untouched in (b'{"messages": [ ]}', b"{}"):
        assert without_marked(MESSAGES, untouched) is untouched


def test_a_text_that_speaks_of_a_mark_stays() -> None:
    text = {"type": "text", "text": f'He wrote "{MARK.decode()}x" to me'}
    body = json.dumps({"messages": [{"role": "user", "content": [text]}]}).encode()
    assert json.loads(without_marked(MESSAGES, body)) == json.loads(body)


def an_event(kind: str, **data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()


def passed(path: str, events: bytes) -> bytes:
    """Return what the client gets of events of a stream."""
    stream = PATHS[path].stream
    assert stream is not None
    return ProviderEvents(path, stream, MARK, keep_usage=True).feed(events)


def test_signatures_of_a_stream_are_marked_event_by_event() -> None:
    delta = "content_block_delta"
    call = an_event("content_block_start", content_block=CALL)
    text = an_event(delta, delta={"type": "text_delta", "text": TEXT["text"]})
    signed = an_event(delta, delta={"type": "signature_delta", "signature": "EqQB"})
    redacted = an_event("content_block_start", content_block=REDACTED)
    block = passed(MESSAGES, text + call + signed + redacted)
    assert block.count(MARK) == 2
    assert block.startswith(text + call)
    assert b'"signature": "' + MARK + b'EqQB"' in block
    assert passed(MESSAGES, text + call) == text + call
    done = an_event("response.output_item.done", item=REASONING)
    added = an_event("response.output_item.added", item={**REASONING, "encrypted_content": ""})
    assert passed(RESPONSES, added + done).count(MARK) == 1


def test_a_signature_in_pieces_comes_back_as_a_whole() -> None:
    pieces = {**THOUGHT, "signature": f"{MARK.decode()}Eq{MARK.decode()}QB"}
    assert asked(MESSAGES, [pieces]) == [{**THOUGHT, "signature": "EqQB"}]


JSON = st.recursive(
    st.text(alphabet='"\\:,{}signaturedatencrypted_content \n', max_size=40) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["signature", "data", "type", "x"]), inner)
    ),
    max_leaves=6,
)


@given(st.text(min_size=1), st.text(), JSON)
def test_whatever_stands_beside_it_thinking_comes_back_and_the_rest_is_untouched(
    signature: str, thought: str, value: Any
) -> None:
    call = {"type": "tool_use", "id": "1", "name": "f", "input": {"signature": value}}
    thinking = {"type": "thinking", "thinking": thought, "signature": signature}
    answer = answered(MESSAGES, [thinking, call])
    assert answer[1] == call
    assert answer[0]["thinking"] == thought
    assert asked(MESSAGES, answer) == [thinking, call]


@pytest.mark.parametrize("behind", ["", "\\n", "\\\\", '\\"'])
def test_a_mark_behind_a_backslash_leaves_a_text_of_json(behind: str) -> None:
    # The backslash belongs to the first letter of the second mark.
    signature = f'"{MARK.decode()}{behind}\\{MARK.decode()}"'
    text = unmarked(msgspec.Raw(signature.encode()), MARK)
    assert text is not None
    assert json.loads(bytes(text)) == json.loads(signature).removeprefix(MARK.decode())
