"""What the operator asks of pods: engines for a token and their load, runners for progress."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from tessera.domain.batch.reports import Shown, shown
from tessera.domain.model.reports import Fetched, report

_CONNECT_SECONDS = 3
_MOST_BYTES = 64 * 1024
"""Pods belong to tenants; whatever they send, no more of it is read."""


@dataclass(frozen=True, slots=True)
class Limits:
    """For how long an answer is waited for, from the first byte sent to the last one read."""

    ask_seconds: float = 30
    load_seconds: float = 3


class HttpEngines:
    """`Engines` over HTTP."""

    def __init__(self, limits: Limits = Limits()) -> None:
        self._limits = limits
        self._client = httpx.AsyncClient(
            trust_env=False,
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            headers={"Accept-Encoding": "identity"},
            # Each is asked seldom, and there are thousands: a kept connection only has to be found.
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=0),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def ask(self, base: str, model: str) -> str | None:
        url = f"{base}/v1/completions"
        body = {"model": model, "prompt": "1", "max_tokens": 1, "priority": -1}
        try:
            status, answer = await self._read("POST", url, self._limits.ask_seconds, body)
        except (httpx.HTTPError, TimeoutError) as error:
            return f"POST {url}: {type(error).__name__} {error}".strip()
        text = answer[:300].decode(errors="replace")
        if status != httpx.codes.OK:
            return f"POST {url}: {status} {text}"
        try:
            tokens = json.loads(answer)["usage"]["completion_tokens"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return f"POST {url}: not a completion: {text}"
        return None if tokens else f"POST {url}: the completion has 0 tokens"

    async def in_flight(self, address: str) -> int | None:
        url = f"http://{address}/load"
        try:
            _, answer = await self._read("GET", url, self._limits.load_seconds)
            return int(json.loads(answer)["server_load"])
        except (
            httpx.HTTPError,
            TimeoutError,
            ValueError,
            KeyError,
            TypeError,
            OverflowError,
            RecursionError,
        ):
            return None

    async def progress(self, address: str) -> Shown | None:
        return shown(await self._progress(address))

    async def fetched(self, address: str) -> Fetched | None:
        return report(Fetched, await self._progress(address))

    async def _progress(self, address: str) -> bytes:
        """What stands at `/progress`; nothing when it cannot be read."""
        url = f"http://{address}/progress"
        try:
            _, answer = await self._read("GET", url, self._limits.load_seconds)
        except (httpx.HTTPError, TimeoutError):
            return b""
        return answer

    async def _read(
        self, method: str, url: str, seconds: float, body: Mapping[str, object] | None = None
    ) -> tuple[int, bytes]:
        """The status and the beginning of the body, as sent: what is packed is not unpacked."""
        found = bytearray()
        async with (
            asyncio.timeout(seconds),
            self._client.stream(method, url, json=body) as answer,
        ):
            async for part in answer.aiter_raw():
                found += part
                if len(found) > _MOST_BYTES:
                    break
            return answer.status_code, bytes(found[:_MOST_BYTES])
