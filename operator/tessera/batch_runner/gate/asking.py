"""Asks a model the prompts of a suite, with bounded concurrency, bytes and time."""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiohttp

from tessera.api.text import counted
from tessera.batch_runner import retry
from tessera.batch_runner.engine import outcome_of
from tessera.batch_runner.errors import RefusedError, TransientError
from tessera.batch_runner.gate.responses import (
    TOP_LOGPROBS,
    PromptOutcome,
    PromptTask,
    problem_text,
    read_response,
)
from tessera.batch_runner.gate.scorers import ModelAnswer
from tessera.batch_runner.gate.suite import SuitePrompt, SuiteRow
from tessera.batch_runner.retry import RequestOutcome, RetryVerdict
from tessera.domain.gateway.directory import VARIANT_HEADER

_PATHS: Mapping[PromptTask, str] = {
    "chat": "/v1/chat/completions",
    "rerank": "/v1/rerank",
    "embed": "/v1/embeddings",
}
_CONNECT_SECONDS = 10
_WAIT_SECONDS = 0.5
_HEALTH_TIMEOUT = aiohttp.ClientTimeout(total=5)
# With these an engine refuses every request for some time.
_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
# With these it refuses the Job itself, whatever that asks.
_FORBIDDEN = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
# After so many prompts that were refused, and none that was answered, no other is asked.
_MAX_FIRST_REFUSALS = 20
_GREEDY: dict[str, Any] = {"temperature": 0, "seed": 0}


class EngineAwayError(TransientError):
    """Nothing answered at an address for too long."""


class GatewayAwayError(RefusedError):
    """No gateway answered at an address for too long."""


class RequestsRefusedError(RefusedError):
    """A server refuses whatever it is asked, for example since no money is left for it."""


