"""What Prometheus is asked about the speed of engines, by service and variant."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from tessera.adapters.prometheus_queries import SERVICE, VARIANT, Row, all_of
from tessera.domain.snapshot import Ref, SpeedReading

_OURS = f'{SERVICE}!=""'
_BY = f"by (namespace, {SERVICE}, {VARIANT})"
_SIZES = ("kv_cache_size_tokens", "num_gpu_blocks", "block_size")
_BUCKETS = f"rate(vllm:inter_token_latency_seconds_bucket{{{_OURS}}}[5m])"


def _rate(metric: str, over: str = "sum") -> str:
    return f"{over} {_BY} (rate({metric}{{{_OURS}}}[5m]))"


def _mean(metric: str) -> str:
    return f"avg {_BY} (avg_over_time({metric}{{{_OURS}}}[5m]))"


SPEEDS = all_of(
    {
        "requests": f"sum {_BY} (increase(vllm:request_success_total{{{_OURS}}}[5m]))",
        "tokens": _rate("vllm:generation_tokens_total"),
        "steps": _rate("vllm:iteration_tokens_total_count"),
        "worked": _rate("vllm:iteration_tokens_total_sum"),
        "gaps": _rate("vllm:inter_token_latency_seconds_count"),
        "gap_seconds": _rate("vllm:inter_token_latency_seconds_sum"),
        "median": "histogram_quantile(0.5, "
        f"sum by (namespace, {SERVICE}, {VARIANT}, le) ({_BUCKETS}))",
        "running": _mean("vllm:num_requests_running"),
        "kv_usage": _mean("vllm:kv_cache_usage_perc"),
        "flops": _rate("vllm:estimated_flops_per_gpu_total", "avg"),
        "read": _rate("vllm:estimated_read_bytes_per_gpu_total", "avg"),
        "written": _rate("vllm:estimated_write_bytes_per_gpu_total", "avg"),
        "cache": f"count by (namespace, {SERVICE}, {VARIANT}, {', '.join(_SIZES)}) "
        f"(vllm:cache_config_info{{{_OURS}}})",
    }
)


def speeds_of(told: Mapping[str, Sequence[Row]]) -> dict[Ref, tuple[SpeedReading, ...]]:
    """The answers -> a reading for each variant of each service, in the order of their names."""
    numbers: dict[tuple[Ref, str], dict[str, float]] = defaultdict(dict)
    for name, rows in told.items():
        for row in rows if name != "cache" else ():
            numbers[_key(row)][name] = float(row["value"][1])
    caches: dict[tuple[Ref, str], list[int]] = defaultdict(list)
    for row in told.get("cache", ()):
        caches[_key(row)] += _tokens(row)
    found: dict[Ref, list[SpeedReading]] = defaultdict(list)
    for key in sorted(numbers.keys() | caches.keys()):
        ref, variant = key
        reading = _reading(variant, numbers[key], min(caches[key], default=None))
        found[ref].append(reading)
    return {ref: tuple(readings) for ref, readings in found.items()}


def _reading(variant: str, found: Mapping[str, float], kv_tokens: int | None) -> SpeedReading:
    tokens, worked = found.get("tokens"), found.get("worked")
    prompts = worked - tokens if worked is not None and tokens is not None else None
    read, written = found.get("read"), found.get("written")
    requests = found.get("requests")
    a_second = requests / 300 if requests is not None else None
    return SpeedReading(
        variant=variant or None,
        requests=requests,
        tokens_per_second=tokens,
        sequences=_quotient(tokens, found.get("steps")),
        prefill_tokens=_quotient(prompts, found.get("steps")),
        prompt_tokens=_quotient(prompts, a_second),
        itl_seconds=_quotient(found.get("gap_seconds"), found.get("gaps")),
        median_itl_seconds=found.get("median"),
        running=found.get("running"),
        kv_usage=found.get("kv_usage"),
        kv_tokens=kv_tokens,
        flops_per_second=found.get("flops"),
        bytes_per_second=read + written if read is not None and written is not None else None,
    )


def _quotient(above: float | None, below: float | None) -> float | None:
    """None also where nothing happened."""
    if above is None or not below:
        return None
    found = max(0.0, above) / below
    return found if math.isfinite(found) else None


def _tokens(row: Row) -> Iterator[int]:
    """Labels are texts, and what an engine does not know is `None` in them."""
    size, blocks, block = (row["metric"].get(name, "") for name in _SIZES)
    if size.isdecimal():
        yield int(size)
    elif blocks.isdecimal() and block.isdecimal():
        yield int(blocks) * int(block)


def _key(row: Row) -> tuple[Ref, str]:
    labels = row["metric"]
    return Ref(labels["namespace"], labels[SERVICE]), labels.get(VARIANT, "")
