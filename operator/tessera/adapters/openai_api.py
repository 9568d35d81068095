"""An OpenAI-compatible server as a load test asks it."""

import asyncio
import ssl
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import aiohttp

from tessera.domain.bench.answers import Answer, Failure
from tessera.domain.bench.jobs import Job
from tessera.domain.bench.transcript import Transcript
from tessera.ports import PortError

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_QUESTION_SECONDS = 10
_MOST_BYTES = 16 * 2**20
_MOST_LINE = 2**20
_KEPT_SECONDS = 2
"""Less than the five after which uvicorn closes idle connections: neither side is surprised."""


class ServerError(PortError):
    """Nobody answers."""


class OpenAiApi:
    """One server; `base` is its URL without `/v1`."""

    def __init__(self, base: str, api_key: str | None, timeout_seconds: float) -> None:
        self.base = base
        self._timeout_seconds = timeout_seconds
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_SECONDS),
        )

    @property
    def now(self) -> float:
        """Seconds on the clock of all moments here."""
        return time.perf_counter()

    async def close(self) -> None:
        await self._session.close()

    async def get(self, url: str) -> tuple[int, bytes]:
        """Status and body; ServerError when there is none."""
        # A key is for the server alone: redirections, which may lead elsewhere, are not followed.
        try:
            async with (
                asyncio.timeout(_QUESTION_SECONDS),
                self._session.get(url, allow_redirects=False) as answer,
            ):
                return answer.status, await _body(answer, _MOST_BYTES)
        except TimeoutError:
            raise ServerError(f"no answer within {_QUESTION_SECONDS} s") from None
        except (aiohttp.ClientError, OSError, ValueError, ssl.SSLError) as error:
            raise ServerError(_told(error)) from error

    async def answer(
        self, path: str, body: Mapping[str, Any], job: Job, due: float | None = None
    ) -> Answer:
        """Send one request and read its stream; whatever happens to it is in the answer."""
        sent = self.now
        transcript = Transcript(job, sent if due is None else due, sent)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._stream(f"{self.base}{path}", body, transcript)
        except TimeoutError:
            transcript.fail(Failure.TIMEOUT, f"not done after {self._timeout_seconds:g} s")
        except aiohttp.ClientConnectorError as error:
            transcript.fail(Failure.NO_CONNECTION, _told(error))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            transcript.fail(Failure.CUT, _told(error))
        return transcript.answer(self.now)

    async def _stream(self, url: str, body: Mapping[str, Any], transcript: Transcript) -> None:
        async with self._session.post(url, json=body, allow_redirects=False) as response:
            if response.status != HTTPStatus.OK:
                text = (await _body(response, _MOST_LINE)).decode(errors="replace")
                transcript.fail(f"Http{response.status}", text.strip())
                return
            if not response.content_type.startswith("text/event-stream"):
                transcript.fail(Failure.NO_STREAM, f"it sends {response.content_type}")
                return
            rest = b""
            async for data in response.content.iter_any():
                at = self.now
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if line.startswith(b"data:"):
                        transcript.event(line[5:].strip(), at)
                if len(rest) > _MOST_LINE:
                    transcript.fail(Failure.NO_STREAM, "a line without an end")
                    return


async def _body(response: aiohttp.ClientResponse, most: int) -> bytes:
    """All of it, up to a bound."""
    found = bytearray()
    async for part in response.content.iter_any():
        found += part
        if len(found) >= most:
            break
    return bytes(found[:most])


def _told(error: BaseException) -> str:
    return str(error) or type(error).__name__
