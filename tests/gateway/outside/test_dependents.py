"""Parts of a body that depend on others: what is left out takes them along."""

from typing import Any

import pytest

from tessera.gateway.bodies.signed import thinking_mark
from tests.gateway.outside.test_bodies import CHAT, MESSAGES, RESPONSES, sent
from tests.gateway_builders import an_offered_provider, an_outside_model

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


def thinking(limit: int, budget: int, *, asked: int | None = None) -> Any:
    """Return the thinking that is asked for under a limit of an answer."""
    asked_thinking = {"type": "enabled", "budget_tokens": budget}
    body = sent(MESSAGES, most=limit, max_tokens=asked, thinking=asked_thinking, model=LARGE)
    assert body["max_tokens"] == min(limit, asked or limit)
    return body.get("thinking", {}).get("budget_tokens")


LARGE = an_outside_model(max_output_tokens=16_000)


def test_the_budget_of_thinking_follows_a_lower_limit_of_the_answer() -> None:
    asked = {"type": "enabled", "budget_tokens": 24_000, "display": "omitted"}
    capped = sent(MESSAGES, most=10**6, max_tokens=32_000, thinking=asked, model=LARGE)
    assert capped["max_tokens"] == 16_000
    assert capped["thinking"] == {**asked, "budget_tokens": 12_000}
    # Money lowers the limit more.
    assert thinking(4000, 24_000, asked=32_000) == 3000
    assert thinking(1200, 24_000, asked=32_000) == 1024
    assert thinking(1025, 24_000, asked=32_000) == 1024
    assert thinking(1024, 24_000, asked=32_000) is None
    # A target set `max_tokens` before.
    assert thinking(16_000, 24_000, asked=8000) == 6000


def test_a_budget_below_the_limit_that_was_asked_for_stays() -> None:
    assert thinking(16_000, 2000, asked=4000) == 2000
    assert thinking(4000, 2000) == 2000
    adaptive = {"type": "adaptive"}
    assert sent(MESSAGES, thinking=adaptive)["thinking"] == adaptive


def a_loop(*thoughts: Any) -> list[Any]:
    """Return a conversation that calls a tool after these thoughts."""
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "12:00"}
    return [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": [*thoughts, call]},
        {"role": "user", "content": [result]},
    ]


def test_a_loop_of_tools_that_another_model_began_goes_on_without_thinking() -> None:
    foreign = {"type": "thinking", "thinking": "I call f.", "signature": "b3du"}
    own = {**foreign, "signature": MARK + "b3du"}
    asked: dict[str, Any] = {
        **{"max_tokens": 4000, "thinking": {"type": "enabled", "budget_tokens": 2000}},
        "tools": [FUNCTION[MESSAGES]],
    }
    body = sent(MESSAGES, most=4000, messages=a_loop(foreign), **asked)
    assert "thinking" not in body
    assert body["messages"] == a_loop()
    for messages in (a_loop(own), [*a_loop(foreign), *a_loop(own)], [*a_loop(), *an_answer()]):
        assert sent(MESSAGES, most=4000, messages=messages, **asked)["thinking"]
    asked["thinking"] = {"type": "adaptive"}
    assert sent(MESSAGES, messages=a_loop(foreign), **asked)["thinking"] == asked["thinking"]


def an_answer() -> list[Any]:
    return [{"role": "assistant", "content": "12:00"}, {"role": "user", "content": "Thanks"}]


MARK = thinking_mark(an_offered_provider()).decode()


def test_what_has_nothing_left_to_say_is_left_out() -> None:
    answer = {"role": "assistant", "content": "", "reasoning": "Hm"}
    assert sent(CHAT, messages=[*QUESTION, answer, *QUESTION])["messages"] == QUESTION * 2
    empty = {"role": "assistant", "content": [{"type": "text", "text": ""}]}
    body = sent(MESSAGES, messages=[*QUESTION, empty, *QUESTION], system=empty["content"])
    assert body == sent(MESSAGES, messages=QUESTION * 2)


def test_log_probabilities_of_others_need_those_of_the_answer() -> None:
    assert sent(CHAT, top_logprobs=3) == sent(CHAT)
    assert sent(CHAT, top_logprobs=3, logprobs=True)["top_logprobs"] == 3
    included = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    plain = an_outside_model(reasoning=False)
    assert sent(RESPONSES, include=included, model=plain)["include"] == included[:1]
    assert sent(RESPONSES, include=["file_search_call.results"]) == sent(RESPONSES)


QUESTION: list[Any] = [{"role": "user", "content": "Hello"}]
