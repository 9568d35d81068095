"""A load of completions, each over its own connection, so that new replicas get their share."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import httpx

# The simulator counts four characters as a token.
_WORD = "tile"
_NUMBER_TOKENS = 2
_PROMPT_TOKENS = 250
# A request may wait for all that came before it, on a busy machine.
_TIMEOUT_SECONDS = 300


class LoadCounts:
    """The outcomes of the requests of a load."""

    def __init__(self) -> None:
        self.finished = 0
        self.tokens = 0
        self.failures: list[str] = []


@contextlib.asynccontextmanager
async def steady_load(
    base: str,
    model: str,
    *,
    clients: int,
    tokens: int,
    prompt_tokens: int = _PROMPT_TOKENS,
    pause: float = 0.0,
) -> AsyncIterator[LoadCounts]:
    """Run `clients` that each send the next request after an answer, for the time of the block.

    Every prompt begins with a number of its own, so that no prefix cache takes the load away.
    """
    async with _connections(base) as http:
        client = _Client(http, model, tokens, prompt_tokens, pause)
        async with client.running(clients) as load:
            yield load


@contextlib.asynccontextmanager
async def load_with_key(
    base: str, model: str, key: str, *, clients: int, tokens: int, pause: float = 0.0
) -> AsyncIterator[LoadCounts]:
    """Run such clients at a gateway, which knows them by a key."""
    async with _connections(base, Authorization=f"Bearer {key}") as http:
        client = _Client(http, model, tokens, _PROMPT_TOKENS, pause)
        async with client.running(clients) as load:
            yield load


def _connections(base: str, **headers: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_keepalive_connections=0, max_connections=None)
    return httpx.AsyncClient(
        base_url=base, headers=headers, limits=limits, timeout=_TIMEOUT_SECONDS
    )


@dataclass(frozen=True, slots=True)
class _Client:
    """What each client does."""

    http: httpx.AsyncClient
    model: str
    tokens: int
    prompt_tokens: int
    pause: float

    @contextlib.asynccontextmanager
    async def running(self, clients: int) -> AsyncIterator[LoadCounts]:
        load, numbers = LoadCounts(), itertools.count()
        tasks = [asyncio.create_task(self._run(load, numbers)) for _ in range(clients)]
        try:
            yield load
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, load: LoadCounts, numbers: Iterator[int]) -> None:
        body = {"model": self.model, "max_tokens": self.tokens, "ignore_eos": True}
        while True:
            prompt = f"{next(numbers):>8}{_WORD * (self.prompt_tokens - _NUMBER_TOKENS)}"
            await _send_request(self.http, {**body, "prompt": prompt}, load)
            await asyncio.sleep(self.pause)


async def _send_request(http: httpx.AsyncClient, body: dict[str, object], load: LoadCounts) -> None:
    try:
        response = await http.post("/v1/completions", json=body)
        response.raise_for_status()
        load.tokens += response.json()["usage"]["completion_tokens"]
        load.finished += 1
    except (httpx.HTTPError, ValueError, KeyError) as error:
        load.failures.append(f"{type(error).__name__}: {error}")
        await asyncio.sleep(0.1)
