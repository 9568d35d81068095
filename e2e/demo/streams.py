"""Clients that stream for the time of a block, and the outcome of every stream."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import httpx


@dataclass(slots=True)
class Streams:
    """Complete streams and broken ones."""

    whole: int = 0
    tokens: int = 0
    broken: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def streaming(bases: Mapping[str, str], *, tokens: int) -> AsyncIterator[Streams]:
    """Run one client for each model, which sends the next request after its last token."""
    results = Streams()
    end = asyncio.Event()
    limits = httpx.Limits(max_keepalive_connections=0, max_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=120) as http:

        async def run_client(model: str, base: str) -> None:
            while not end.is_set():
                await _stream(http, base, model, tokens, results)

        tasks = [
            asyncio.create_task(run_client(model, base)) for model, base in sorted(bases.items())
        ]
        try:
            yield results
        finally:
            end.set()
            await asyncio.gather(*tasks)


async def _stream(
    http: httpx.AsyncClient, base: str, model: str, tokens: int, results: Streams
) -> None:
    body = {
        "model": model,
        "prompt": "tile " * 50,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    counted, ended = 0, False
    try:
        async with http.stream("POST", f"{base}/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                ended |= line == "data: [DONE]"
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    counted = (chunk.get("usage") or {}).get("completion_tokens", counted)
    except (httpx.HTTPError, ValueError) as error:
        results.broken.append(f"{model}: {type(error).__name__}: {error}")
        await asyncio.sleep(0.1)
        return
    if not ended or counted != tokens:
        results.broken.append(f"{model}: ended after {counted} of {tokens} tokens")
        return
    results.whole += 1
    results.tokens += counted
