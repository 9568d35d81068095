"""A load of completions, each over its own connection, so that new replicas get their share."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import httpx

# The simulator counts four characters as a token.
_WORD = "tile"
_NUMBER_TOKENS = 2
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
    prompt_tokens: int = 250,
    pause: float = 0.0,
) -> AsyncIterator[LoadCounts]:
    """Run `clients` that each send the next request after an answer, for the time of the block.

    Every prompt begins with a number of its own, so that no prefix cache takes the load away.
    """
    load, numbers = LoadCounts(), itertools.count()
    body = {
        "model": model,
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    limits = httpx.Limits(max_keepalive_connections=0, max_connections=None)
    async with httpx.AsyncClient(base_url=base, limits=limits, timeout=_TIMEOUT_SECONDS) as http:

        async def run_client() -> None:
            while True:
                prompt = f"{next(numbers):>8}{_WORD * (prompt_tokens - _NUMBER_TOKENS)}"
                await _send_request(http, {**body, "prompt": prompt}, load)
                await asyncio.sleep(pause)

        tasks = [asyncio.create_task(run_client()) for _ in range(clients)]
        try:
            yield load
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _send_request(http: httpx.AsyncClient, body: dict[str, object], load: LoadCounts) -> None:
    try:
        response = await http.post("/v1/completions", json=body)
        response.raise_for_status()
        load.tokens += response.json()["usage"]["completion_tokens"]
        load.finished += 1
    except (httpx.HTTPError, ValueError, KeyError) as error:
        load.failures.append(f"{type(error).__name__}: {error}")
        await asyncio.sleep(0.1)
