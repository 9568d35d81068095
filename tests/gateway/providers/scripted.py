"""Providers as their documentation has them: prices, what they take, what they answer, their bills.

Nothing here knows the product. A script counts a body, and its bill follows from the prices of the
provider's own page, in decimals.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from tests.gateway.providers.recorded import STEPS, Step

Json = dict[str, Any]
Kind = Literal[
    "NoCredit", "BadKey", "RateLimited", "ContextTooLong", "Overloaded", "Filtered", "ModelGone"
]
CREATED = 1_764_500_000
_MILLION = Decimal(10**6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What one answer takes, as the provider's documentation means it."""

    prompt: int
    """All of the prompt: what a cache had or got is part of it."""
    cached: int = 0
    written: int = 0
    """Part of the prompt that a cache got for 5 minutes."""
    long_written: int = 0
    """The same, for an hour."""
    output: int
    """All of the answer: its reasoning is part of it."""
    reasoning: int | None = None
    """None where the provider does not tell it apart."""
    searches: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """USD of a million tokens, or of one search, on the page of a provider."""

    input: str
    cached: str
    output: str
    written: str | None = None
    long_written: str | None = None
    search: str | None = None
    above: int | None = None
    """Tokens of a prompt above which all of its request has the long prices."""
    long_input: str = ""
    long_cached: str = ""
    long_output: str = ""

    def bill(self, tokens: Tokens) -> Decimal:
        """Return what the provider bills for one answer, in USD."""
        is_long = self.above is not None and tokens.prompt > self.above
        new, cached, output = (
            (self.long_input, self.long_cached, self.long_output)
            if is_long
            else (self.input, self.cached, self.output)
        )
        written = tokens.written + tokens.long_written
        parts = [
            (tokens.prompt - tokens.cached - written, new),
            (tokens.cached, cached),
            (tokens.written, self.written or new),
            (tokens.long_written, self.long_written or self.written or new),
            (tokens.output, output),
        ]
        whole = sum((count * Decimal(price) for count, price in parts), Decimal(0)) / _MILLION
        return whole + tokens.searches * Decimal(self.search or 0)

    def cost(self) -> Json:
        """Return the same as `cost` of a model of a ModelProvider."""
        cost: Json = {"input": self.input, "cachedInput": self.cached, "output": self.output}
        optional = (
            ("cacheWrite", self.written),
            ("longCacheWrite", self.long_written),
            ("search", self.search),
        )
        cost |= {name: price for name, price in optional if price is not None}
        if self.search is not None:
            cost["maxSearches"] = 5
        if self.above is not None:
            cost["steps"] = [
                {
                    "aboveInputTokens": self.above,
                    "input": self.long_input,
                    "cachedInput": self.long_cached,
                    "output": self.long_output,
                }
            ]
        return cost


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as the provider writes it."""

    status: int
    body: object
    headers: Mapping[str, str] = field(default_factory=dict)
    """By names with `_` for `-`."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is whole, or the bytes of a stream, with what it takes."""

    tokens: Tokens
    whole: Json
    events: Sequence[bytes]


@dataclass(kw_only=True)
class Script:
    """One provider: `check` refuses as it would, `reply` answers as it would."""

    name: str
    model: str
    path: str = "/v1"
    """What stands in front of the path of its protocol."""
    protocol: Literal["OpenAIChat", "AnthropicMessages"] = "OpenAIChat"
    dialect: str = ""
    """Name of its row; empty for a provider that nobody knows."""
    prices: Prices
    spec: Json = field(default_factory=dict)
    """Fields of its model in a ModelProvider that differ."""
    check: Callable[[Json], Refusal | None]
    reply: Callable[[Json, str], Reply]
    errors: Mapping[Kind, Refusal]
    options: Json = field(default_factory=dict)
    """What its clients ask for beside messages and tools."""
    outage: "Refusal | Sequence[bytes] | None" = None
    """What it answers to everything while that lasts: an error, or events of a stream."""
    fails: dict[int, Refusal] = field(default_factory=dict)
    """What it answers to a conversation with so many turns of an assistant."""
    refused: list[tuple[Refusal, Json]] = field(default_factory=list)
    """What it refused by itself, with the bodies."""
    bodies: list[Json] = field(default_factory=list)
    """What it answered."""
    answered: list[Tokens] = field(default_factory=list)

    def answer(self, body: Json) -> Refusal | Reply | Sequence[bytes]:
        """Return what it sends to a body; events are of a stream."""
        if self.outage is not None:
            return self.outage
        if failure := self.fails.get(turns_of(body)):
            return failure
        refusal = self.check(body)
        if refusal is not None:
            self.refused.append((refusal, body))
            return refusal
        reply = self.reply(body, self.model)
        self.bodies.append(body)
        self.answered.append(reply.tokens)
        return reply


def prompt_tokens(body: Json) -> int:
    """Return the tokens of a prompt: two bytes of its body each."""
    return len(json.dumps(body)) // 2


def turns_of(body: Json) -> int:
    """Return how often the assistant has spoken."""
    return sum(message["role"] == "assistant" for message in body["messages"])


def step_of(body: Json) -> Step:
    """Return what the model says next in the recorded loop; without tools, its last words."""
    return STEPS[min(turns_of(body), len(STEPS) - 1)] if body.get("tools") else STEPS[-1]


def unknown(value: Mapping[str, Any], known: str) -> list[str]:
    """Return the fields that are not among these names."""
    return sorted(set(value) - set(known.split()))


def assistant_calls(body: Json) -> Iterable[tuple[int, Json]]:
    """Return the messages of the assistant that call tools, with their places."""
    for place, message in enumerate(body["messages"]):
        if message["role"] == "assistant" and message.get("tool_calls"):
            yield place, message


def error(message: str, kind: str, code: object = None, param: str | None = None) -> Json:
    """Return an error in the form of OpenAI."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def event(data: object, name: str = "") -> bytes:
    """Return an event of a stream."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


DONE = b"data: [DONE]\n\n"
