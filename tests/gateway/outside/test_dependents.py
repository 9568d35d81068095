"""Parts of a body that depend on others: what is left out takes them along."""

from typing import Any

import pytest

from tests.gateway.outside.test_bodies import CHAT, MESSAGES, RESPONSES, sent

FUNCTION: dict[str, Any] = {
    CHAT: {"type": "function", "function": {"name": "f", "parameters": {}}},
    RESPONSES: {"type": "function", "name": "f", "parameters": {}, "strict": True},
    MESSAGES: {"name": "f", "input_schema": {"type": "object"}},
}
SEARCH: dict[str, Any] = {
    CHAT: {"type": "web_search"},
    RESPONSES: {"type": "web_search"},
    MESSAGES: {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
}


@pytest.mark.parametrize(
    ("path", "tools", "choice"),
    [
        (CHAT, [], "auto"),
        (CHAT, [SEARCH[CHAT]], "auto"),
        (RESPONSES, [SEARCH[RESPONSES]], "auto"),
        (RESPONSES, [SEARCH[RESPONSES]], {"type": "web_search"}),
        (MESSAGES, [SEARCH[MESSAGES]], {"type": "tool", "name": "web_search"}),
    ],
)
def test_without_tools_nothing_is_chosen(path: str, tools: list[Any], choice: Any) -> None:
    given: dict[str, Any] = {"tools": tools, "tool_choice": choice}
    if path != MESSAGES:
        given["parallel_tool_calls"] = True
    assert sent(path, **given) == sent(path)


@pytest.mark.parametrize(
    ("path", "choice", "right"),
    [
        (RESPONSES, {"type": "web_search"}, "auto"),
        (
            RESPONSES,
            {"type": "allowed_tools", "mode": "required", "tools": [SEARCH[RESPONSES]]},
            "auto",
        ),
        (
            MESSAGES,
            {"type": "tool", "name": "web_search", "disable_parallel_tool_use": True},
            {"type": "auto", "disable_parallel_tool_use": True},
        ),
        (MESSAGES, {"type": "tool", "name": "f"}, {"type": "tool", "name": "f"}),
        (CHAT, "required", "required"),
    ],
)
def test_a_tool_that_was_left_out_is_not_chosen(path: str, choice: Any, right: Any) -> None:
    tools = [FUNCTION[path], SEARCH[path]]
    body = sent(path, tools=tools, tool_choice=choice)
    assert (body["tools"], body["tool_choice"]) == ([FUNCTION[path]], right)


def test_of_the_tools_that_are_allowed_those_that_pass_stay() -> None:
    named = {"type": "function", "name": "f"}
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [SEARCH[RESPONSES], named]}
    tools = [FUNCTION[RESPONSES], SEARCH[RESPONSES]]
    body = sent(RESPONSES, tools=tools, tool_choice=choice)
    assert body["tool_choice"] == {**choice, "tools": [named]}


def test_without_functions_none_is_called() -> None:
    assert sent(CHAT, functions=[], function_call="auto") == sent(CHAT)
    assert sent(CHAT, function_call="none") == sent(CHAT)
