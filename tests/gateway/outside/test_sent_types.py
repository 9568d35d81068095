"""Bodies that leave for providers are bodies that the types of their packages accept."""

import json
import random
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin

import pytest
from anthropic.types import message_create_params
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params
from typing_extensions import get_type_hints, is_typeddict

from tessera.domain.providers.dialects import dialect_of
from tessera.gateway.bodies.signed import thinking_mark
from tests.gateway.outside.test_bodies import CACHE_WRITE, CHAT, MESSAGES, RESPONSES, sent
from tests.gateway_builders import an_offered_provider, an_outside_model

# One of each pair has the body of a stream.
TYPES: Mapping[str, Any] = {
    CHAT: completion_create_params.CompletionCreateParams,
    RESPONSES: response_create_params.ResponseCreateParams,
    MESSAGES: message_create_params.MessageCreateParams,
}
# The fields of `ChatCompletionRequest` and of its messages in mistralai 3.7.0.
MISTRAL = """
model messages temperature top_p max_tokens stream stop random_seed metadata response_format tools
tool_choice presence_penalty frequency_penalty min_tokens repetition_penalty top_k logprobs
top_logprobs n prediction parallel_tool_calls reasoning_effort prompt_mode
"""
MISTRAL_MESSAGE = "role content tool_calls tool_call_id prefix"


