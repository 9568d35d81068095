"""Progress of a command: its termination message, `/progress` and `/metrics`."""

import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from typing_extensions import override

from tessera.batch_runner.answers.ledger import BatchCounts
from tessera.batch_runner.errors import TransientError
from tessera.domain.observed.runner_reports import STALL_SECONDS, RunnerProgress, RunReport

log = logging.getLogger(__name__)

# The kubelet truncates longer termination messages.
MAX_REPORT_BYTES = 4096
_MAX_MESSAGE_LENGTH = 1000

RunnerState: TypeAlias = Literal[
    "starting", "verifying", "replaying", "running", "waiting", "assembling", "publishing"
]


@dataclass(slots=True, eq=False)
class Progress:
    """State and counts of a running attempt."""

    attempt: int
    stall_seconds: float = STALL_SECONDS
    clock: Callable[[], float] = time.monotonic
    state: RunnerState = "starting"
    rows: int = 0
    in_flight: int = 0
    counts: Callable[[], BatchCounts] = BatchCounts
    engine_away: Callable[[], bool] = bool
    input_changed: bool = False
    _moved_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.record_movement()

    def record_movement(self) -> None:
        """Note that a row or a byte moved."""
        self._moved_at = self.clock()

    @property
    def idle_seconds(self) -> float:
        return self.clock() - self._moved_at

    @property
    def stalled(self) -> bool:
        """Return whether nothing moved for too long; publishing has time limits of its own."""
        return self.state != "publishing" and self.idle_seconds >= self.stall_seconds

    def as_dict(self) -> dict[str, Any]:
        """Return the answer of `/progress`."""
        counts, waiting = self.counts(), self.state == "running" and self.engine_away()
        fields = {
            **asdict(counts),
            "attempt": self.attempt,
            "state": "waiting" if waiting else self.state,
            "idle_seconds": int(self.idle_seconds),
            "rows": self.rows,
            "done": counts.done,
            "input_changed": self.input_changed,
        }
        progress = RunnerProgress.model_validate(fields)
        return {**progress.model_dump(by_alias=True), "inFlight": self.in_flight}

    def report(self, state: str, message: str) -> dict[str, Any]:
        """Return the report of the attempt; all counts are of the whole batch."""
        fields = {
            **asdict(self.counts()),
            "phase": "run",
            "attempt": self.attempt,
            "state": state,
            "rows": self.rows,
            "input_changed": self.input_changed,
            "message": message,
        }
        return RunReport.model_validate(fields).model_dump(by_alias=True)


def metrics_registry(progress: Progress) -> CollectorRegistry:
    """Return a registry with the metrics of one attempt."""
    collector_registry = CollectorRegistry()
    collector_registry.register(_Collector(progress))
    return collector_registry


class _Collector(Collector):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @override
    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        counts = self._progress.counts()
        rows = CounterMetricFamily(
            "tessera_batch_rows", "Rows with an answer or an error.", labels=["outcome"]
        )
        rows.add_metric(["completed"], counts.completed)
        rows.add_metric(["failed"], counts.failed)
        tokens = CounterMetricFamily(
            "tessera_batch_tokens",
            "Tokens of answered rows; resent ones are an estimate.",
            labels=["kind"],
        )
        tokens.add_metric(["prompt"], counts.prompt_tokens)
        tokens.add_metric(["output"], counts.output_tokens)
        tokens.add_metric(["resent"], counts.resent_tokens)
        yield from (rows, tokens)
        yield GaugeMetricFamily(
            "tessera_batch_in_flight", "Rows at the engine.", self._progress.in_flight
        )


def encode_report(report: Mapping[str, Any]) -> bytes:
    """Return the report as JSON of at most 4,096 bytes.

    The last errors are dropped first, then the end of the message.
    """
    shortened = dict(report)
    shortened["message"] = _truncate(str(shortened.get("message", "")), _MAX_MESSAGE_LENGTH)
    while len(content := _json(shortened)) > MAX_REPORT_BYTES and shortened.get("errors"):
        shortened["errors"] = shortened["errors"][:-1]
    if len(content) > MAX_REPORT_BYTES:
        # Every character takes at most twelve bytes as JSON.
        shortened["message"] = _truncate(shortened["message"], _MAX_MESSAGE_LENGTH // 12)
        content = _json(shortened)
    return content


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write the report; a failure is logged, since the exit code has the outcome."""
    try:
        # The kubelet's file can be written but not replaced.
        path.write_bytes(encode_report(report))
    except OSError as error:
        log.error("cannot write the report to %s: %s", path, error.strerror)


def _json(report: Mapping[str, Any]) -> bytes:
    return json.dumps(report, separators=(",", ":")).encode()


def _truncate(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


@asynccontextmanager
async def serve(app: web.Application, host: str, port: int) -> AsyncIterator[None]:
    """Serve the application while the block runs; TransientError when the port is not free."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise TransientError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    try:
        yield
    finally:
        await runner.cleanup()


def status_app(progress: Progress) -> web.Application:
    """Return the application with `/healthz`, `/progress` and `/metrics`."""
    metrics = metrics_registry(progress)

    async def healthz(_: web.Request) -> web.Response:
        if progress.stalled:
            return web.Response(text=f"idle for {progress.idle_seconds:.0f} s", status=503)
        return web.Response(text="ok")

    async def show_progress(_: web.Request) -> web.Response:
        return web.json_response(progress.as_dict())

    async def show_metrics(_: web.Request) -> web.Response:
        content = generate_latest(metrics)
        return web.Response(body=content, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/progress", show_progress)
    app.router.add_get("/metrics", show_metrics)
    return app
