"""`tessera-batch run`: one attempt at the rows without an answer, and its fencing."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import aiohttp

from tessera.api.text import counted
from tessera.batch_runner import checked_input
from tessera.batch_runner.answers import parts, publish
from tessera.batch_runner.answers.assemble import assemble_files
from tessera.batch_runner.answers.ledger import BatchCounts, Ledger, replay
from tessera.batch_runner.answers.parts import Journal
from tessera.batch_runner.answers.publish import PublicationRecord
from tessera.batch_runner.check import BatchPaths
from tessera.batch_runner.checked_input import CheckedInput, FileState
from tessera.batch_runner.engine import (
    ENGINE_TIMEOUT_SECONDS,
    ROW_TIMEOUT_SECONDS,
    EngineClient,
    ProbeRequest,
)
from tessera.batch_runner.errors import (
    BatchError,
    FencedError,
    RefusedError,
    RowsMissingError,
    StoppedError,
    StorageRefusedError,
    TransientError,
    WorkMissingError,
    storage_error,
    storage_errors,
)
from tessera.batch_runner.files import unique_name
from tessera.batch_runner.heartbeat import LOG_INTERVAL_SECONDS, STOP_MESSAGE, WorkHeartbeat
from tessera.batch_runner.input import manifest
from tessera.batch_runner.input.manifest import InputManifest
from tessera.batch_runner.input.rows import probe_body
from tessera.batch_runner.payment import RowPayer, gateway_tell
from tessera.batch_runner.progress import Progress, serve, status_app, write_report
from tessera.batch_runner.sender import RowSender, SendOptions, run_until_first
from tessera.domain.batch.names import BATCH_ACCOUNT
from tessera.domain.charge.batch_rows import BatchMessage
from tessera.domain.observed.runner_reports import STALL_SECONDS
from tessera.ports import NotFoundError

log = logging.getLogger(__name__)

KILLED_MESSAGE = "killed without notice; answered rows are retained"
# A kill without notice loses at most this much of the report, by which the operator sees
# whether an attempt has new rows.
_REPORT_INTERVAL_SECONDS = 1.0
_LAST_SYNC_TIMEOUT_SECONDS = 1.0
_POLL_SECONDS = 2.0
# The token of the ServiceAccount that gateways alone take.
CHARGES_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/charges")


@dataclass(frozen=True, slots=True)
class FenceTimeout:
    """Time limit and poll interval, in seconds, for a definite answer of the fence."""

    seconds: float
    interval: float = _POLL_SECONDS


# An attempt that ends here holds its GPU no longer; the next one publishes without any.
FENCE_TIMEOUT = FenceTimeout(120)


class Fence(Protocol):
    """Reads the number of the current attempt."""

    async def current(self) -> int | None:
        """Return the current attempt; None when unknown, NotFoundError without the batch."""


async def refuse_stale(fence: Fence, attempt: int) -> bool:
    """Return whether this attempt is current; raise FencedError if a newer one is."""
    try:
        current = await fence.current()
    except NotFoundError as error:
        raise FencedError(f"{error}; nothing is published") from error
    if current is not None and current > attempt:
        raise FencedError(f"attempt {current} is current, so attempt {attempt} publishes nothing")
    return current == attempt


async def wait_until_current(fence: Fence, attempt: int, timeout: FenceTimeout) -> None:  # noqa: ASYNC109
    """Wait until this attempt is known to be current; TransientError at the time limit."""
    try:
        async with asyncio.timeout(timeout.seconds):
            while not await refuse_stale(fence, attempt):
                log.warning("the current attempt is not known yet, retrying")
                await asyncio.sleep(timeout.interval)
    except TimeoutError as error:
        raise TransientError(
            f"the API server did not confirm within {timeout.seconds:.0f} s that attempt {attempt} "
            "is current, so it publishes nothing and all rows are retained. Allow the pod egress "
            f"to the API server (NetworkPolicy), and check RoleBinding/{BATCH_ACCOUNT} of its "
            "namespace"
        ) from error


class RunOptions(BatchPaths):
    """Arguments of an attempt."""

    report: Path
    attempt: int
    engine: str | None
    """Base URL; None for an attempt that only publishes."""
    send_options: SendOptions
    host: str
    port: int
    uri: str = ""
    """The model of the engine."""
    revision: str | None = None
    batch: str = ""
    """NAMESPACE/NAME."""
    charges: str | None = None
    """Base URL of a gateway at which rows are paid; None where they are not."""
    charges_token: Path = CHARGES_TOKEN
    row_seconds: float = ROW_TIMEOUT_SECONDS
    patience_seconds: float = ENGINE_TIMEOUT_SECONDS
    stall_seconds: float = STALL_SECONDS
    """The attempt ends when no row and no byte moved for so long."""
    fence_seconds: float = 60.0
    """Interval of fence checks while rows are sent."""
    input_seconds: float = 60.0
    """Interval of looks at the input while rows are sent."""
    fence_timeout: FenceTimeout = FENCE_TIMEOUT


class AttemptRunner:
    """Runs one attempt, from the manifest to the publication."""

    def __init__(self, options: RunOptions, fence: Fence, stop: asyncio.Event) -> None:
        self._options = options
        self._fence = fence
        self._stop = stop
        self._progress = Progress(options.attempt, options.stall_seconds)

    async def run(self) -> int:
        """Run the attempt, write its report and return the exit code."""
        try:
            background_tasks = (
                self._watch_stop(),
                self._watch_fence(),
                self._watch_movement(),
                self._refresh_report(),
                self._log_progress(),
            )
            await run_until_first(self._answer_and_publish(), *background_tasks)
        except BatchError as error:
            cause = await asyncio.to_thread(self._cause, error)
            log.log(logging.ERROR if cause.code else logging.INFO, "%s", cause)
            self._write_report(cause.state, str(cause))
            # The check could use these paths, so the volume has trouble that may pass.
            refused_by_volume = isinstance(cause, StorageRefusedError)
            return TransientError.code if refused_by_volume else cause.code
        self._write_report("completed", f"the results are in {self._options.output}")
        return 0

    def _cause(self, error: BatchError) -> BatchError:
        """Return the error, or that the work folder is gone, which is why the volume refused."""
        if isinstance(error, StorageRefusedError):
            try:
                manifest.load(self._options.work)
            except WorkMissingError as missing:
                error = missing
            except BatchError:
                return error
        if isinstance(error, WorkMissingError):
            self._progress.counts = BatchCounts
        return error

    async def _watch_stop(self) -> None:
        await self._stop.wait()
        raise StoppedError(STOP_MESSAGE)

    async def _watch_fence(self) -> None:
        # What a superseded attempt still pays for is lost.
        while True:
            await asyncio.sleep(self._options.fence_seconds)
            await refuse_stale(self._fence, self._options.attempt)

    async def _watch_movement(self) -> None:
        # A hanging engine or volume is left to the next attempt, on another node.
        progress = self._progress
        while not progress.stalled:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(self._options.stall_seconds / 60)
        raise TransientError(
            f"no row and no byte moved for {progress.idle_seconds:.0f} s while {progress.state}, "
            f"with {counted(progress.in_flight, 'row')} at the engine: the engine "
            "or the volume hangs"
        )

    async def _refresh_report(self) -> None:
        # SIGKILL leaves no time for a report.
        while True:
            await asyncio.sleep(_REPORT_INTERVAL_SECONDS)
            self._write_report("failed", KILLED_MESSAGE)

    async def _log_progress(self) -> None:
        done = 0
        while True:
            await asyncio.sleep(LOG_INTERVAL_SECONDS)
            progress, counts = self._progress, self._progress.counts()
            if progress.state == "running":
                message = "%s of %s rows, %s of them failed; %s in flight, %.1f rows/s"
                speed = (counts.done - done) / LOG_INTERVAL_SECONDS
                log.info(
                    message, counts.done, progress.rows, counts.failed, progress.in_flight, speed
                )
            done = counts.done

    async def _answer_and_publish(self) -> None:
        options, progress = self._options, self._progress
        async with serve(status_app(progress), options.host, options.port):
            input_manifest = await asyncio.to_thread(manifest.load, options.work)
            progress.rows = input_manifest.rows
            record = await asyncio.to_thread(self._existing_record)
            if record is None:
                await wait_until_current(self._fence, options.attempt, options.fence_timeout)
                record = await self._produce_record(input_manifest)
            progress.counts = lambda: record.counts
            await self._publish(record)

    def _existing_record(self) -> PublicationRecord | None:
        """Return the record; RefusedError if a file is in the way before any row is paid."""
        options = self._options
        if not parts.has_parts(options.work):
            publish.refuse_unowned(options.work, options.output, options.errors)
        return publish.read_record(options.work)

    async def _produce_record(self, input_manifest: InputManifest) -> PublicationRecord:
        """Answer the remaining rows, assemble the results and return the record that counts."""
        options, progress = self._options, self._progress
        heartbeat = WorkHeartbeat(time.monotonic, self._stop.is_set, progress.record_movement)
        progress.state = "replaying"
        ledger = await asyncio.to_thread(_replay_parts, options.work, input_manifest, heartbeat)
        progress.counts = ledger.counts
        progress.state = "verifying"
        known: FileState | None = None
        if missing := input_manifest.rows - ledger.counts().done:
            with closing(
                await asyncio.to_thread(
                    checked_input.verify, options.input, input_manifest, heartbeat
                )
            ) as checked:
                if options.engine is None:
                    if options.charges is not None:
                        async with self._payment(input_manifest, ledger):
                            pass
                    raise RowsMissingError(
                        f"{counted(missing, 'row')} of {input_manifest.rows} have no answer on the "
                        "volume; the next attempt sends them"
                    )
                progress.state = "running"
                await self._send_rows(checked, ledger, options.engine, heartbeat)
                known = checked.file_state
        progress.state = "assembling"
        # Each answer is of a row of the checked input, whatever is under its name by now.
        progress.input_changed = not await asyncio.to_thread(
            checked_input.is_as_checked, options.input, input_manifest, heartbeat, known
        )
        record = await asyncio.to_thread(
            _assemble_record, options, input_manifest, ledger, heartbeat
        )
        progress.state = "publishing"
        await wait_until_current(self._fence, options.attempt, options.fence_timeout)
        return await asyncio.to_thread(publish.commit_record, options.work, record)

    async def _send_rows(
        self, checked: CheckedInput, ledger: Ledger, base: str, heartbeat: WorkHeartbeat
    ) -> None:
        options = self._options
        header = parts.encode_header(options.attempt, options.uri, options.revision)
        journal = Journal(options.work, options.attempt, options.stall_seconds, header)
        url = checked.manifest.url
        engine = EngineClient(
            base,
            ProbeRequest(url, probe_body(url, options.send_options.served.name)),
            timeout=options.row_seconds,
            away_timeout=options.patience_seconds,
        )
        self._progress.engine_away = lambda: engine.away
        try:
            async with self._payment(checked.manifest, ledger) as payer:
                sender = RowSender(
                    checked, ledger, self._progress, journal, engine, options.send_options
                )
                sender.payer = payer
                await run_until_first(
                    sender.run(),
                    engine.watch(),
                    journal.run(),
                    self._watch_steps(engine),
                    self._watch_input(checked, heartbeat),
                    *(() if payer is None else (payer.run(),)),
                )
                await journal.sync()
        except OSError as error:
            raise storage_error(error, options.input, "read") from error
        except (asyncio.CancelledError, BatchError):
            await _sync_soon(journal)
            raise
        finally:
            journal.close()
            await engine.close()

    @asynccontextmanager
    async def _payment(
        self, input_manifest: InputManifest, ledger: Ledger
    ) -> AsyncIterator[RowPayer | None]:
        """Yield what pays for rows; None where they are not charged."""
        options = self._options
        if options.charges is None:
            yield None
            return
        attempt = BatchMessage(
            batch=options.batch.partition("/")[2],
            uid=options.work.name,
            attempt=options.attempt,
            model=options.send_options.served.name,
        )
        async with aiohttp.ClientSession() as session:
            tell = gateway_tell(session, options.charges, options.charges_token)
            payer = RowPayer(tell, attempt, input_manifest, ledger, options.work)
            try:
                await payer.open()
                yield payer
            finally:
                await payer.close()

    async def _watch_input(self, checked: CheckedInput, heartbeat: WorkHeartbeat) -> None:
        """End an attempt that would pay for rows of an edited input; a replaced one is noted."""
        while True:
            await asyncio.sleep(self._options.input_seconds)
            await asyncio.to_thread(checked.verify_unchanged, heartbeat)
            self._progress.input_changed = await asyncio.to_thread(checked.is_replaced)

    async def _watch_steps(self, engine: EngineClient) -> None:
        """Take a step of the engine as a movement: a long answer moves nothing else."""
        steps: float | None = None
        while True:
            previous, steps = steps, await engine.steps()
            uncounted = steps is None and self._progress.in_flight > 0
            # Without a count, requests in flight are bounded by the time limit of a row.
            if engine.away or uncounted or steps != previous:
                self._progress.record_movement()
            await asyncio.sleep(self._options.stall_seconds / 60)

    async def _publish(self, record: PublicationRecord) -> None:
        options = self._options
        self._progress.state = "publishing"
        if await asyncio.to_thread(publish.is_published, options.work, record, options.output):
            return
        await wait_until_current(self._fence, options.attempt, options.fence_timeout)
        try:
            await asyncio.to_thread(
                publish.publish, options.work, record, options.output, options.errors
            )
        except RefusedError as error:
            # All rows are paid for, so the next attempt publishes once this is corrected.
            raise TransientError(f"{error}; the next attempt publishes") from error

    def _write_report(self, state: str, message: str) -> None:
        write_report(self._options.report, self._progress.report(state, message))


def _replay_parts(work: Path, input_manifest: InputManifest, heartbeat: WorkHeartbeat) -> Ledger:
    folder = parts.parts_folder(work)
    with storage_errors(folder, "read the parts in"):
        folder.mkdir(exist_ok=True)
        return replay(input_manifest, parts.part_files(work), heartbeat)


def _assemble_record(
    options: RunOptions, input_manifest: InputManifest, ledger: Ledger, heartbeat: WorkHeartbeat
) -> PublicationRecord:
    name = f"attempt-{options.attempt:05}-{unique_name()}"
    output, errors = assemble_files(options.work, input_manifest, ledger, name, heartbeat)
    counts = ledger.counts()
    if options.attempt > 1:
        # Stale attempts may have sent rows since this one started.
        replayed = _replay_parts(options.work, input_manifest, heartbeat).counts()
        counts = replace(
            counts, resent_rows=replayed.resent_rows, resent_tokens=replayed.resent_tokens
        )
    return PublicationRecord(attempt=options.attempt, output=output, errors=errors, counts=counts)


async def _sync_soon(journal: Journal) -> None:
    # The termination notice is short and the volume may hang; the lines are written, not flushed.
    try:
        async with asyncio.timeout(_LAST_SYNC_TIMEOUT_SECONDS):
            await journal.sync()
    except (TimeoutError, BatchError) as error:
        log.warning("the last answers may not be flushed to disk: %s", error or "the volume hangs")
