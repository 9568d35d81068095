"""State that a model made in a chat, as providers get it with the next request."""

from typing import Any

import pytest

from tests.gateway.outside.test_bodies import CHAT, refused, sent
from tests.gateway_builders import an_offered_provider, an_outside_model

CALL = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "12:00"}
QUESTION = {"role": "user", "content": "What time is it?"}
DEEPSEEK, KIMI = "https://api.deepseek.com/v1", "https://api.moonshot.ai/v1"
ZAI, MISTRAL = "https://api.z.ai/api/paas/v4", "https://api.mistral.ai/v1"
PLAIN, GROQ = "https://acme.example/v1", "https://api.groq.com/openai/v1"


def at(base_url: str, **fields: Any) -> Any:
    """Return a model of a provider at an address."""
    return an_outside_model(provider=an_offered_provider(base_url=base_url), **fields)


def a_turn(**reasoning: Any) -> list[Any]:
    """Return a turn that called a tool after this reasoning."""
    call = {"role": "assistant", "content": "", **reasoning, "tool_calls": [CALL]}
    return [QUESTION, call, RESULT]


@pytest.mark.parametrize("base_url", [DEEPSEEK, KIMI, ZAI])
@pytest.mark.parametrize("reasons", [False, True])
def test_reasoning_goes_back_where_the_dialect_wants_it(base_url: str, reasons: bool) -> None:
    turn = a_turn(reasoning_content="I have to call now().")
    body = sent(CHAT, messages=turn, model=at(base_url, reasoning=reasons))
    assert body["messages"] == turn
    assert "thinking" not in body
    answered = {"role": "assistant", "content": "12:00", "reasoning_content": "I know."}
    # An answer within a turn of tools has some, a turn without tools has none.
    body = sent(CHAT, messages=[*turn, answered, QUESTION, answered], model=at(base_url))
    assert ["reasoning_content" in each for each in body["messages"][3:]] == [True, False, False]


@pytest.mark.parametrize("base_url", [PLAIN, MISTRAL])
def test_no_other_provider_gets_reasoning(base_url: str) -> None:
    turn = a_turn(reasoning_content="I have to call now().", reasoning="So I do.")
    assert sent(CHAT, messages=turn, model=at(base_url))["messages"] == a_turn()


@pytest.mark.parametrize("base_url", [DEEPSEEK, KIMI])
def test_calls_without_reasoning_are_asked_without_thinking(base_url: str) -> None:
    asked = {"thinking": {"type": "enabled"}, "reasoning_effort": "high"}
    body = sent(CHAT, messages=a_turn(reasoning="Hm"), model=at(base_url), **asked)
    assert (body["messages"], body["thinking"]) == (a_turn(), {"type": "disabled"})
    assert "reasoning_effort" not in body
    # A model that does not think has no such switch.
    assert "thinking" not in sent(CHAT, messages=a_turn(), model=at(base_url, reasoning=False))


def test_a_switch_of_thinking_passes_where_the_dialect_has_one() -> None:
    asked = {"thinking": {"type": "disabled"}}
    assert sent(CHAT, model=at(DEEPSEEK), **asked)["thinking"] == asked["thinking"]
    for model in (at(PLAIN), at(DEEPSEEK, reasoning=False)):
        assert "thinking" not in sent(CHAT, model=model, **asked)


def test_fields_that_a_dialect_names_otherwise_have_its_names() -> None:
    model = at(MISTRAL, output_limit_field="max_completion_tokens")
    asked = {"max_completion_tokens": 50, "seed": 7, "stream": True, "verbosity": "medium"}
    body = sent(CHAT, model=model, messages=[{**QUESTION, "name": "ann"}], **asked)
    assert body == {
        **{"model": "large-1", "messages": [QUESTION], "stream": True},
        **{"max_tokens": 50, "random_seed": 7},
    }


def test_fields_that_a_dialect_refuses_skip_it_unless_they_have_no_effect() -> None:
    assert refused(CHAT, model=at(GROQ), logprobs=True).startswith("logprobs: ")
    assert "logprobs" not in sent(CHAT, model=at(GROQ), logprobs=False)
