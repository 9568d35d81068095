"""HTTP client of an OpenAI-compatible server."""

import asyncio
import ssl
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import aiohttp

from tessera_lab.load.requests import BenchRequest
from tessera_lab.load.responses import BenchResponse, RequestFailure
from tessera_lab.load.stream_recorder import StreamRecorder

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_REQUEST_TIMEOUT_SECONDS = 10
_MAX_BODY_BYTES = 16 * 2**20
_MAX_LINE_BYTES = 2**20
# Less than the five after which uvicorn closes idle connections, so that none breaks in use.
_KEEPALIVE_SECONDS = 2


class ServerError(Exception):
    """The server did not respond."""


class OpenAiClient:
    """One server; `base` is its URL without `/v1`."""

    def __init__(self, base: str, api_key: str | None, timeout_seconds: float) -> None:
        self.base = base
        self._timeout_seconds = timeout_seconds
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS),
        )

    @property
    def now(self) -> float:
        """Return seconds on the clock of all timestamps here."""
        return time.perf_counter()

    async def close(self) -> None:
        await self._session.close()

    async def get(self, url: str) -> tuple[int, bytes]:
        """Return status and body; raise ServerError without a response."""
        # A key is for the server alone: redirections, which may lead elsewhere, are not followed.
        try:
            async with (
                asyncio.timeout(_REQUEST_TIMEOUT_SECONDS),
                self._session.get(url, allow_redirects=False) as answer,
            ):
                return answer.status, await _read_body(answer, _MAX_BODY_BYTES)
        except TimeoutError:
            raise ServerError(f"no response within {_REQUEST_TIMEOUT_SECONDS} s") from None
        except (aiohttp.ClientError, OSError, ValueError, ssl.SSLError) as error:
            raise ServerError(_error_text(error)) from error

    async def send(
        self, path: str, body: Mapping[str, Any], request: BenchRequest, due_at: float | None = None
    ) -> BenchResponse:
        """Send one request and read its stream; a failure is part of the result."""
        sent_at = self.now
        recorder = StreamRecorder(request, sent_at if due_at is None else due_at, sent_at)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._stream(f"{self.base}{path}", body, recorder)
        except TimeoutError:
            recorder.fail(RequestFailure.TIMEOUT, f"not done after {self._timeout_seconds:g} s")
        except aiohttp.ClientConnectorError as error:
            recorder.fail(RequestFailure.NO_CONNECTION, _error_text(error))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            recorder.fail(RequestFailure.CUT_OFF, _error_text(error))
        return recorder.finish(self.now)

    async def _stream(self, url: str, body: Mapping[str, Any], recorder: StreamRecorder) -> None:
        async with self._session.post(url, json=body, allow_redirects=False) as response:
            if response.status != HTTPStatus.OK:
                text = (await _read_body(response, _MAX_LINE_BYTES)).decode(errors="replace")
                recorder.fail(f"Http{response.status}", text.strip())
                return
            if not response.content_type.startswith("text/event-stream"):
                recorder.fail(RequestFailure.NO_STREAM, f"it sends {response.content_type}")
                return
            rest = b""
            async for data in response.content.iter_any():
                received_at = self.now
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if line.startswith(b"data:"):
                        recorder.add_event(line[5:].strip(), received_at)
                if len(rest) > _MAX_LINE_BYTES:
                    recorder.fail(RequestFailure.NO_STREAM, "a line without an end")
                    return


async def _read_body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Return the body, at most `max_bytes` of it."""
    content = bytearray()
    async for part in response.content.iter_any():
        content += part
        if len(content) >= max_bytes:
            break
    return bytes(content[:max_bytes])


def _error_text(error: BaseException) -> str:
    return str(error) or type(error).__name__