class QuestionKey(NamedTuple):
    """One question of a run: the prompt, which run of the suite, and which repeat."""

    prompt: str
    run: int
    repeat: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AskOptions:
    """Whom to ask, and how."""

    url: str
    """Base URL, without /v1."""
    model: str
    task: PromptTask = "chat"
    repeats: int = 1
    """With more than one, sampling is on, each with a seed of its own."""
    concurrency: int = 8
    max_output_tokens: int | None = None
    """A larger maximum of a row is reduced to it, as gateways do."""
    retries: int = 3
    prompt_seconds: float = 300.0
    away_seconds: float = 180.0
    """Time in which an engine that is away has to come back: one that was scaled away does not, and
    the next Job asks another replica."""
    gateway_away_seconds: float = 60.0
    """The same of a gateway, behind which any replica would answer."""
    variant: str = ""
    """Where gateways answer, that of the replica that they ask; of any without it."""
    token: str = ""
    """Bearer token, for a server that asks for it."""
    token_file: Path | None = None
    """The same, where it is renewed."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More fields of each request."""

    def headers(self) -> Mapping[str, str]:
        """Return the headers of each request, with the token as it is now."""
        token = self.token if self.token_file is None else self.token_file.read_text().strip()
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return headers | ({VARIANT_HEADER: self.variant} if self.variant else {})

    def body(self, row: SuiteRow, key: QuestionKey) -> bytes:
        """Return the request of a row."""
        fields: dict[str, Any] = {"model": self.model, **self.extra}
        if self.task == "rerank":
            fields |= {"query": row.query, "documents": row.documents}
        elif self.task == "embed":
            fields |= {"input": [row.query, *(row.documents or ())]}
        else:
            most = min(row.max_tokens, self.max_output_tokens or row.max_tokens)
            fields |= {"messages": row.messages, "max_tokens": most, "stream": True}
            fields |= {"stream_options": {"include_usage": True}}
            # A run that repeats has the sampling that users meet.
            sampling = {"seed": 1000 * key.run + key.repeat} if self.repeats > 1 else _GREEDY
            fields |= sampling | ({"tools": row.tools} if row.tools else {})
        if row.scorer == "choice":
            fields |= {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return json.dumps(fields, separators=(",", ":")).encode()


class PromptAsker:
    """Asks one model; a failure of the engine is no failure of its answer."""

    def __init__(self, options: AskOptions) -> None:
        self._options = options
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=options.prompt_seconds, sock_connect=_CONNECT_SECONDS
            ),
        )
        self._jitter = random.Random(0)  # noqa: S311 - not a secret
        self._refusals = 0
        self._has_answer = False
        self._busy_since: float | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(
        self, row: SuiteRow, key: QuestionKey, *, alone: bool = True
    ) -> ModelAnswer | None:
        """Return the answer; None where the prompt is to be asked again with no other in flight.

        Raises RefusedError when the first prompts are all refused, RequestsRefusedError,
        GatewayAwayError, and EngineAwayError.
        """
        trial, body = retry.Trial(), self._options.body(row, key)
        while True:
            reply = await self._post(body)
            self._check_busy(reply)
            retries = self._options.retries
            trial, verdict = retry.judge(trial, reply.outcome, retries=retries, alone=alone)
            match verdict:
                case RetryVerdict.FINISH:
                    self._count(reply)
                    return reply.answer
                case RetryVerdict.SET_ASIDE:
                    return None
                case RetryVerdict.WAIT:
                    await self._wait_healthy(reply)
                case RetryVerdict.RETRY:
                    await asyncio.sleep(retry.delay_seconds(trial.failures, self._jitter.random()))

    def _count(self, reply: PromptOutcome) -> None:
        is_answered = reply.outcome is RequestOutcome.ANSWERED
        self._has_answer = self._has_answer or is_answered
        self._refusals += not is_answered
        if not self._has_answer and self._refusals >= _MAX_FIRST_REFUSALS:
            raise RefusedError(
                f"{self._options.model} answered none of the first "
                f"{counted(self._refusals, 'prompt')}: {reply.problem}"
            )

    def _check_busy(self, reply: PromptOutcome) -> None:
        """Raise an error where it was too busy for all requests for too long, or will be."""
        if reply.outcome is not RequestOutcome.UNAVAILABLE:
            self._busy_since = None
            return
        now, most = time.monotonic(), self._options.away_seconds
        self._busy_since = self._busy_since or now
        waited = now - self._busy_since
        if max(waited, reply.pause_seconds) <= most:
            return
        if reply.is_over_limit or reply.pause_seconds > most:
            raise RequestsRefusedError(f"{self._options.model} is refused: {reply.problem}")
        raise EngineAwayError(f"every request was refused for {most:g} s: {reply.problem}")

    async def _post(self, body: bytes) -> PromptOutcome:
        begin = time.monotonic()
        try:
            async with self._session.post(
                f"{self._options.url}{_PATHS[self._options.task]}",
                data=body,
                headers=self._options.headers(),
                allow_redirects=False,
            ) as response:
                if response.status == HTTPStatus.OK:
                    return await read_response(response, self._options.task, begin)
                return await _read_refusal(response)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return PromptOutcome(RequestOutcome.UNSENT, problem=str(error))
        except TimeoutError:
            problem = f"no answer within {self._options.prompt_seconds:g} s"
            return PromptOutcome(RequestOutcome.TIMED_OUT, problem=problem)
        except (aiohttp.ClientError, OSError) as error:
            problem = f"{type(error).__name__}: {error}"
            return PromptOutcome(RequestOutcome.LOST, problem=problem)

    async def _wait_healthy(self, reply: PromptOutcome) -> None:
        """Wait until something answers at the address."""
        options = self._options
        is_gateway = options.token_file is not None
        seconds = options.gateway_away_seconds if is_gateway else options.away_seconds
        await asyncio.sleep(max(reply.pause_seconds, _WAIT_SECONDS))
        try:
            async with asyncio.timeout(seconds):
                while True:
                    if await self._is_healthy():
                        return
                    await asyncio.sleep(_WAIT_SECONDS)
        except TimeoutError as error:
            text = f"{options.url} did not answer for {seconds:g} s: {reply.problem}"
            raise (GatewayAwayError if is_gateway else EngineAwayError)(text) from error

    async def _is_healthy(self) -> bool:
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self._session.get(
                f"{self._options.url}/health", timeout=_HEALTH_TIMEOUT
            ) as response:
                return response.status < HTTPStatus.INTERNAL_SERVER_ERROR
        return False


async def _read_refusal(response: aiohttp.ClientResponse) -> PromptOutcome:
    content = await response.content.read(4096)
    problem = f"{response.status}: {problem_text(content.decode(errors='replace'))}"
    if response.status in _FORBIDDEN:
        # It is no answer of the model.
        raise RequestsRefusedError(problem)
    wait = response.headers.get("Retry-After", "")
    return PromptOutcome(
        RequestOutcome.UNAVAILABLE if response.status in _BUSY else outcome_of(response.status),
        problem=problem,
        pause_seconds=float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 9 else 0.0,
        is_over_limit=response.status == HTTPStatus.TOO_MANY_REQUESTS,
    )


Record = Callable[[SuitePrompt, QuestionKey, ModelAnswer], None]


async def ask_all(
    asker: PromptAsker,
    questions: Iterable[tuple[SuitePrompt, QuestionKey]],
    record: Record,
    concurrency: int,
) -> None:
    """Ask every question, and record each answer as it comes.

    Those in whose time the engine ended twice are asked at last, one at a time, so that one which
    ends it every time has a score of its own.
    """
    set_aside: list[tuple[SuitePrompt, QuestionKey]] = []
    pending = iter(questions)

    async def work() -> None:
        for prompt, key in pending:
            answer = await asker.ask(prompt.row, key, alone=False)
            if answer is None:
                set_aside.append((prompt, key))
            else:
                record(prompt, key, answer)

    await run_together([work() for _ in range(concurrency)])
    for prompt, key in set_aside:
        answer = await asker.ask(prompt.row, key)
        if answer is not None:
            record(prompt, key, answer)


async def run_together(works: Sequence[Awaitable[None]]) -> None:
    """Run until all have ended; the first error cancels the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
