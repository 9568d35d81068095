"""Client of the sidecar engine, which waits while the engine restarts."""

import asyncio
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

import aiohttp

from tessera.batch_runner.errors import TransientError
from tessera.batch_runner.input.rows import reply_object
from tessera.batch_runner.retry import RequestOutcome
from tessera.domain.vllm.metrics import STEPS

log = logging.getLogger(__name__)

# The attempt fails when the engine is unavailable for longer.
ENGINE_TIMEOUT_SECONDS = 600.0
# Limit for one request.
ROW_TIMEOUT_SECONDS = 1800.0
_CONNECT_TIMEOUT_SECONDS = 10
_PROBE_TIMEOUT = aiohttp.ClientTimeout(total=5)
_PROBE_INTERVAL_SECONDS = 0.5
_NO_ANSWER = (aiohttp.ClientError, TimeoutError, OSError)
# X-Request-Id of probes.
PROBE_ID = "probe"
_MAX_MESSAGE_LENGTH = 2000
_RESTART_OUTCOMES = (RequestOutcome.LOST, RequestOutcome.UNSENT)
_AWAY_OUTCOMES = (*_RESTART_OUTCOMES, RequestOutcome.UNAVAILABLE)
# Shorter than the engine's own keep-alive, so that no request meets a closed connection.
_KEEPALIVE_SECONDS = 2
# Restarts in a row without a single answer in between.
_MAX_SILENT_RESTARTS = 10
# It cannot match inside a text of the answer, where the quotes are escaped.
_ABORT_PATTERN = re.compile(rb'"finish_reason": ?"abort"')
_STEPS_PATTERN = re.compile(rb"^%b(?:{[^}]*})? (\S+)" % STEPS.encode(), re.MULTILINE)
_RETRYABLE_STATUSES = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
)
# With these an engine refuses every request for some time.
_BUSY_STATUSES = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Outcome of a request with the engine's response."""

    outcome: RequestOutcome
    status: int = 0
    """HTTP status; 0 without a response."""
    body: bytes = b""
    fields: Mapping[str, Any] | None = None
    """The body, if it is a JSON object."""
    request_id: str | None = None
    retry_seconds: float = 0.0
    """What Retry-After asks for."""
    problem: str = ""
    """What failed."""


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """A request of one token, which shows whether the engine answers any."""

    path: str
    body: bytes


