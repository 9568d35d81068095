"""The measurement of one load, and the metrics that follow from it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tessera.domain.perf.utilization import HardwarePeaks
from tessera_lab.load.distribution import distribution
from tessera_lab.load.engine_metrics import (
    TOKEN_TOLERANCE,
    EngineActivity,
    MetricsSnapshot,
    engine_activity,
    is_same_process,
)
from tessera_lab.load.knee import Knee, find_knee
from tessera_lab.load.responses import BenchResponse, LatencySummary, summarize_latencies
from tessera_lab.load.token_cost import HourlyPrice, TokenCost, token_cost

# Share of a processor from which on the client may be what is measured.
CLIENT_BUSY_SHARE = 0.8
_KV_FULL_SHARE = 0.95
# Sum of MFU and MBU from which on a device is at its limits.
_NEAR_PEAK = 0.6
_QUEUE_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadMeasurement:
    """One load as it was measured; timestamps are seconds on the client's clock."""

    name: str
    concurrency: int | None
    """Concurrent requests of a closed loop; None in an open loop."""
    responses: Sequence[BenchResponse]
    unfinished: int = 0
    """Requests that the user interrupted; they are no failures and count nowhere else."""
    started_at: float
    ended_at: float
    cpu_seconds: float
    """CPU time of the client."""
    before: MetricsSnapshot
    after: MetricsSnapshot
    during: Sequence[MetricsSnapshot] = field(default=())

    @property
    def seconds(self) -> float:
        return max(self.ended_at - self.started_at, 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientUsage:
    """CPU of the client, to show whether the client itself is the limit."""

    cpu_share: float
    """Share of one core; at 1 the client can do no more."""
    cpu_ms_per_request: float | None
    """Milliseconds of CPU per request."""
    cpu_us_per_chunk: float | None
    """Microseconds of CPU per streamed chunk."""
    requests_per_second: float | None
    """Rate of such requests at which the client would be the limit."""
    late_seconds: float
    """P95 of how much later than due requests were sent."""


class Bottleneck(StrEnum):
    """What limited the throughput."""

    CLIENT = "Client"
    KV_CACHE = "KvCache"
    QUEUE = "EngineQueue"
    """Requests spent a tenth of their time or more in the engine's queue, because of max_num_seqs
    or max_num_batched_tokens."""
    COMPUTE = "Compute"
    BANDWIDTH = "MemoryBandwidth"
    LOAD = "Load"
    """Nothing was at its limit: a higher load would give more."""
    UNKNOWN = "Unknown"
    """The engine's metrics were not available."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadMetrics:
    """Metrics of one load; tokens are those of completed requests."""

    measurement: LoadMeasurement
    completed: int
    failures: Mapping[str, int]
    input_tokens: int
    output_tokens: int
    cached_share: float | None
    """Share of the prompts' tokens from the prefix cache, as responses report it."""
    latencies: LatencySummary
    saturated_output_per_second: float | None
    """Output tokens per second while the concurrency was at its limit."""
    mean_concurrency: float
    """Mean number of requests in flight."""
    activity: EngineActivity | None
    counters_match: bool
    """Whether the engine counted the tokens that the client received."""
    cost: TokenCost | None
    client: ClientUsage
    bottleneck: Bottleneck

    @property
    def requests_per_second(self) -> float:
        return self.completed / self.measurement.seconds

    @property
    def output_per_second(self) -> float:
        return self.output_tokens / self.measurement.seconds

    @property
    def total_per_second(self) -> float:
        return (self.input_tokens + self.output_tokens) / self.measurement.seconds

    @property
    def per_user(self) -> float | None:
        """Return the tokens per second of one stream: the inverse of the median TPOT."""
        tpot = self.latencies.tpot
        return 1 / tpot.p50 if tpot and tpot.p50 else None


def load_metrics(
    measurement: LoadMeasurement, peaks: HardwarePeaks | None, price: HourlyPrice | None
) -> LoadMetrics:
    """Return all metrics of a measurement."""
    responses = measurement.responses
    complete = [response for response in responses if response.complete]
    inputs = sum(response.prompt_tokens or 0 for response in complete)
    outputs = sum(response.output_tokens for response in complete)
    activity, client = _activity(measurement, peaks), _client_usage(measurement)
    trusted = activity is not None and _counters_match(measurement, activity)
    latency_summary = summarize_latencies(complete)
    response_seconds = latency_summary.end_to_end.mean if latency_summary.end_to_end else math.inf
    return LoadMetrics(
        measurement=measurement,
        completed=len(complete),
        failures=dict(
            sorted(Counter(response.failure for response in responses if response.failure).items())
        ),
        input_tokens=inputs,
        output_tokens=outputs,
        cached_share=_cached_share(complete),
        latencies=latency_summary,
        saturated_output_per_second=_saturated_throughput(measurement, complete),
        mean_concurrency=sum(response.ended_at - response.sent_at for response in responses)
        / measurement.seconds,
        activity=activity,
        counters_match=trusted,
        cost=token_cost(price, inputs, outputs, measurement.seconds) if price else None,
        client=client,
        bottleneck=_bottleneck(client, activity if trusted else None, response_seconds),
    )


def sweep_knee(results: Sequence[LoadMetrics]) -> Knee | None:
    """Return the knee of a sweep, from loads without failures."""
    powers = {}
    for result in results:
        end_to_end, concurrency = result.latencies.end_to_end, result.measurement.concurrency
        if end_to_end and end_to_end.p50 and concurrency is not None and not result.failures:
            tokens_per_second = result.saturated_output_per_second or result.output_per_second
            powers[concurrency] = tokens_per_second / end_to_end.p50
    return find_knee(powers)


def _activity(measurement: LoadMeasurement, peaks: HardwarePeaks | None) -> EngineActivity | None:
    if not is_same_process([measurement.before, *measurement.during, measurement.after]):
        return None
    return engine_activity(measurement.before, measurement.after, measurement.during, peaks)


def _counters_match(measurement: LoadMeasurement, activity: EngineActivity) -> bool:
    client_tokens = sum(response.output_tokens for response in measurement.responses)
    if any(not response.complete for response in measurement.responses) or measurement.unfinished:
        # What the engine gave out for these is not known here; it cannot be less than what came.
        return activity.output_tokens >= client_tokens * (1 - TOKEN_TOLERANCE)
    return abs(activity.output_tokens - client_tokens) <= TOKEN_TOLERANCE * max(client_tokens, 1)


def _cached_share(complete: Sequence[BenchResponse]) -> float | None:
    reported = [
        response
        for response in complete
        if response.cached_tokens is not None and response.prompt_tokens
    ]
    prompts = sum(response.prompt_tokens or 0 for response in reported)
    return sum(response.cached_tokens or 0 for response in reported) / prompts if prompts else None


def _saturated_throughput(
    measurement: LoadMeasurement, complete: Sequence[BenchResponse]
) -> float | None:
    """Return the rate from the start to the last request sent; None when that is too short."""
    if measurement.concurrency is None or len(measurement.responses) < 2 * measurement.concurrency:
        return None
    last = max(response.sent_at for response in measurement.responses)
    if last <= measurement.started_at:
        return None
    tokens = 0.0
    for response in complete:
        at, arrived = response.first_token_at, 0
        if at is None:
            continue
        for gap in (0.0, *response.chunk_gaps):
            at += gap
            if at > last:
                break
            arrived += 1
        tokens += response.output_tokens * arrived / response.chunks
    return tokens / (last - measurement.started_at)


def _client_usage(measurement: LoadMeasurement) -> ClientUsage:
    responses = measurement.responses
    requests, chunks = (len(responses), sum(response.chunks for response in responses))
    late = distribution([response.sent_at - response.due_at for response in responses])
    cpu_seconds = measurement.cpu_seconds
    return ClientUsage(
        cpu_share=cpu_seconds / measurement.seconds,
        cpu_ms_per_request=cpu_seconds / requests * 1e3 if requests else None,
        cpu_us_per_chunk=cpu_seconds / chunks * 1e6 if chunks else None,
        requests_per_second=requests / cpu_seconds if cpu_seconds > 0 else None,
        late_seconds=late.p95 if late else 0.0,
    )


def _bottleneck(
    client: ClientUsage, activity: EngineActivity | None, response_seconds: float
) -> Bottleneck:
    """Return the first bottleneck that applies."""
    if client.cpu_share > CLIENT_BUSY_SHARE:
        return Bottleneck.CLIENT
    if activity is None:
        return Bottleneck.UNKNOWN
    # Prompts take the arithmetic and answers the memory, by turns, so both shares are of one time.
    near_peak = (activity.mfu or 0) + (activity.mbu or 0) > _NEAR_PEAK
    rules = (
        (
            Bottleneck.KV_CACHE,
            bool(activity.preemptions) or (activity.max_kv_usage or 0) > _KV_FULL_SHARE,
        ),
        (Bottleneck.COMPUTE, near_peak and (activity.mfu or 0) >= (activity.mbu or 0)),
        (Bottleneck.BANDWIDTH, near_peak),
        (Bottleneck.QUEUE, (activity.queued_seconds or 0) > _QUEUE_SHARE * response_seconds),
    )
    return next((bottleneck for bottleneck, applies in rules if applies), Bottleneck.LOAD)
