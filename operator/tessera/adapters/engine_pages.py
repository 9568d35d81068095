"""Reads the metrics pages of engines."""

import asyncio
from http import HTTPStatus

import aiohttp

_READ_SECONDS = 2.0
_KEEP_ALIVE_SECONDS = 15.0


class EnginePages:
    """The pages over HTTP, on connections that stay open between two polls."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._session = aiohttp.ClientSession(
            headers={"Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            connector=aiohttp.TCPConnector(
                limit=0, limit_per_host=1, keepalive_timeout=_KEEP_ALIVE_SECONDS
            ),
        )

    async def close(self) -> None:
        await self._session.close()

    async def read(self, address: str) -> bytes | None:
        """Return the page of one engine; None without an answer of bounded size and time."""
        content = bytearray()
        try:
            async with (
                asyncio.timeout(_READ_SECONDS),
                self._session.get(f"http://{address}/metrics", allow_redirects=False) as response,
            ):
                if response.status != HTTPStatus.OK:
                    return None
                async for part in response.content.iter_any():
                    content += part
                    if len(content) > self._max_bytes:
                        return None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
        return bytes(content)
