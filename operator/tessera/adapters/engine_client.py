"""HTTP client for pods: completions and load of engines, progress of runners."""

import asyncio
import json
from collections.abc import Mapping
from http import HTTPStatus

import aiohttp

from tessera.api.model_files import PoolingTask
from tessera.domain.model.paths import own_paths
from tessera.domain.observed.model_reports import FetchProgress, parse_report
from tessera.domain.observed.runner_reports import RunnerProgress, runner_progress

_CONNECT_SECONDS = 3
# Pods belong to tenants, so the size of a response is limited.
_MAX_BYTES = 256 * 1024
_MAX_COUNT = 10**9
# What a probe asks for, the count of tokens that shows that it was computed, and its fields.
_PROBES: Mapping[PoolingTask | None, tuple[str, str, Mapping[str, object]]] = {
    None: ("a completion", "completion_tokens", {"prompt": "1", "max_tokens": 1}),
    # A long embedding as text would exceed the limit.
    "Embed": ("an embedding", "prompt_tokens", {"input": "1", "encoding_format": "base64"}),
    "Score": ("a ranking", "total_tokens", {"query": "1", "documents": ["1"]}),
    "Classify": ("a classification", "prompt_tokens", {"input": "1"}),
    "Tokens": ("values of tokens", "prompt_tokens", {"input": "1", "encoding_format": "base64"}),
}
# Of a response in a message.
_MAX_TEXT = 300


class HttpEngines:
    """`Engines` over HTTP."""

    def __init__(self, *, completion_seconds: float = 30, load_seconds: float = 3) -> None:
        """Limit the seconds from the first byte sent to the last byte read."""
        self._completion_seconds, self._load_seconds = completion_seconds, load_seconds
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            headers={"Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            # Each pod is queried seldom, and there are thousands: pooled connections would only
            # cost a lookup. The prober limits them by namespace; a limit for all would let the
            # engines of one tenant delay those of another.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
        )

    async def close(self) -> None:
        await self._session.close()

    async def probe(self, base: str, model: str, task: PoolingTask | None = None) -> str | None:
        url = f"{base}{own_paths(task)[0]}"
        kind, tokens_key, fields = _PROBES[task]
        body = {"model": model, "priority": -1, **fields}
        try:
            status, response = await self._read("POST", url, self._completion_seconds, body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return f"POST {url}: {_failure(error, self._completion_seconds)}"
        text = response[:_MAX_TEXT].decode(errors="replace")
        if status != HTTPStatus.OK:
            return f"POST {url}: {status} {text}"
        tokens = parse_count(response, "usage", tokens_key)
        if tokens is None:
            return f"POST {url}: not {kind}: {text}"
        return None if tokens else f"POST {url}: the answer has 0 {tokens_key}"

    async def in_flight(self, address: str) -> int | None:
        return parse_count(await self._get(f"http://{address}/load"), "server_load")

    async def progress(self, address: str) -> RunnerProgress | None:
        return runner_progress(await self._get(f"http://{address}/progress"))

    async def fetch_progress(self, address: str) -> FetchProgress | None:
        return parse_report(FetchProgress, await self._get(f"http://{address}/progress"))

    async def _get(self, url: str) -> bytes:
        """Return the body; empty when it cannot be read."""
        try:
            _, response = await self._read("GET", url, self._load_seconds)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return b""
        return response

    async def _read(
        self, method: str, url: str, seconds: float, body: Mapping[str, object] | None = None
    ) -> tuple[int, bytes]:
        """Return the status and the first bytes of the body, without decompressing it."""
        content = bytearray()
        async with (
            asyncio.timeout(seconds),
            self._session.request(method, url, json=body, allow_redirects=False) as response,
        ):
            async for part in response.content.iter_any():
                content += part
                if len(content) > _MAX_BYTES:
                    break
            return response.status, bytes(content[:_MAX_BYTES])


def _failure(error: Exception, seconds: float) -> str:
    """Return why there is no response, in words that stay the same from try to try.

    A connection to one and the same engine is refused, reset, or closed before the request is sent.
    """
    match error:
        case aiohttp.ClientResponseError():
            return "the response is not HTTP"
        case TimeoutError() if not isinstance(error, aiohttp.ClientError):
            return f"no complete response within {seconds:g} s"
        case _:
            return "the connection failed"


def parse_count(response: bytes, *path: str) -> int | None:
    """Return the count under these keys of a JSON object; None for anything else."""
    try:
        value = json.loads(response)
        for key in path:
            value = value[key]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return value if isinstance(value, int) and 0 <= value <= _MAX_COUNT else None