def accepts(kind: Any, value: Any, own: Callable[[Any], Any]) -> bool:
    """Return whether a type has a value, and all of its keys but those that `own` takes out."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Required, NotRequired, Annotated):
        return accepts(inner[0], value, own)
    if origin in (Union, types.UnionType):
        return any(accepts(each, value, own) for each in inner)
    if origin is Literal:
        return value in inner
    if kind is object:
        return True
    return _accepts_plain(kind, value, own)


def _accepts_plain(kind: Any, value: Any, own: Callable[[Any], Any]) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    match value:
        case dict() if is_typeddict(kind):
            return _has_keys(kind, own(value), own)
        case dict():
            return origin in (dict, Mapping)
        case list():
            is_list = origin is list or re.search("Sequence|Iterable", str(origin))
            return bool(is_list) and all(accepts(inner[0], each, own) for each in value)
        case int() if kind is float:
            return not isinstance(value, bool)
    return type(value) is kind


def _has_keys(kind: Any, value: dict[str, Any], own: Callable[[Any], Any]) -> bool:
    hints = get_type_hints(kind, include_extras=True)
    return kind.__required_keys__ <= value.keys() and all(
        name in hints and accepts(hints[name], each, own) for name, each in value.items()
    )


PLAIN = an_offered_provider()
PROVIDERS = {
    "plain": PLAIN,
    "deepseek": an_offered_provider(base_url="https://api.deepseek.com/v1"),
    "openrouter": an_offered_provider(base_url="https://openrouter.ai/api/v1"),
    "mistral": an_offered_provider(base_url="https://api.mistral.ai/v1"),
}


class Bodies:
    """Draws bodies, as clients write them that speak to several models."""

    def __init__(self, seed: int, mark: str) -> None:
        self._random = random.Random(seed)  # noqa: S311 - bodies, no keys
        self._mark = mark

    def some(self, **fields: Any) -> dict[str, Any]:
        """Return some of these fields."""
        return {name: each for name, each in fields.items() if self._random.random() < 0.5}

    def choice(self, *values: Any) -> Any:
        return self._random.choice(values)

    def signature(self) -> str:
        return f"{self.choice('', self._mark)}EqQB"

    def many(self, *draws: Callable[[], Any]) -> list[Any]:
        return [self.choice(*draws)() for _ in range(self._random.randrange(4))]

    def chat(self) -> dict[str, Any]:
        function = {"name": "f", "parameters": {"type": "object"}, "x-own": 1}
        named = {"type": "function", "function": {"name": "f"}}
        return {
            "messages": [{"role": "user", "content": "Hi"}, *self.many(self._turn, self._loop)],
            **self.some(
                tools=self.many(
                    lambda: {"type": "function", "function": dict(function)},
                    lambda: {"type": "web_search"},
                ),
                tool_choice=self.choice("auto", "required", named),
                parallel_tool_calls=True,
                functions=[],
                function_call="auto",
                stream=self.choice(True, False),
                logprobs=True,
                top_logprobs=2,
                reasoning_effort="high",
                thinking={"type": "enabled"},
                max_completion_tokens=5000,
                seed=7,
            ),
        }

    def _state(self) -> dict[str, Any]:
        return self.some(
            reasoning="Hm",
            reasoning_content="Hm",
            reasoning_details=self.many(
                lambda: {"type": "reasoning.text", "text": "Hm", "signature": self.signature()},
                lambda: {"type": "reasoning.encrypted", "data": self.signature(), "id": None},
                lambda: {"type": "reasoning.summary", "summary": "Hm"},
            ),
        )

    def _turn(self) -> dict[str, Any]:
        content = self.choice("", "Well", None, [{"type": "text", "text": "Well", "x": 1}])
        return {"role": "assistant", "content": content, **self._state(), **self.some(x=1)}

    def _loop(self) -> dict[str, Any]:
        google = {"google": {"thought_signature": self.signature()}}
        function = {"name": "f", "arguments": "{}", **self.some(x=1)}
        call = {"id": "1", "type": "function", "function": function}
        return {
            **{"role": "assistant", **self._state()},
            "tool_calls": [call | self.some(extra_content=google, index=0)],
        }

    def messages(self) -> dict[str, Any]:
        cache = self.some(cache_control={"type": "ephemeral", "ttl": "1h"})
        text = {"type": "text", "text": self.choice("", "Hi"), "citations": None, **cache}
        search = {"type": "web_search_20250305", "name": "web_search", **cache}
        tool = {"name": "f", "input_schema": {"type": "object"}, **cache}
        budget = self.choice(1024, 3000, 9000)
        return {
            "max_tokens": self.choice(1000, 3000, 10_000),
            "messages": [
                {"role": "user", "content": "Hi"},
                *(each for _ in range(3) for each in self._pair(text)),
            ],
            **self.some(
                system=[text],
                tools=self.many(lambda: tool, lambda: search),
                tool_choice=self.choice(
                    {"type": "auto"}, {"type": "tool", "name": self.choice("f", "web_search")}
                ),
                thinking={"type": "enabled", "budget_tokens": budget},
            ),
        }

    def _pair(self, text: Any) -> Iterable[Any]:
        thinking = {"type": "thinking", "thinking": "Hm", "signature": self.signature()}
        use: Any = {"type": "tool_use", "id": "1", "name": "f", "input": {}, "caller": None}
        result = {"type": "tool_result", "tool_use_id": "1", "content": [text]}
        blocks = self.many(lambda: thinking, lambda: text)
        yield {"role": "assistant", "content": [*blocks, use]}
        yield {"role": "user", "content": [result]}

    def responses(self) -> dict[str, Any]:
        function = {"type": "function", "name": "f", "parameters": {}, "strict": True}
        search = {"type": "web_search"}
        reasoning = {"type": "reasoning", "id": "rs_1", "summary": []}
        call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}", "id": "x"}
        return {
            "input": [
                {"role": "user", "content": "Hi"},
                *self.many(lambda: {**reasoning, "encrypted_content": self.signature()}),
                call,
                {"type": "function_call_output", "call_id": "1", "output": "42"},
            ],
            **self.some(
                tools=self.many(lambda: function, lambda: search),
                tool_choice=self.choice("auto", search, {"type": "function", "name": "f"}),
                parallel_tool_calls=False,
                reasoning={"effort": "high"},
                include=["reasoning.encrypted_content", "web_search_call.results"],
            ),
        }


def without_own(names: set[str]) -> Callable[[Any], Any]:
    return lambda value: {name: each for name, each in value.items() if name not in names}


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
@pytest.mark.parametrize("name", PROVIDERS)
def test_what_leaves_is_what_the_types_of_the_packages_accept(path: str, name: str) -> None:
    provider = PROVIDERS[name]
    dialect = dialect_of(provider.spec)
    own = {"extra_content", "reasoning_details", *dialect.own_fields, *dialect.returned_reasoning}
    own |= set(dialect.renamed_fields.values())
    model = an_outside_model(provider=provider, cost=CACHE_WRITE, max_output_tokens=6000)
    for seed in range(60):
        bodies = Bodies(seed, thinking_mark(provider).decode())
        draw = {CHAT: bodies.chat, RESPONSES: bodies.responses, MESSAGES: bodies.messages}
        body = sent(path, most=10**6, model=model, **draw[path]())
        taken = body if path == MESSAGES else without_own(own)(body)
        if path == CHAT:
            taken.setdefault("max_tokens", 1)
        assert accepts(TYPES[path], taken, without_own(own if path == CHAT else set())), body
        assert "tools" in body or not {"tool_choice", "parallel_tool_calls"} & body.keys()
        assert thinking_mark(provider).decode() not in json.dumps(body)
        if path == MESSAGES and "thinking" in body:
            assert body["thinking"]["budget_tokens"] < body["max_tokens"], body
        if path == CHAT and name == "mistral":
            assert body.keys() <= set(MISTRAL.split())
            assert all(each.keys() <= set(MISTRAL_MESSAGE.split()) for each in body["messages"])
