"""Samples of an engine's `/metrics`, and the engine's activity between two scrapes."""

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from tessera.domain.perf.utilization import HardwarePeaks, mfu

RUNNING, WAITING, KV_USAGE = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
)
_TOKENS = "vllm:generation_tokens_total"
_STEPS = "vllm:iteration_tokens_total_count"
_QUEUE_SECONDS, _QUEUE_COUNT = (
    "vllm:request_queue_time_seconds_sum",
    "vllm:request_queue_time_seconds_count",
)
_PREEMPTIONS = "vllm:num_preemptions_total"
_QUERIES, _HITS = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"
_FLOPS = "vllm:estimated_flops_per_gpu_total"
_READ_BYTES, _WRITTEN_BYTES = (
    "vllm:estimated_read_bytes_per_gpu_total",
    "vllm:estimated_write_bytes_per_gpu_total",
)
_PROCESS_START = "process_start_time_seconds"
_SUMMED = {RUNNING, WAITING, _TOKENS, _STEPS, _QUEUE_SECONDS, _QUEUE_COUNT, _PREEMPTIONS}
_SUMMED |= {_QUERIES, _HITS}
# Of these, ranks of one server are averaged: they are shares, or counted for each GPU.
_MEANS = {KV_USAGE, _FLOPS, _READ_BYTES, _WRITTEN_BYTES, _PROCESS_START}
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{.*\})? +(\S+)", re.MULTILINE)
# Relative difference between engine and client tokens up to which the engine's are trusted.
TOKEN_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """One scrape, summed over the ranks of the server."""

    at: float
    values: Mapping[str, float] = field(default_factory=dict)

    def get(self, name: str) -> float | None:
        return self.values.get(name)

    @property
    def is_vllm(self) -> bool:
        """Return whether a vLLM with metrics answered."""
        return _TOKENS in self.values


def parse_metrics(text: str, at: float) -> MetricsSnapshot:
    """Parse the text format of Prometheus; only known names are taken."""
    samples: dict[str, list[float]] = {}
    for name, raw_value in _SAMPLE.findall(text):
        if name in _SUMMED or name in _MEANS:
            with suppress(ValueError):
                value = float(raw_value)
                if math.isfinite(value):
                    samples.setdefault(name, []).append(value)
    return MetricsSnapshot(
        at,
        {
            name: sum(values) / (len(values) if name in _MEANS else 1)
            for name, values in samples.items()
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineActivity:
    """What the engine did during a load; None where its metrics do not say."""

    output_tokens: float
    preemptions: float | None
    batch: float | None
    """Mean tokens per step, which is the mean number of requests that a step worked on."""
    queued_seconds: float | None
    """Mean time that a request waited in the engine's queue."""
    prefix_hits: float | None
    """Share of the prompts' tokens that came from the prefix cache."""
    mfu: float | None
    """Share of the peak operations; None also when no GPU was given."""
    mbu: float | None
    """Share of the peak memory bandwidth."""
    flops_per_second: float | None
    bytes_per_second: float | None
    running: float | None
    """Mean over the scrapes during the load."""
    max_kv_usage: float | None


def is_same_process(snapshots: Iterable[MetricsSnapshot]) -> bool:
    """Return whether all scrapes are of one process: a Service may send each to another."""
    process_starts = {snapshot.get(_PROCESS_START) for snapshot in snapshots if snapshot.values}
    return len(process_starts) <= 1


def engine_activity(
    before: MetricsSnapshot,
    after: MetricsSnapshot,
    during: Iterable[MetricsSnapshot],
    peaks: HardwarePeaks | None,
) -> EngineActivity | None:
    """Return the activity between two scrapes; None when these are not of one process."""
    increase = partial(_increase, before, after)
    tokens = increase(_TOKENS)
    if tokens is None or after.at <= before.at:
        return None
    seconds = after.at - before.at
    steps, queries, hits, flops = map(increase, (_STEPS, _QUERIES, _HITS, _FLOPS))
    read, written = increase(_READ_BYTES), increase(_WRITTEN_BYTES)
    # Without --enable-mfu-metrics the counters exist and stay 0.
    byte_rate = (read + written) / seconds if read and written is not None else None
    flop_rate = flops / seconds if flops else None
    queue_seconds, dequeued = increase(_QUEUE_SECONDS), increase(_QUEUE_COUNT)
    snapshots = list(during)
    running = _values(snapshots, RUNNING)
    return EngineActivity(
        output_tokens=tokens,
        preemptions=increase(_PREEMPTIONS),
        batch=tokens / steps if steps else None,
        queued_seconds=queue_seconds / dequeued if dequeued and queue_seconds is not None else None,
        prefix_hits=hits / queries if queries and hits is not None else None,
        mfu=mfu(flop_rate, peaks.flops) if flop_rate is not None and peaks else None,
        mbu=byte_rate / peaks.bandwidth if byte_rate is not None and peaks else None,
        flops_per_second=flop_rate,
        bytes_per_second=byte_rate,
        running=sum(running) / len(running) if running else None,
        max_kv_usage=max(_values(snapshots, KV_USAGE), default=None),
    )


def _increase(before: MetricsSnapshot, after: MetricsSnapshot, name: str) -> float | None:
    first, last = before.get(name), after.get(name)
    if first is None or last is None or last < first:
        return None
    return last - first


def _values(snapshots: Iterable[MetricsSnapshot], name: str) -> list[float]:
    return [value for snapshot in snapshots if (value := snapshot.get(name)) is not None]
