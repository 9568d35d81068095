"""Clients of a route, with the packages of two APIs, as streams and as whole answers."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import Random
from typing import Any

import anthropic
import httpx
import httpx2
import openai

# What each target is asked for by the rules of `spec`, the cheapest first.
PROMPTS: Mapping[str, str] = {
    "small": "What is a tessera?",
    "middle": "Compare mosaics with frescoes.",
    "large": "Analyze mosaics and compare them with frescoes, step by step.",
}
TARGETS = tuple(PROMPTS)
ROUTE = "assistant"
_TOKENS, _MAX_PAUSE_SECONDS, _TIMEOUT_SECONDS = 24, 0.8, 120
_HTTP_ERRORS = (httpx.HTTPError, httpx2.HTTPError)


def route_spec() -> dict[str, Any]:
    """Return a route of three services by the score of requests."""
    return {
        "targets": [
            {"service": "small", "when": {"maxScore": 1}},
            {"service": "middle", "when": {"maxScore": 2}},
            {"service": "large"},
        ]
    }


@dataclass(slots=True)
class RoutedAnswer:
    """What a client got."""

    wanted: str
    """Target that the rules choose."""
    sent_at: float
    """Monotonic seconds."""
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: int = 0
    """Parts of the text."""
    is_whole: bool = False
    failure: str = ""

    @property
    def target(self) -> str:
        """Return the target that answered; empty where none says so."""
        return self.headers.get("x-tessera-target", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packages:
    """A client of each package at one gateway."""

    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic

    async def chat(self, answer: RoutedAnswer) -> None:
        raw = await self.openai.chat.completions.with_raw_response.create(
            model=ROUTE,
            messages=[{"role": "user", "content": PROMPTS[answer.wanted]}],
            max_tokens=_TOKENS,
        )
        answer.headers = raw.headers
        body = raw.parse()
        answer.pieces = int(bool(body.choices[0].message.content))
        answer.is_whole = body.choices[0].finish_reason is not None

    async def chat_stream(self, answer: RoutedAnswer) -> None:
        raw = await self.openai.chat.completions.with_raw_response.create(
            model=ROUTE,
            messages=[{"role": "user", "content": PROMPTS[answer.wanted]}],
            max_tokens=_TOKENS,
            stream=True,
        )
        answer.headers = raw.headers
        async for chunk in raw.parse():
            for choice in chunk.choices:
                answer.pieces += bool(choice.delta.content)
                answer.is_whole |= choice.finish_reason is not None

    async def message(self, answer: RoutedAnswer) -> None:
        raw = await self.anthropic.messages.with_raw_response.create(
            model=ROUTE,
            messages=[{"role": "user", "content": PROMPTS[answer.wanted]}],
            max_tokens=_TOKENS,
        )
        answer.headers = raw.headers
        body = await raw.parse()
        answer.pieces, answer.is_whole = len(body.content), body.stop_reason is not None

    async def message_stream(self, answer: RoutedAnswer) -> None:
        raw = await self.anthropic.messages.with_raw_response.create(
            model=ROUTE,
            messages=[{"role": "user", "content": PROMPTS[answer.wanted]}],
            max_tokens=_TOKENS,
            stream=True,
        )
        answer.headers = raw.headers
        async for event in await raw.parse():
            answer.pieces += event.type == "content_block_delta"
            answer.is_whole |= event.type == "message_stop"


@dataclass(kw_only=True)
class RouteClients:
    """Clients that ask a route until they are ended."""

    bases: Sequence[str]
    """URLs of the gateways, without a path."""
    key: str
    answers: list[RoutedAnswer] = field(default_factory=list)
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, number: int) -> None:
        """Ask with one package, at one gateway, streams or whole answers, by the number."""
        base = self.bases[number // 4 % len(self.bases)]
        async with AsyncExitStack() as stack:
            packages = _Packages(
                openai=await stack.enter_async_context(
                    openai.AsyncOpenAI(
                        base_url=f"{base}/v1",
                        api_key=self.key,
                        max_retries=0,
                        timeout=_TIMEOUT_SECONDS,
                    )
                ),
                anthropic=await stack.enter_async_context(
                    anthropic.AsyncAnthropic(
                        base_url=base, api_key=self.key, max_retries=0, timeout=_TIMEOUT_SECONDS
                    )
                ),
            )
            ways = (packages.chat, packages.chat_stream, packages.message, packages.message_stream)
            # Otherwise all would wait at once, and none be under way when an engine is killed.
            pauses, asked = Random(number), number  # noqa: S311 - no secret
            while not self._ended.is_set():
                await self.ask(ways[number % len(ways)], TARGETS[asked % len(TARGETS)])
                asked += 1
                await asyncio.sleep(pauses.uniform(0, _MAX_PAUSE_SECONDS))

    async def ask(self, way: Callable[[RoutedAnswer], Awaitable[None]], wanted: str) -> None:
        """Send a request, and note what came of it."""
        answer = RoutedAnswer(wanted, time.monotonic())
        try:
            await way(answer)
        except (openai.APIStatusError, anthropic.APIStatusError) as error:
            answer.headers, answer.failure = error.response.headers, str(error)
        except (openai.APIError, anthropic.APIError, *_HTTP_ERRORS) as error:
            answer.failure = f"{type(error).__name__}: {error}"
        if not answer.is_whole and not answer.failure:
            answer.failure = "it ended early"
        self.answers.append(answer)

    def end(self) -> None:
        """Let each client end after its present request."""
        self._ended.set()

    def since(self, time_begun: float, wanted: str) -> list[RoutedAnswer]:
        """Return the answers to requests for a target that were sent after a time."""
        return [
            answer
            for answer in self.answers
            if answer.wanted == wanted and answer.sent_at >= time_begun
        ]
