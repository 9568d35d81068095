"""What an engine's `/metrics` say, and what it did between two looks."""

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from tessera.domain.hardware import Hardware

RUNNING, WAITING, KV_USAGE = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
)
_TOKENS = "vllm:generation_tokens_total"
_STEPS = "vllm:iteration_tokens_total_count"
_QUEUED, _QUEUED_COUNT = (
    "vllm:request_queue_time_seconds_sum",
    "vllm:request_queue_time_seconds_count",
)
_PREEMPTIONS = "vllm:num_preemptions_total"
_QUERIES, _HITS = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"
_FLOPS = "vllm:estimated_flops_per_gpu_total"
_READ, _WRITTEN = (
    "vllm:estimated_read_bytes_per_gpu_total",
    "vllm:estimated_write_bytes_per_gpu_total",
)
_BIRTH = "process_start_time_seconds"
_SUMMED = {
    *(RUNNING, WAITING, _TOKENS, _STEPS, _QUEUED, _QUEUED_COUNT, _PREEMPTIONS, _QUERIES, _HITS),
}
_MEANS = {KV_USAGE, _FLOPS, _READ, _WRITTEN, _BIRTH}
"""Of these, ranks of one server are averaged: they are shares, or counted for each GPU."""
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{.*\})? +(\S+)", re.MULTILINE)
TRUSTED = 0.05
"""By how much of the client's tokens the engine's may differ before its figures are doubted."""


@dataclass(frozen=True, slots=True)
class Look:
    """The metrics at a moment, summed over the ranks of the server."""

    at: float
    values: Mapping[str, float] = field(default_factory=dict)

    def get(self, name: str) -> float | None:
        return self.values.get(name)

    @property
    def speaks(self) -> bool:
        """It is a vLLM that counts."""
        return _TOKENS in self.values


def look(text: str, at: float) -> Look:
    """The text form of Prometheus, of which only known names are taken."""
    found: dict[str, list[float]] = {}
    for name, text_of_value in _SAMPLE.findall(text):
        if name in _SUMMED or name in _MEANS:
            with suppress(ValueError):
                value = float(text_of_value)
                if math.isfinite(value):
                    found.setdefault(name, []).append(value)
    return Look(
        at,
        {
            name: sum(values) / (len(values) if name in _MEANS else 1)
            for name, values in found.items()
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """What one GPU or slice could do at most."""

    name: str
    flops: float
    bandwidth: float


def peaks(hardware: Hardware, *, fp8: bool) -> Peaks | None:
    """None when the hardware does not compute at 8 bits and should."""
    flops = hardware.fp8_flops if fp8 else hardware.bf16_flops
    if flops is None:
        return None
    name = hardware.product + (f"/{hardware.profile}" if hardware.profile else "")
    return Peaks(name=name, flops=flops, bandwidth=hardware.bandwidth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the engine did during a load; None where its counters do not say."""

    output_tokens: float
    preemptions: float | None
    batch: float | None
    """Mean number of tokens that a step gave out, which is how many answers it worked on."""
    queued_seconds: float | None
    """Mean time that a request waited in the engine before it was begun."""
    prefix_hits: float | None
    """Share of the prompts' tokens that came out of the prefix cache."""
    mfu: float | None
    """Share of the peak operations; None also when no GPU was named."""
    mbu: float | None
    """Share of the peak memory bandwidth."""
    flops_per_second: float | None
    bytes_per_second: float | None
    running: float | None
    """Mean of the looks during the load."""
    most_waiting: float | None
    most_kv: float | None


def one_engine(looks: Iterable[Look]) -> bool:
    """All looks are of one process: a Service may lead each of them to another replica."""
    births = {one.get(_BIRTH) for one in looks if one.values}
    return len(births) <= 1


def work(before: Look, after: Look, during: Iterable[Look], peaks: Peaks | None) -> Work | None:
    """None when the two looks cannot be of one engine's counters."""
    tokens = _grown(before, after, _TOKENS)
    if tokens is None or after.at <= before.at:
        return None
    seconds = after.at - before.at
    steps, queries = _grown(before, after, _STEPS), _grown(before, after, _QUERIES)
    hits, flops = _grown(before, after, _HITS), _grown(before, after, _FLOPS)
    read, written = _grown(before, after, _READ), _grown(before, after, _WRITTEN)
    # An engine that was not told to estimate has the counters, and they stand still.
    moved = (read + written) / seconds if read and written is not None else None
    computed = flops / seconds if flops else None
    queued, begun = _grown(before, after, _QUEUED), _grown(before, after, _QUEUED_COUNT)
    looks = list(during)
    running = _all(looks, RUNNING)
    return Work(
        output_tokens=tokens,
        preemptions=_grown(before, after, _PREEMPTIONS),
        batch=tokens / steps if steps else None,
        queued_seconds=queued / begun if begun and queued is not None else None,
        prefix_hits=hits / queries if queries and hits is not None else None,
        mfu=mfu(computed, peaks.flops) if computed is not None and peaks else None,
        mbu=moved / peaks.bandwidth if moved is not None and peaks else None,
        flops_per_second=computed,
        bytes_per_second=moved,
        running=sum(running) / len(running) if running else None,
        most_waiting=max(_all(looks, WAITING), default=None),
        most_kv=max(_all(looks, KV_USAGE), default=None),
    )


def mfu(achieved: float, peak: float) -> float:
    """Share of the peak operations that was achieved (F05)."""
    return achieved / peak


def _grown(before: Look, after: Look, name: str) -> float | None:
    first, last = before.get(name), after.get(name)
    if first is None or last is None or last < first:
        return None
    return last - first


def _all(looks: Iterable[Look], name: str) -> list[float]:
    return [value for one in looks if (value := one.get(name)) is not None]
