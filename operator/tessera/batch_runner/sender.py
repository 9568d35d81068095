"""Sends every row without an answer to the engine, with bounded concurrency and memory."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, NamedTuple

from tessera.api.text import counted
from tessera.batch_runner import retry
from tessera.batch_runner.answers import parts, results
from tessera.batch_runner.answers.ledger import Ledger
from tessera.batch_runner.answers.parts import AnsweredEntry, Journal, SentEntry
from tessera.batch_runner.answers.results import RowResult
from tessera.batch_runner.checked_input import CheckedInput, PendingRow
from tessera.batch_runner.engine import EngineClient, Reply
from tessera.batch_runner.errors import RefusedError, RowsRefusedError, TransientError
from tessera.batch_runner.input import rows
from tessera.batch_runner.input.rows import BatchRow, RequestTarget, RowFault
from tessera.batch_runner.payment import RowPayer
from tessera.batch_runner.progress import Progress

MAX_IN_FLIGHT_BYTES = 64 * 2**20
# After so many rows that failed, and none that the engine answered, no other is sent.
MAX_FIRST_FAILURES = 20

TaskCoroutine = Coroutine[Any, Any, None]


class MemoryLimiter:
    """Limits the bytes of rows in flight; a row above the limit is sent alone."""

    def __init__(self, limit_bytes: int = MAX_IN_FLIGHT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._used = 0
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def reserve(self, row_bytes: int) -> AsyncIterator[None]:
        """Wait until `size` bytes fit, and reserve them while the block runs."""
        while self._used and self._used + row_bytes > self._limit_bytes:
            self._freed.clear()
            await self._freed.wait()
        self._used += row_bytes
        try:
            yield
        finally:
            self._used -= row_bytes
            self._freed.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class SendOptions:
    """Options of the sender."""

    served: RequestTarget
    concurrency: int
    retries: int
    seed: str
    """Seed of the jitter."""


class RowRequest(NamedTuple):
    """A request that is ready to be sent."""

    shard: int
    line_id: str
    custom_id: str
    path: str
    body: bytes
    sent: SentEntry
    row: BatchRow


class RowSender:
    """Sends rows and records the results in the journal and the ledger."""

    def __init__(
        self,
        checked_input: CheckedInput,
        ledger: Ledger,
        progress: Progress,
        journal: Journal,
        engine: EngineClient,
        options: SendOptions,
    ) -> None:
        self.payer: RowPayer | None = None
        """Pays for rows; None where they are not charged."""
        self._input = checked_input
        self._ledger = ledger
        self._progress = progress
        self._journal = journal
        self._engine = engine
        self._options = options
        self._jitter = random.Random(options.seed)  # noqa: S311 - not a secret
        self._memory = MemoryLimiter()
        self._request_numbers = itertools.count(1)
        # Whether the engine has answered any row of the batch, and the failed rows before that.
        self._proven = ledger.counts().completed > 0
        self._unproven: list[tuple[PendingRow, RowResult]] = []
        self._refused_rows = 0
        # Rows that this attempt paid for and that got no answer.
        self._paid_unanswered: set[int] = set()

    async def run(self) -> None:
        """Send rows until each has an answer or an error.

        Rows that were in flight each time the engine terminated are left to the next round.
        """
        widths = retry.rounds(self._options.concurrency)
        for number, width in enumerate(widths, start=1):
            queue = self._input.pending_rows(self._ledger)
            last = number == len(widths)
            await run_all(self._send_queue(queue, alone=last) for _ in range(width))
            self._record_unproven()

    async def _send_queue(self, queue: Iterator[PendingRow], *, alone: bool) -> None:
        for pending_row in queue:
            async with self._memory.reserve(len(pending_row.content)):
                await self._send_until_final(pending_row, alone=alone)

    async def _send_until_final(self, pending_row: PendingRow, *, alone: bool) -> None:
        request = self._build_request(pending_row)
        trial = retry.Trial()
        while True:
            outcome, result = await self._send_paid(request)
            trial, verdict = retry.judge(trial, outcome, retries=self._options.retries, alone=alone)
            if verdict is retry.RetryVerdict.FINISH:
                self._finish(pending_row, outcome, result)
            if verdict in (retry.RetryVerdict.FINISH, retry.RetryVerdict.SET_ASIDE):
                return
            if verdict is retry.RetryVerdict.RETRY:
                await asyncio.sleep(retry.delay_seconds(trial.failures, self._jitter.random()))

    def _build_request(self, pending_row: PendingRow) -> RowRequest:
        line_id = parts.line_id(self._input.manifest.input_id, pending_row.row)
        row = rows.read_row(pending_row.content)
        if isinstance(row, RowFault):
            # No result may lack its custom_id. Only a runner of another version comes here.
            message = f"row {pending_row.row + 1} passed the check, but {row.message}"
            raise RefusedError(f"{message}; create another BatchInference")
        body = self._options.served.request_body(row)
        sent = SentEntry(pending_row.row, rows.input_tokens(row, len(body)), row.max_tokens)
        return RowRequest(pending_row.shard, line_id, row.custom_id, row.url, body, sent, row)

    async def _send_paid(self, request: RowRequest) -> tuple[retry.RequestOutcome, RowResult]:
        """Send a row once there is money for it, and again with more where that cut its answer."""
        payer, row, entry = self.payer, request.row, request.sent
        if payer is None:
            return await self._send(request)
        limit = payer.first_limit(row)
        is_limited = limit not in (0, row.max_tokens)
        while True:
            taken = await payer.take(row, entry.prompt_tokens, limit)
            body = self._options.served.request_body(row, limit) if is_limited else request.body
            try:
                outcome, result = await self._send(request._replace(body=body))
            finally:
                payer.end(taken)
            if outcome is retry.RequestOutcome.REFUSED and is_limited:
                # No room for so many tokens is left in its context, where fewer end it.
                is_limited = False
                continue
            if outcome is not retry.RequestOutcome.ANSWERED:
                return outcome, result
            result = _counted(result, entry)
            tokens = result.prompt_tokens, result.output_tokens
            if not (is_limited and result.is_cut and result.output_tokens >= limit):
                payer.answered(request.shard, row, tokens)
                return outcome, result
            payer.cut(request.shard, tokens)
            self._paid_unanswered.add(entry.row)
            limit = payer.next_limit(row, limit)
            is_limited = limit != row.max_tokens

    async def _send(self, request: RowRequest) -> tuple[retry.RequestOutcome, RowResult]:
        """Send a row once the engine is ready, and record in the journal what was paid for."""
        epoch = await self._engine.wait_ready()
        row = request.sent.row
        if row in self._paid_unanswered:
            self._ledger.record_resent(request.sent)
            self._paid_unanswered.discard(row)
        self._journal.append(request.shard, parts.encode_sent(*request.sent))
        self._progress.in_flight += 1
        try:
            # The engine may still process a request that timed out, so that no id repeats.
            number = next(self._request_numbers)
            request_id = f"{request.line_id}-{self._progress.attempt}-{number}"
            reply = await self._engine.send_row(epoch, request.path, request.body, request_id)
        finally:
            self._progress.in_flight -= 1
            self._progress.record_movement()
        result = results.row_result(request.line_id, request.custom_id, reply)
        if _was_not_processed(reply):
            self._journal.append(request.shard, parts.encode_unsent(row))
        elif reply.outcome not in (retry.RequestOutcome.ANSWERED, retry.RequestOutcome.REFUSED):
            self._paid_unanswered.add(row)
        return reply.outcome, result

    def _finish(
        self, pending_row: PendingRow, outcome: retry.RequestOutcome, result: RowResult
    ) -> None:
        """Record the result; before the first answer of the batch, failures wait for one.

        Raises RowsRefusedError when the engine has refused all of the first rows, and
        TransientError when it has failed some of them.
        """
        if result.good and not self._proven:
            self._proven = True
            self._record_unproven()
        if self._proven:
            self._record_result(pending_row, result)
            return
        self._unproven.append((pending_row, result))
        self._refused_rows += outcome is retry.RequestOutcome.REFUSED
        if len(self._unproven) < MAX_FIRST_FAILURES:
            return
        first_rows = f"the first {counted(MAX_FIRST_FAILURES, 'row')}"
        if self._refused_rows == len(self._unproven):
            self._record_unproven()
            raise RowsRefusedError(
                f"the engine refused {first_rows}, the last with {result.message}. Correct the "
                "rows and create another BatchInference"
            )
        raise TransientError(
            f"the engine answered none of {first_rows}, the last failed with {result.message}; "
            "the next attempt retries them"
        )

    def _record_unproven(self) -> None:
        for pending_row, result in self._unproven:
            self._record_result(pending_row, result)
        self._unproven.clear()

    def _record_result(self, pending_row: PendingRow, result: RowResult) -> None:
        row = pending_row.row
        good = result.good
        line = parts.encode_answered(
            row, result.line, good=good, prompt=result.prompt_tokens, output=result.output_tokens
        )
        self._journal.append_answer(pending_row.shard, line)
        self._paid_unanswered.discard(row)
        entry = AnsweredEntry(row, good, result.prompt_tokens, result.output_tokens, 0)
        self._ledger.record_answer(self._progress.attempt, entry)


def _counted(result: RowResult, entry: SentEntry) -> RowResult:
    """Return an answer with tokens: where an engine counted none, by its bytes."""
    if result.prompt_tokens:
        return result
    output = result.output_tokens or (len(result.line) // 4 if entry.max_tokens != 0 else 0)
    return replace(result, prompt_tokens=max(1, entry.prompt_tokens), output_tokens=output)


def _was_not_processed(reply: Reply) -> bool:
    """Return whether the engine did not process the row: it was unreachable or refused."""
    failed = (retry.RequestOutcome.FAILED, retry.RequestOutcome.UNAVAILABLE)
    return reply.outcome is retry.RequestOutcome.UNSENT or (
        reply.outcome in failed and reply.status not in (0, HTTPStatus.OK)
    )


async def run_until_first(*coroutines: TaskCoroutine) -> None:
    """Run until the first coroutine ends, cancel the others and raise its error."""
    await _run_until(coroutines, asyncio.FIRST_COMPLETED)


async def run_all(coroutines: Iterable[TaskCoroutine]) -> None:
    """Run until all coroutines have ended; the first error cancels the others."""
    await _run_until(coroutines, asyncio.FIRST_EXCEPTION)


async def _run_until(coroutines: Iterable[TaskCoroutine], return_when: str) -> None:
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=return_when)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
