"""`tessera-batch run`: one attempt at the rows that have no answer yet."""

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tessera.batch import fencing, manifest, parts, publish, records, report
from tessera.batch.assemble import assembled
from tessera.batch.engine import PATIENCE_SECONDS, ROW_SECONDS, Engine
from tessera.batch.errors import BatchError, StoppedError, storage
from tessera.batch.feed import Feed, Terms
from tessera.batch.fencing import FIRST, LAST, Fence, Limit
from tessera.batch.files import own_name
from tessera.batch.journal import Journal
from tessera.batch.ledger import Ledger, replay
from tessera.batch.manifest import Manifest
from tessera.batch.progress import Progress
from tessera.batch.pulse import EVERY_SECONDS, TOLD, Pulse
from tessera.batch.records import Published
from tessera.batch.server import serving
from tessera.batch.tasks import first_of

log = logging.getLogger(__name__)

KILLED = "killed without notice; rows that were answered are kept"
_REPORT_SECONDS = 1.0
"""A kill without notice takes no more than this from the report; it says whether an attempt brought
rows at all."""
_LAST_SYNC_SECONDS = 1.0
_READ_AHEAD = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What an attempt is told."""

    input: Path
    output: Path
    errors: Path
    work: Path
    report: Path
    attempt: int
    engine: str
    terms: Terms
    host: str
    port: int
    row_seconds: float = ROW_SECONDS
    patience_seconds: float = PATIENCE_SECONDS
    fence_seconds: float = 60.0
    """Between questions to the fence while rows are answered."""
    first_hold: Limit = FIRST
    last_hold: Limit = LAST


class Attempt:
    """One attempt, from the manifest to the publication."""

    def __init__(self, options: Options, fence: Fence, stop: asyncio.Event) -> None:
        self._options = options
        self._fence = fence
        self._stop = stop
        self._progress = Progress(options.attempt)

    async def run(self) -> int:
        """The exit code; the report is written."""
        try:
            watching = self._stopped(), self._fenced(), self._kept(), self._shown()
            await first_of(self._attempted(), *watching)
        except BatchError as error:
            log.log(logging.ERROR if error.code else logging.INFO, "%s", error)
            self._reported(error.state, str(error))
            return error.code
        self._reported("completed", f"the results are in {self._options.output}")
        return 0

    async def _stopped(self) -> None:
        await self._stop.wait()
        raise StoppedError(TOLD)

    async def _fenced(self) -> None:
        """End early when another attempt has taken over: what is paid now is paid in vain."""
        while True:
            await asyncio.sleep(self._options.fence_seconds)
            await fencing.refuse_stale(self._fence, self._options.attempt)

    async def _kept(self) -> None:
        """Keep a report for the case of a kill."""
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            self._reported("failed", KILLED)

    async def _shown(self) -> None:
        """Log how far it is."""
        done = 0
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            progress, counts = self._progress, self._progress.counts()
            if progress.state == "running":
                told = "%s of %s rows, %s of them failed; %s in flight, %.1f rows/s"
                speed = (counts.done - done) / EVERY_SECONDS
                log.info(told, counts.done, progress.rows, counts.failed, progress.in_flight, speed)
            done = counts.done

    async def _attempted(self) -> None:
        options, progress = self._options, self._progress
        async with serving(progress, options.host, options.port):
            found = await asyncio.to_thread(manifest.load, options.work)
            progress.rows = found.rows
            targets = (options.output, options.errors)
            await asyncio.to_thread(publish.refuse_foreign, options.work, *targets)
            record = await asyncio.to_thread(records.recorded, options.work)
            if record is None:
                await fencing.hold(self._fence, options.attempt, options.first_hold)
                record = await self._recorded(found)
            progress.counts = lambda: record.counts
            await self._published(record)

    async def _recorded(self, found: Manifest) -> Published:
        """Get every row its answer or error, and the record that names the results."""
        options, progress = self._options, self._progress
        pulse = Pulse(time.monotonic, self._stop.is_set)
        progress.state = "verifying"
        await asyncio.to_thread(manifest.verify, options.input, found, pulse)
        progress.state = "replaying"
        ledger = await asyncio.to_thread(_replayed, options.work, found, pulse)
        progress.counts = ledger.counts
        progress.state = "running"
        if ledger.counts().done < found.rows:
            await self._fed(found, ledger)
        progress.state = "assembling"
        record = await asyncio.to_thread(_assembled, options, found, ledger, pulse)
        progress.state = "publishing"
        await fencing.hold(self._fence, options.attempt, options.last_hold)
        return await asyncio.to_thread(publish.commit, options.work, record)

    async def _fed(self, found: Manifest, ledger: Ledger) -> None:
        options = self._options
        journal = Journal(options.work, options.attempt)
        engine = Engine(
            options.engine, timeout=options.row_seconds, patience=options.patience_seconds
        )
        self._progress.waits = lambda: engine.away
        feed = Feed(found, ledger, self._progress, journal, engine, options.terms)
        try:
            with options.input.open("rb", buffering=_READ_AHEAD) as file:
                await first_of(feed.run(file), engine.watch(), journal.run())
            await journal.sync()
        except OSError as error:
            raise storage(error, options.input, "read") from error
        except (asyncio.CancelledError, BatchError):
            await _synced_soon(journal)
            raise
        finally:
            journal.close()
            await engine.close()

    async def _published(self, record: Published) -> None:
        """Give the recorded results their names, unless they have them."""
        options = self._options
        self._progress.state = "publishing"
        if await asyncio.to_thread(publish.is_published, options.work, record, options.output):
            return
        await fencing.hold(self._fence, options.attempt, options.last_hold)
        await asyncio.to_thread(
            publish.publish, options.work, record, options.output, options.errors
        )

    def _reported(self, state: str, message: str) -> None:
        report.write(self._options.report, self._progress.report(state, message))


def _replayed(work: Path, found: Manifest, pulse: Pulse) -> Ledger:
    folder = parts.folder_of(work)
    try:
        folder.mkdir(exist_ok=True)
        return replay(found, parts.part_files(work), pulse)
    except OSError as error:
        raise storage(error, folder, "read the parts in") from error


def _assembled(options: Options, found: Manifest, ledger: Ledger, pulse: Pulse) -> Published:
    """The results, and what they cost: also what stale attempts sent since this one began."""
    name = f"attempt-{options.attempt:05}-{own_name()}"
    output, errors = assembled(options.work, found, ledger, name, pulse)
    counts = ledger.counts()
    if options.attempt > 1:
        again = _replayed(options.work, found, pulse).counts()
        counts = replace(counts, repaid_rows=again.repaid_rows, repaid_tokens=again.repaid_tokens)
    return Published(attempt=options.attempt, output=output, errors=errors, counts=counts)


async def _synced_soon(journal: Journal) -> None:
    """The notice is short and the volume may hang: what was answered is written in any case."""
    try:
        async with asyncio.timeout(_LAST_SYNC_SECONDS):
            await journal.sync()
    except (TimeoutError, BatchError) as error:
        log.warning("the last answers may not be on the disk: %s", error or "the volume hangs")
