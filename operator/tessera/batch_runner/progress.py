"""How far an attempt is: for the report, `/progress` and `/metrics`."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from tessera.batch_runner.ledger import BatchCounts

RunnerState: TypeAlias = Literal[
    "starting", "verifying", "replaying", "running", "waiting", "assembling", "publishing"
]


class Progress:
    """What is known now."""

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self.state: RunnerState = "starting"
        self.rows = 0
        self.in_flight = 0
        self.counts: Callable[[], BatchCounts] = BatchCounts
        self.engine_away: Callable[[], bool] = bool
        """Is the engine away?"""

    def as_dict(self) -> dict[str, Any]:
        """For people and programs that watch."""
        counts, waiting = self.counts(), self.state == "running" and self.engine_away()
        return {
            "attempt": self.attempt,
            "state": "waiting" if waiting else self.state,
            "rows": self.rows,
            "done": counts.done,
            "failed": counts.failed,
            "inFlight": self.in_flight,
            **_usage_counts(counts),
        }

    def report(self, state: str, message: str) -> dict[str, Any]:
        """What the attempt leaves behind; all counts are those of the whole batch."""
        counts = self.counts()
        return {
            "phase": "run",
            "attempt": self.attempt,
            "state": state,
            "rows": self.rows,
            "completed": counts.completed,
            "failed": counts.failed,
            **_usage_counts(counts),
            "message": message,
        }


def _usage_counts(counts: BatchCounts) -> dict[str, int]:
    return {
        "repaidRows": counts.repaid_rows,
        "repaidTokens": counts.repaid_tokens,
        "promptTokens": counts.prompt_tokens,
        "outputTokens": counts.output_tokens,
    }


def metrics_registry(progress: Progress) -> CollectorRegistry:
    """The metrics of one attempt."""
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
            "Tokens of answered rows; repaid ones are an estimate.",
            labels=["kind"],
        )
        tokens.add_metric(["prompt"], counts.prompt_tokens)
        tokens.add_metric(["output"], counts.output_tokens)
        tokens.add_metric(["repaid"], counts.repaid_tokens)
        yield from (rows, tokens)
        yield GaugeMetricFamily(
            "tessera_batch_in_flight", "Rows at the engine.", self._progress.in_flight
        )
