"""Where the turns of a conversation are in a body."""

import json
from typing import Any

import pytest

from tessera.gateway.bodies.messages import conversation_parts

USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
# The content may come first.
SYSTEM, LATER = {"content": "Be short.", "role": "system"}, {"role": "user", "content": "And?"}
TOOL = {"role": "tool", "tool_call_id": "1", "content": "12"}
CALL = {"type": "function_call", "call_id": "1", "name": "add", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "1", "output": "12"}
QUOTED = {"role": "user", "content": '{"role":"assistant"}, {"role":"user"}'}


def text_of(value: Any) -> memoryview:
    return memoryview(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("messages", "beginning", "opening", "earlier"),
    [
        ([USER], [], USER, []),
        ([SYSTEM, USER], [SYSTEM], USER, []),
        ([SYSTEM, USER, LATER], [SYSTEM], USER, []),
        ([SYSTEM, USER, ANSWER, LATER], [SYSTEM], USER, [SYSTEM, USER, ANSWER]),
        # What tools said comes after the last answer as well.
        ([USER, ANSWER, TOOL, TOOL], [], USER, [USER, ANSWER]),
        ([USER, CALL, OUTPUT], [], USER, [USER, CALL]),
        ([USER, CALL, OUTPUT, LATER], [], USER, [USER, CALL]),
        # An answer that the client began is continued.
        ([USER, ANSWER], [], USER, []),
        ([USER, ANSWER, LATER, ANSWER], [], USER, [USER, ANSWER]),
        ([ANSWER, USER], [ANSWER], USER, [ANSWER]),
        ([QUOTED, LATER], [], QUOTED, []),
        ([{"role": 7}, USER, 3], [{"role": 7}], USER, []),
    ],
)
def test_parts_of_a_conversation(
    messages: list[Any], beginning: list[Any], opening: Any, earlier: list[Any]
) -> None:
    parts = conversation_parts([text_of("tools"), text_of(messages)])
    texts = ["tools", *beginning, opening]
    assert parts.pieces[: parts.first + 1] == [*map(text_of, texts)]
    assert parts.earlier == (1 + len(earlier) if earlier else 0)
    assert parts.pieces[1 : parts.earlier] == [*map(text_of, earlier)]


@pytest.mark.parametrize("value", ["Why?", [SYSTEM], {"role": "user"}, None, 7, []])
def test_what_has_no_user_message_opens_as_a_whole(value: Any) -> None:
    text = text_of(value)
    assert conversation_parts([text]) == ([text], 0, 0)


def test_of_a_prompt_without_messages_the_beginning_counts() -> None:
    text = text_of(["x" * 9000])
    assert conversation_parts([text], 4096) == ([text[:4096]], 0, 0)


def test_a_conversation_with_very_many_messages_has_an_earlier_part() -> None:
    messages = [USER, ANSWER] * 5000
    parts = conversation_parts([text_of(messages)])
    assert parts.pieces[parts.first] == text_of(USER)
    assert parts.earlier > 2000
