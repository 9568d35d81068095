"""A route over three targets, and its clients with the packages of two APIs."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import anthropic
import httpx
import httpx2
import openai

from demo.cluster import Ref
from demo.tenants import apply_spec
from scenarios.actions import ScenarioNamespace
from scenarios.gateway import Gateway
from scenarios.lifecycle import list_replicas
from scenarios.streams import kubectl_scale
from tessera.adapters.clock import now
from world.testing import eventually

# What each target is asked for by the rules of `spec`, the cheapest first.
PROMPTS: Mapping[str, str] = {
    "small": "What is a tessera?",
    "middle": "Compare mosaics with frescoes.",
    "large": "Analyze mosaics and compare them with frescoes, step by step.",
}
TARGETS = tuple(PROMPTS)
ROUTE = "assistant"
# USD for a million tokens of input and of output.
PRICES: Mapping[str, tuple[int, int]] = {
    "small": (1, 4),
    "middle": (10, 40),
    "large": (100, 400),
}
PATIENCE_SECONDS = 180
# So that some requests are always under way.
LOAD_SECONDS = 4
# So that engines are at work when they are killed.
_STEP_SECONDS = 0.04
_TOKENS, _MAX_PAUSE_SECONDS, _TIMEOUT_SECONDS = 24, 0.8, 120
_HTTP_ERRORS = (httpx.HTTPError, httpx2.HTTPError)


def route_spec(**last: Any) -> dict[str, Any]:
    """Return a route of three services, or of two and another last target, by a score."""
    return {
        "targets": [
            {"service": "small", "when": {"maxScore": 1}},
            {"service": "middle", "when": {"maxScore": 2}},
            last or {"service": "large"},
        ]
    }


async def apply_route(namespace: ScenarioNamespace, **last: Any) -> None:
    """Apply the route, as a user would."""
    ref = namespace.ref(ROUTE)
    await apply_spec(namespace.cluster, "ModelRoute", "modelroutes", ref, route_spec(**last))


async def apply_target(namespace: ScenarioNamespace, name: str, revision: str = "1") -> None:
    """Apply a service; another revision rolls it."""
    env = [
        {"name": "TESSERA_SIM_SPEED", "value": json.dumps({"weights": _STEP_SECONDS})},
        {"name": "REVISION", "value": revision},
    ]
    # Machines that play scenes are busy, and these are about targets that do not answer.
    slo = {"ttftP95": "10s", "itlP95": "500ms"}
    await namespace.apply_service(name, replicas=1, slo=slo, podTemplate={"env": env})


async def set_prices(namespace: ScenarioNamespace, **names: str) -> None:
    """Give each target its price, by the name that it has in price lists if that differs."""
    entries = [
        {
            "from": f"{now():%Y-%m-%d}",
            "models": [names.get(target, target)],
            "input": str(of_input),
            "output": str(of_output),
        }
        for target, (of_input, of_output) in PRICES.items()
    ]
    spec = {"currency": "USD", "entries": entries}
    await apply_spec(namespace.cluster, "PriceList", "pricelists", Ref("", "test"), spec)


async def wait_until_charged(gateway: Gateway) -> None:
    """Wait until each target's answer has its charge: a price counts a minute after it was
    seen."""
    await eventually(partial(_is_charged, gateway), within=PATIENCE_SECONDS)


async def _is_charged(gateway: Gateway) -> None:
    async with gateway.client() as client:
        for target, text in PROMPTS.items():
            try:
                raw = await client.chat.completions.with_raw_response.create(
                    model=ROUTE, messages=[{"role": "user", "content": text}], max_tokens=2
                )
            except openai.APIStatusError as error:
                raise AssertionError(str(error)) from error
            assert raw.headers.get("x-tessera-target") == target
            assert "x-tessera-charge" in raw.headers


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

    async def wait_for_answer(self, since: float, wanted: str, target: str) -> None:
        """Wait until a request sent after a time, for one target, is answered by another."""

        async def is_answered() -> None:
            begun = [each for each in self.since(since, wanted) if each.pieces]
            assert target in {each.target for each in begun}, Counter(each.target for each in begun)

        await eventually(is_answered, within=PATIENCE_SECONDS)

    async def wait_for_each(self, since: float) -> None:
        """Wait until each target answers requests that the rules give it."""
        for target in TARGETS:
            await self.wait_for_answer(since, target, target)

    def last_replica(self, target: str) -> str:
        """Return the replica of the last answer of a target."""
        return next(
            each.headers["x-tessera-replica"]
            for each in reversed(self.answers)
            if each.target == target and each.is_whole
        )


async def kill_and_stop(namespace: ScenarioNamespace, clients: RouteClients) -> None:
    """Kill the first target, and scale the second one to zero and back, under all clients."""
    cluster = namespace.cluster
    await clients.wait_for_each(0)
    await asyncio.sleep(LOAD_SECONDS)

    killed_at = time.monotonic()
    cluster.world.kill(namespace.name, clients.last_replica("small"), "engine")
    await clients.wait_for_answer(killed_at, "small", "middle")
    await clients.wait_for_each(killed_at)

    stopped_at = time.monotonic()
    middle = namespace.ref("middle")
    await kubectl_scale(cluster, middle, 0)
    await clients.wait_for_answer(stopped_at, "middle", "large")
    await asyncio.sleep(LOAD_SECONDS)
    await kubectl_scale(cluster, middle, 1)
    await clients.wait_for_each(time.monotonic())


async def roll(namespace: ScenarioNamespace, clients: RouteClients, target: str) -> None:
    """Roll a target under all clients."""
    replica = clients.last_replica(target)
    await apply_target(namespace, target, revision="2")

    async def is_rolled() -> None:
        assert clients.last_replica(target) != replica
        assert replica not in [pod["metadata"]["name"] for pod in await list_replicas(namespace)]

    await eventually(is_rolled, within=PATIENCE_SECONDS)
    await clients.wait_for_each(time.monotonic())


def price_of(row: Mapping[str, Any], prices: tuple[int, int]) -> int:
    """Return what the tokens of a record are at a price, in nano-units."""
    of_input, of_output = prices
    # A million tokens for a dollar are a thousand nanodollars for a token.
    return 1000 * (int(row["input_tokens"]) * of_input + int(row["output_tokens"]) * of_output)
