"""The engine beside the runner: its HTTP API, and waiting for it while it restarts."""

import asyncio
import logging
import re
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp

from tessera.batch.errors import TroubleError
from tessera.batch.retry import Outcome

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0
"""For so long an engine may be away."""
ROW_SECONDS = 1800.0
"""For so long an answer may take."""
_CONNECT_SECONDS = 10
_PROBE = aiohttp.ClientTimeout(total=5)
_PROBE_EVERY_SECONDS = 0.5
_KEEP_SECONDS = 2
"""Less than the engine keeps an idle connection, so that none is found closed."""
_SILENT_RESTARTS = 10
"""So often the engine may come back without answering a single row in between."""
_ABORTED = re.compile(rb'"finish_reason": ?"abort"')
"""Never within a text, where the quotes would be escaped."""
_LATER = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of a request."""

    outcome: Outcome
    status: int = 0
    """0 when there was no answer."""
    body: bytes = b""
    request_id: str | None = None
    told: str = ""
    """What went wrong, where the engine did not say it itself."""


class Engine:
    """Sends rows. While the engine is away, `present` makes everybody wait."""

    def __init__(self, base: str, *, timeout: float = ROW_SECONDS, patience: float) -> None:
        self._base = base.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=_CONNECT_SECONDS)
        self._patience = patience
        self._connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_SECONDS)
        self._session = aiohttp.ClientSession(
            connector=self._connector, cookie_jar=aiohttp.DummyCookieJar()
        )
        self._here, self._away = asyncio.Event(), asyncio.Event()
        self._away.set()
        self._comings = 0
        self._silent = 0

    @property
    def away(self) -> bool:
        return not self._here.is_set()

    async def close(self) -> None:
        await self._session.close()

    async def present(self) -> int:
        """Wait until the engine is there; the number tells its comings apart."""
        await self._here.wait()
        return self._comings

    async def ask(self, coming: int, path: str, body: bytes, request_id: str) -> Reply:
        """Send one row to the engine that came at `coming`."""
        reply = await self._post(path, body, request_id)
        if await self._ends_with(reply):
            reply = Reply(outcome=Outcome.LOST, told=f"the engine ended with {reply.status}")
        if reply.outcome in (Outcome.LOST, Outcome.UNSENT):
            self._gone(coming, reply.told)
        elif reply.outcome is Outcome.ANSWERED:
            self._silent = 0
        return reply

    async def watch(self) -> None:
        """Until cancelled, look for an engine that is away; TroubleError when it stays away."""
        while True:
            await self._away.wait()
            try:
                async with asyncio.timeout(self._patience):
                    await self._back()
            except TimeoutError as error:
                told = f"the engine at {self._base} did not answer for {self._patience:g} s"
                raise TroubleError(told) from error
            self._came()

    async def _ends_with(self, reply: Reply) -> bool:
        """Is this the last word of an engine that is ending, and not about the row?

        One that is told to end aborts what it has, which looks like a short answer; one that dies
        answers 500 to everybody.
        """
        if reply.status == HTTPStatus.OK:
            return _ABORTED.search(reply.body) is not None
        return reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not await self._healthy()

    def _came(self) -> None:
        self._silent += 1
        if self._silent > _SILENT_RESTARTS:
            told = f"the engine ended {_SILENT_RESTARTS} times in a row without answering a row"
            raise TroubleError(f"{told}; see the engine's log")
        if self._comings:
            log.info("the engine is back")
        self._comings += 1
        self._away.clear()
        self._here.set()

    def _gone(self, coming: int, told: str) -> None:
        """Close the door, unless the engine has come back since that request was sent."""
        if coming == self._comings and self._here.is_set():
            log.warning("the engine is away (%s); waiting for it", told)
            self._here.clear()
            self._away.set()

    async def _back(self) -> None:
        """An engine that has just gone may look healthy for a moment."""
        if self._comings:
            await asyncio.sleep(_PROBE_EVERY_SECONDS)
        while not await self._healthy():  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(_PROBE_EVERY_SECONDS)

    async def _healthy(self) -> bool:
        try:
            async with self._session.get(f"{self._base}/health", timeout=_PROBE) as answer:
                return answer.status == HTTPStatus.OK
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def _post(self, path: str, body: bytes, request_id: str) -> Reply:
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
        post = self._session.post(
            f"{self._base}{path}",
            data=body,
            headers=headers,
            timeout=self._timeout,
            allow_redirects=False,
        )
        try:
            async with post as answer:
                return Reply(
                    outcome=outcome_of(answer.status),
                    status=answer.status,
                    body=await answer.read(),
                    request_id=answer.headers.get("X-Request-Id"),
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return Reply(outcome=Outcome.UNSENT, told=str(error))
        except TimeoutError:
            told = f"no answer within {self._timeout.total:g} s"
            return Reply(outcome=Outcome.TIMED_OUT, told=told)
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            return Reply(outcome=Outcome.LOST, told=str(error))
        except aiohttp.ClientError as error:
            return Reply(outcome=Outcome.FAILED, told=f"{type(error).__name__}: {error}")


def outcome_of(status: int) -> Outcome:
    """What a status code means for the row."""
    if status == HTTPStatus.OK:
        return Outcome.ANSWERED
    if status in _LATER or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Outcome.FAILED
    return Outcome.REFUSED
