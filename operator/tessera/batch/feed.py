"""Feeds every row that has no answer yet to the engine, a number of them at a time."""

import asyncio
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from tessera.batch import parts, results, rows
from tessera.batch.engine import Engine, Reply
from tessera.batch.journal import Journal
from tessera.batch.ledger import Ledger
from tessera.batch.manifest import Manifest
from tessera.batch.parts import Answered, Sent
from tessera.batch.progress import Progress
from tessera.batch.results import Result
from tessera.batch.retry import Outcome, Trial, Verdict, delay_seconds, judge, rounds
from tessera.batch.room import Room
from tessera.batch.rows import Fault
from tessera.batch.tasks import all_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How rows are sent."""

    model: str
    """For rows that name none."""
    concurrency: int
    retries: int
    seed: str
    """Of the jitter."""


class Pending(NamedTuple):
    """A row without an answer."""

    shard: int
    row: int
    content: bytes


class Request(NamedTuple):
    """A row, ready to be sent."""

    shard: int
    line_id: str
    custom_id: str
    path: str
    body: bytes
    sent: Sent


def pending(file: BinaryIO, manifest: Manifest, ledger: Ledger) -> Iterator[Pending]:
    """Rows without an answer at the moment that each is reached; settled shards are not read."""
    for number, shard in enumerate(manifest.shards):
        found = range(shard.first_row, shard.first_row + shard.rows)
        if all(map(ledger.settled, found)):
            continue
        file.seek(shard.offset)
        for row in found:
            content = file.readline()
            if not ledger.settled(row):
                yield Pending(number, row, content)


class Feed:
    """Sends rows and keeps what comes back."""

    def __init__(
        self,
        manifest: Manifest,
        ledger: Ledger,
        progress: Progress,
        journal: Journal,
        engine: Engine,
        terms: Terms,
    ) -> None:
        self._manifest = manifest
        self._ledger = ledger
        self._progress = progress
        self._journal = journal
        self._engine = engine
        self._terms = terms
        self._jitter = random.Random(terms.seed)  # noqa: S311 - not a secret
        self._room = Room()
        self._sendings = itertools.count(1)
        self._owed: set[int] = set()
        """Rows that were paid for in this attempt and got no answer."""

    async def run(self, file: BinaryIO) -> None:
        """Until every row has an answer or an error.

        Rows that were in flight whenever the engine ended are left to the next round.
        """
        widths = rounds(self._terms.concurrency)
        for number, width in enumerate(widths, start=1):
            waiting = pending(file, self._manifest, self._ledger)
            last = number == len(widths)
            await all_of(self._work(waiting, alone=last) for _ in range(width))

    async def _work(self, waiting: Iterator[Pending], *, alone: bool) -> None:
        for found in waiting:
            async with self._room.holding(len(found.content)):
                await self._settle(found, alone=alone)

    async def _settle(self, found: Pending, *, alone: bool) -> None:
        request = self._request(found)
        if isinstance(request, Result):
            self._keep(found, request)
            return
        trial = Trial()
        while True:
            outcome, result = await self._send(request)
            trial, verdict = judge(trial, outcome, retries=self._terms.retries, alone=alone)
            if verdict is Verdict.FINISH:
                self._keep(found, result)
            if verdict in (Verdict.FINISH, Verdict.SET_ASIDE):
                return
            if verdict is Verdict.RETRY:
                await asyncio.sleep(delay_seconds(trial.failures, self._jitter.random()))

    def _request(self, found: Pending) -> Request | Result:
        """What to send; the row's error where that cannot be said."""
        line_id = parts.line_id(self._manifest.stamp, found.row)
        row = rows.read_row(found.content)
        if isinstance(row, Fault):
            return results.failure(line_id, "", row)
        body = rows.request_body(row, self._terms.model)
        if isinstance(body, Fault):
            return results.failure(line_id, row.custom_id, body)
        sent = Sent(found.row, rows.tokens_of(len(body)), row.max_tokens)
        return Request(found.shard, line_id, row.custom_id, row.url, body, sent)

    async def _send(self, request: Request) -> tuple[Outcome, Result]:
        """Send a row once it can be, with a line in the journal before, and one if it was free."""
        coming = await self._engine.present()
        row = request.sent.row
        if row in self._owed:
            self._ledger.repaid(request.sent)
            self._owed.discard(row)
        self._journal.sent(request.shard, parts.sent(*request.sent))
        self._progress.in_flight += 1
        try:
            reply = await self._engine.ask(coming, request.path, request.body, self._id(request))
        finally:
            self._progress.in_flight -= 1
        outcome, result = results.ending(request.line_id, request.custom_id, reply)
        if _free(reply):
            self._journal.sent(request.shard, parts.unsent(row))
        elif outcome not in (Outcome.ANSWERED, Outcome.REFUSED):
            self._owed.add(row)
        return outcome, result

    def _id(self, request: Request) -> str:
        """Never the same twice, since an engine may still hold a sending that timed out."""
        return f"{request.line_id}-{self._progress.attempt}-{next(self._sendings)}"

    def _keep(self, found: Pending, result: Result) -> None:
        line = parts.answered(
            found.row,
            result.line,
            good=result.good,
            prompt=result.prompt_tokens,
            output=result.output_tokens,
        )
        self._journal.answered(found.shard, line)
        self._owed.discard(found.row)
        entry = Answered(found.row, result.good, result.prompt_tokens, result.output_tokens, 0)
        self._ledger.answered(self._progress.attempt, entry)


def _free(reply: Reply) -> bool:
    """The engine did not work on the row: it was not there, or said that it cannot."""
    return reply.outcome is Outcome.UNSENT or (reply.outcome is Outcome.FAILED and reply.status > 0)
