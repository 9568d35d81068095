"""A load of completions, each over its own connection, so that new replicas get their share."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import httpx

# The look-alike engine counts four characters as a token.
_WORD = "tile"
_NUMBER_TOKENS = 2


class Load:
    """Counts what became of the requests."""

    def __init__(self) -> None:
        self.finished = 0
        self.tokens = 0
        self.failures: list[str] = []


@contextlib.asynccontextmanager
async def steady(
    base: str,
    model: str,
    *,
    clients: int,
    tokens: int,
    prompt_tokens: int = 250,
    pause: float = 0.0,
) -> AsyncIterator[Load]:
    """`clients` that each ask again as soon as they were answered, for the time of the block.

    Every prompt begins with a number of its own, so that no prefix cache takes the load away.
    """
    load, numbers = Load(), itertools.count()
    body = {
        "model": model,
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    limits = httpx.Limits(max_keepalive_connections=0, max_connections=None)
    async with httpx.AsyncClient(base_url=base, limits=limits, timeout=120) as http:

        async def one() -> None:
            while True:
                prompt = f"{next(numbers):>8}{_WORD * (prompt_tokens - _NUMBER_TOKENS)}"
                await _ask(http, {**body, "prompt": prompt}, load)
                await asyncio.sleep(pause)

        tasks = [asyncio.create_task(one()) for _ in range(clients)]
        try:
            yield load
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(http: httpx.AsyncClient, body: dict[str, object], load: Load) -> None:
    try:
        answer = await http.post("/v1/completions", json=body)
        answer.raise_for_status()
        load.tokens += answer.json()["usage"]["completion_tokens"]
        load.finished += 1
    except (httpx.HTTPError, ValueError, KeyError) as error:
        load.failures.append(f"{type(error).__name__}: {error}")
        await asyncio.sleep(0.1)
