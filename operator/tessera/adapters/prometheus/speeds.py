"""The Prometheus queries for the speed of engines, by service and variant."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from tessera.adapters.prometheus.queries import (
    OF_SERVICES,
    POD_LABELS,
    SERVICE,
    SERVICE_LABELS,
    VARIANT,
    BoundedQuery,
    Bounds,
    Queries,
    each_engine,
)
from tessera.adapters.prometheus.rows import QueryRow, pod_ref, sample_value, values_by, variant_key
from tessera.api.text import parse_decimal
from tessera.domain.observed.snapshot import SPEED_SECONDS, Ref, SpeedReading, StepReading

_GROUP_BY = f"by (namespace, {SERVICE}, {VARIANT})"
CACHE_SIZES = ("kv_cache_size_tokens", "num_gpu_blocks", "block_size")
_REQUESTS = "increase(vllm:request_success_total{%s}[5m])"
_BUCKETS = each_engine("rate(vllm:inter_token_latency_seconds_bucket{%s}[5m])", "le")


def _over(
    function: str,
    metric: str,
    span: str,
    high: float,
    aggregation: str = "sum",
    parameter: str = "",
) -> BoundedQuery:
    series = f"{function}({parameter}{metric}{{%s}}[{span}])"
    query = f"{aggregation} {_GROUP_BY} ({each_engine(series)})"
    return BoundedQuery(query, Bounds(SERVICE_LABELS, high))


# The bounds are beyond what any engine does, and small enough that sums and quotients stay finite.
SPEEDS: Queries = {
    "requests": BoundedQuery(
        f"sum {_GROUP_BY} ({each_engine(_REQUESTS, 'finished_reason')})",
        Bounds(SERVICE_LABELS, 1e9),
    ),
    "tokens": _over("rate", "vllm:generation_tokens_total", "5m", 1e9),
    "steps": _over("rate", "vllm:iteration_tokens_total_count", "5m", 1e6),
    "worked": _over("rate", "vllm:iteration_tokens_total_sum", "5m", 1e9),
    "gaps": _over("rate", "vllm:inter_token_latency_seconds_count", "5m", 1e9),
    "gap_seconds": _over("rate", "vllm:inter_token_latency_seconds_sum", "5m", 1e6),
    "median": BoundedQuery(
        f"histogram_quantile(0.5, sum by (namespace, {SERVICE}, {VARIANT}, le) ({_BUCKETS}))",
        Bounds(SERVICE_LABELS, 3600),
    ),
    "inputs": _over("increase", "vllm:request_prompt_tokens_sum", "10m", 1e12),
    "outputs": _over("increase", "vllm:request_generation_tokens_sum", "10m", 1e12),
    "answers": _over("increase", "vllm:request_generation_tokens_count", "10m", 1e9),
    "prompts": _over("increase", "vllm:prompt_tokens_total", "10m", 1e12),
    "cached": _over("increase", "vllm:prompt_tokens_cached_total", "10m", 1e12),
    "preemptions": _over("increase", "vllm:num_preemptions_total", "5m", 1e9),
    "running": _over("avg_over_time", "vllm:num_requests_running", "5m", 1e6, "avg"),
    "running_median": _over(
        "quantile_over_time", "vllm:num_requests_running", "10m", 1e6, "avg", "0.5, "
    ),
    "drafts": _over("increase", "vllm:spec_decode_num_drafts_total", "5m", 1e12),
    "drafted": _over("increase", "vllm:spec_decode_num_draft_tokens_total", "5m", 1e12),
    "accepted": _over("increase", "vllm:spec_decode_num_accepted_tokens_total", "5m", 1e12),
    "kv_usage": _over("avg_over_time", "vllm:kv_cache_usage_perc", "5m", 1.01, "avg"),
    "flops": _over("rate", "vllm:estimated_flops_per_gpu_total", "5m", 1e18, "avg"),
    "read": _over("rate", "vllm:estimated_read_bytes_per_gpu_total", "5m", 1e15, "avg"),
    "written": _over("rate", "vllm:estimated_write_bytes_per_gpu_total", "5m", 1e15, "avg"),
    # The sizes are labels of the page, so the number of rows is limited for each service.
    "cache": BoundedQuery(
        f"topk {_GROUP_BY} (3, count by (namespace, {SERVICE}, {VARIANT}, "
        f"{', '.join(CACHE_SIZES)}) "
        f"({each_engine('vllm:cache_config_info{%s}', *CACHE_SIZES)}))",
        Bounds(SERVICE_LABELS, 1e6),
    ),
}


def _of_replicas(series: str, high: float) -> BoundedQuery:
    query = f"sum by (namespace, pod) ({each_engine(f'increase({series}{{%s}}[2m])')})"
    return BoundedQuery(query, Bounds(POD_LABELS, high))


def _scraped(span: str) -> str:
    series = f"vllm:iteration_tokens_total_count{OF_SERVICES}{span}"
    return f"and on (namespace, pod) group by (namespace, pod) (present_over_time({series}))"


_REPLICA_STEPS = _of_replicas("vllm:iteration_tokens_total_count", 1e9)
# Of each replica, over `STEP_SECONDS`.
STEPS: Queries = {
    # Of scrapes that are missing at the beginning or the end, an increase has no steps.
    "replica_steps": _REPLICA_STEPS._replace(
        text=f"{_REPLICA_STEPS.text} {_scraped('[35s]')} {_scraped('[35s] offset 85s')}"
    ),
    "replica_worked": _of_replicas("vllm:iteration_tokens_total_sum", 1e12),
    "replica_tokens": _of_replicas("vllm:generation_tokens_total", 1e12),
    "replica_accepted": _of_replicas("vllm:spec_decode_num_accepted_tokens_total", 1e12),
    # The mean of the devices of a pod; of two exporters of a device one may hang at 0.
    "replica_activity": BoundedQuery(
        "avg by (namespace, pod) (max by (namespace, pod, UUID, GPU_I_ID) "
        '(avg_over_time(DCGM_FI_PROF_GR_ENGINE_ACTIVE{pod!=""}[2m])))',
        Bounds(POD_LABELS, 1.01),
    ),
    "replica_running": BoundedQuery(
        f"min by (namespace, pod) (min_over_time(vllm:num_requests_running{OF_SERVICES}[2m]))",
        Bounds(POD_LABELS, 1e6),
    ),
}
# A larger number in a label is no size of a cache.
_MAX_CACHE_SIZE = 10**12 - 1
_MAX_QUOTIENT = 1e9


def steps_of(by_query: Mapping[str, Sequence[QueryRow]]) -> dict[Ref, StepReading]:
    """Return a reading for each replica whose engine stepped."""
    steps, worked, tokens, accepted, activity, running = (
        values_by(by_query.get(name, ()), pod_ref) for name in STEPS
    )
    return {
        pod: StepReading(
            steps=steps[pod],
            sequences=max(0.0, tokens[pod] - accepted.get(pod, 0.0)) / steps[pod],
            prefill_tokens=max(0.0, worked[pod] - tokens[pod]) / steps[pod],
            activity=activity.get(pod),
            is_busy=running.get(pod, 0.0) > 0,
        )
        for pod in steps.keys() & worked.keys() & tokens.keys()
        if steps[pod] > 0
    }


def speeds_of(by_query: Mapping[str, Sequence[QueryRow]]) -> dict[Ref, tuple[SpeedReading, ...]]:
    """Return a reading for each variant of each service, sorted by variant."""
    numbers: dict[tuple[Ref, str], dict[str, float]] = defaultdict(dict)
    for name in SPEEDS.keys() & by_query.keys() - {"cache"}:
        for row in by_query[name]:
            numbers[variant_key(row)][name] = sample_value(row)
    caches: dict[tuple[Ref, str], list[int]] = defaultdict(list)
    for row in by_query.get("cache", ()):
        caches[variant_key(row)] += cache_tokens(row)
    readings_by_service: dict[Ref, list[SpeedReading]] = defaultdict(list)
    for key in sorted(numbers.keys() | caches.keys()):
        ref, variant = key
        reading = _speed_reading(variant, numbers[key], min(caches[key], default=None))
        readings_by_service[ref].append(reading)
    return {ref: tuple(readings) for ref, readings in readings_by_service.items()}


def _speed_reading(
    variant: str, values: Mapping[str, float], kv_tokens: int | None
) -> SpeedReading:
    tokens, processed_tokens = values.get("tokens"), values.get("worked")
    prefilled_tokens = (
        processed_tokens - tokens if processed_tokens is not None and tokens is not None else None
    )
    read, written = values.get("read"), values.get("written")
    requests = values.get("requests")
    requests_per_second = requests / SPEED_SECONDS if requests is not None else None
    # Accepted drafts are further tokens of a sequence that gets one from each step anyway.
    first_tokens = tokens and tokens - values.get("accepted", 0.0) / SPEED_SECONDS
    return SpeedReading(
        variant=variant or None,
        requests=requests,
        tokens_per_second=tokens,
        sequences=quotient(first_tokens, values.get("steps")),
        prefill_tokens=quotient(prefilled_tokens, values.get("steps")),
        prompt_tokens=quotient(prefilled_tokens, requests_per_second),
        mean_input_tokens=quotient(values.get("inputs"), values.get("answers")),
        mean_output_tokens=quotient(values.get("outputs"), values.get("answers")),
        cached_share=_cached_share(values.get("cached"), values.get("prompts")),
        itl_seconds=quotient(values.get("gap_seconds"), values.get("gaps")),
        median_itl_seconds=values.get("median"),
        preemptions=values.get("preemptions"),
        running=values.get("running"),
        median_running=values.get("running_median"),
        drafts=values.get("drafts"),
        drafted_tokens=values.get("drafted"),
        accepted_tokens=values.get("accepted"),
        kv_usage=values.get("kv_usage"),
        kv_tokens=kv_tokens,
        flops_per_second=values.get("flops"),
        bytes_per_second=read + written if read is not None and written is not None else None,
    )


def quotient(numerator: float | None, denominator: float | None) -> float | None:
    """Return the quotient; None also when the denominator is 0 because nothing happened."""
    if numerator is None or not denominator:
        return None
    quotient = max(0.0, numerator) / denominator
    return quotient if quotient <= _MAX_QUOTIENT else None


def _cached_share(cached: float | None, prompts: float | None) -> float | None:
    """Return the share, of which an engine that counts wrongly has all at most."""
    share = quotient(cached, prompts)
    return share if share is None else min(1.0, share)


def cache_tokens(row: QueryRow) -> Iterator[int]:
    """Yield the KV cache size in tokens.

    An engine writes `None` into labels that it cannot fill.
    """
    labels = row["metric"]
    size, blocks, block = (
        parse_decimal(labels.get(name, ""), _MAX_CACHE_SIZE) for name in CACHE_SIZES
    )
    if size is not None:
        yield size
    elif blocks is not None and block is not None:
        yield blocks * block