class EngineClient:
    """Sends rows; `wait_ready` blocks senders while the engine is unavailable."""

    def __init__(
        self,
        base: str,
        probe: ProbeRequest,
        *,
        timeout: float = ROW_TIMEOUT_SECONDS,
        away_timeout: float,
    ) -> None:
        self._base = base.rstrip("/")
        self._probe = probe
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=_CONNECT_TIMEOUT_SECONDS)
        self._away_timeout = away_timeout
        self._connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS)
        cookie_jar = aiohttp.DummyCookieJar()
        self._session = aiohttp.ClientSession(connector=self._connector, cookie_jar=cookie_jar)
        self._ready, self._away = asyncio.Event(), asyncio.Event()
        self._away.set()
        self._epoch = 0
        self._steps: float | None = None
        self._silent_restarts = 0
        self._answers = 0
        self._probing = asyncio.Lock()
        # The last failure that made the engine unavailable.
        self._problem = Reply(outcome=RequestOutcome.UNSENT)

    @property
    def away(self) -> bool:
        return not self._ready.is_set()

    async def steps(self) -> float | None:
        """Return how many steps the engine has made; None if it counts none.

        Without an answer the last count is returned.
        """
        with suppress(*_NO_ANSWER, ValueError):
            async with self._session.get(
                f"{self._base}/metrics", timeout=_PROBE_TIMEOUT
            ) as response:
                counts = [float(count) for count in _STEPS_PATTERN.findall(await response.read())]
            self._steps = sum(counts) if counts else None
        return self._steps

    async def close(self) -> None:
        await self._session.close()

    async def wait_ready(self) -> int:
        """Wait until the engine is ready; return its epoch, which grows with each restart."""
        await self._ready.wait()
        return self._epoch

    async def send_row(self, epoch: int, path: str, body: bytes, request_id: str) -> Reply:
        """Send one row to the engine; `epoch` is the one that `wait_ready` returned.

        A failure is the row's own only if the engine answered another request meanwhile.
        """
        answers = self._answers
        reply = await self._post(path, body, request_id)
        if await self._is_terminating_reply(reply):
            problem = f"the engine ended with {reply.status}"
            reply = Reply(outcome=RequestOutcome.LOST, problem=problem)
        if reply.outcome in (RequestOutcome.FAILED, RequestOutcome.TIMED_OUT):
            if not await self._answered_since(answers, epoch):
                ended = self._problem.outcome in _RESTART_OUTCOMES
                outcome = RequestOutcome.LOST if ended else RequestOutcome.UNAVAILABLE
                reply = replace(reply, outcome=outcome)
            elif reply.status in _BUSY_STATUSES:
                self._mark_away(epoch, reply)
        if reply.outcome in _AWAY_OUTCOMES:
            self._mark_away(epoch, reply)
        elif reply.outcome is RequestOutcome.ANSWERED:
            self._answers += 1
            self._silent_restarts = 0
        return reply

    async def watch(self) -> None:
        """Probe an unavailable engine until cancelled; raise TransientError at the time limit."""
        while True:
            await self._away.wait()
            try:
                async with asyncio.timeout(self._away_timeout):
                    await self._wait_healthy()
            except TimeoutError as error:
                message = f"the engine at {self._base} did not answer for {self._away_timeout:g} s"
                problem = f": {self._problem.problem}" if self._problem.problem else ""
                raise TransientError(f"{message}{problem}") from error
            self._mark_ready()

    async def _is_terminating_reply(self, reply: Reply) -> bool:
        """Return whether a terminating engine sent the reply; it says nothing of the row then."""
        # On SIGTERM the engine aborts its requests, which looks like a short answer.
        if reply.status == HTTPStatus.OK:
            return _ABORT_PATTERN.search(reply.body) is not None
        # A crashing engine answers 500 to every request.
        return reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not await self._healthy()

    async def _answered_since(self, answers: int, epoch: int) -> bool:
        """Return whether the engine answered a request since then, or answers one now."""
        async with self._probing:
            if self._answers == answers and epoch == self._epoch and not self.away:
                await self._answers_probe()
        return self._answers > answers

    async def _answers_probe(self) -> bool:
        """Send the probe; a refusal shows a working engine, too."""
        try:
            async with asyncio.timeout(self._away_timeout):
                reply = await self._post(self._probe.path, self._probe.body, PROBE_ID)
        except TimeoutError:
            return False
        answered = reply.outcome in (RequestOutcome.ANSWERED, RequestOutcome.REFUSED)
        self._answers += answered
        self._problem = reply
        return answered

    def _mark_ready(self) -> None:
        self._silent_restarts += self._problem.outcome in _RESTART_OUTCOMES
        if self._silent_restarts > _MAX_SILENT_RESTARTS:
            message = (
                f"the engine ended {_MAX_SILENT_RESTARTS} times in a row without answering a row"
            )
            raise TransientError(f"{message}; see the engine's log")
        if self._epoch:
            log.info("the engine is back")
        self._epoch += 1
        self._away.clear()
        self._ready.set()

    def _mark_away(self, epoch: int, reply: Reply) -> None:
        """Block senders, unless the engine restarted after that request was sent."""
        if epoch == self._epoch and self._ready.is_set():
            log.warning("the engine is unavailable (%s), waiting for it", reply.problem)
            self._problem = reply
            self._ready.clear()
            self._away.set()

    async def _wait_healthy(self) -> None:
        # An engine that has just terminated may look healthy for a moment.
        restarted = self._problem.outcome in _RESTART_OUTCOMES
        if self._epoch:
            await self._sleep_until_retry()
        while not await self._healthy() or not (restarted or await self._answers_probe()):
            await self._sleep_until_retry()

    async def _sleep_until_retry(self) -> None:
        await asyncio.sleep(max(_PROBE_INTERVAL_SECONDS, self._problem.retry_seconds))

    async def _healthy(self) -> bool:
        with suppress(*_NO_ANSWER):
            async with self._session.get(
                f"{self._base}/health", timeout=_PROBE_TIMEOUT
            ) as response:
                return response.status == HTTPStatus.OK
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
            async with post as response:
                reply = parse_reply(response.status, await response.read())
                return replace(
                    reply,
                    request_id=response.headers.get("X-Request-Id"),
                    retry_seconds=_retry_seconds(response.headers.get("Retry-After", "")),
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return Reply(outcome=RequestOutcome.UNSENT, problem=str(error))
        except TimeoutError:
            message = f"no answer within {self._timeout.total:g} s"
            return Reply(outcome=RequestOutcome.TIMED_OUT, problem=message)
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            return Reply(outcome=RequestOutcome.LOST, problem=str(error))
        except aiohttp.ClientError as error:
            return Reply(outcome=RequestOutcome.FAILED, problem=f"{type(error).__name__}: {error}")


def parse_reply(status: int, body: bytes) -> Reply:
    """Return the reply of an engine; an answer that is no JSON object is a failure."""
    fields, outcome = reply_object(body), outcome_of(status)
    problem = ""
    if outcome is RequestOutcome.ANSWERED and fields is None:
        outcome = RequestOutcome.FAILED
        problem = "the response of the engine is not a JSON object"
    elif outcome is not RequestOutcome.ANSWERED:
        problem = _engine_message(status, body, fields)
    return Reply(outcome=outcome, status=status, body=body, fields=fields, problem=problem)


def _engine_message(status: int, body: bytes, fields: Mapping[str, Any] | None) -> str:
    values = fields or {}
    error = values.get("error", values)
    message = error.get("message") if isinstance(error, dict) else error
    text = message if isinstance(message, str) else body.decode(errors="replace")
    return f"{status}: {text}"[:_MAX_MESSAGE_LENGTH]


def _retry_seconds(header: str) -> float:
    """Return the seconds of a Retry-After header; 0 without one or for a date."""
    return float(header) if header.isascii() and header.isdigit() and len(header) < 9 else 0.0


def outcome_of(status: int) -> RequestOutcome:
    """Return what an HTTP status means for the row."""
    if status == HTTPStatus.OK:
        return RequestOutcome.ANSWERED
    if status in _RETRYABLE_STATUSES or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return RequestOutcome.FAILED
    return RequestOutcome.REFUSED
