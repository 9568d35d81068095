"""Reasons to doubt a metric of a load test."""

from collections.abc import Iterator

from tessera.api.text import counted
from tessera_lab.load.load_metrics import CLIENT_BUSY_SHARE, LoadMetrics

_CACHE_HIT_TOLERANCE = 0.05
_LENGTH_TOLERANCE = 0.1
_LATE_SECONDS = 0.01


def reliability_warnings(result: LoadMetrics, shared: float, *, natural_end: bool) -> Iterator[str]:
    """Yield sentences, the most serious first.

    `shared` of the prompts' tokens repeat by design; with `natural_end` outputs may be shorter than
    requested.
    """
    measurement = result.measurement
    if measurement.unfinished:
        yield (f"interrupted: {counted(measurement.unfinished, 'unfinished request')} not counted")
    if result.failures:
        yield from _failures(result)
    yield from _client(result)
    yield from _cache(result, shared)
    yield from _lengths(result, natural_end=natural_end)
    yield from _engine(result)


def _failures(result: LoadMetrics) -> Iterator[str]:
    for kind, count in result.failures.items():
        first = next(
            response for response in result.measurement.responses if response.failure == kind
        )
        yield f"{count} {kind}, the first: {first.detail}"
    yield f"all other figures are of the {counted(result.completed, 'completed request')}"


def _client(result: LoadMetrics) -> Iterator[str]:
    client = result.client
    if client.cpu_share > CLIENT_BUSY_SHARE:
        yield (
            f"the client used {client.cpu_share:.0%} of a core and may be the bottleneck itself; "
            "run it on another machine, or with less load"
        )
    first = result.latencies.ttft
    if client.late_seconds > max(_LATE_SECONDS, 0.05 * first.p50 if first else 0):
        yield (
            f"requests were sent {client.late_seconds * 1e3:.0f} ms late (P95), which counts as "
            "latency of the server"
        )


def _cache(result: LoadMetrics, shared: float) -> Iterator[str]:
    shares = [
        result.cached_share,
        result.activity.prefix_hits if result.activity and result.counters_match else None,
    ]
    share = max((value for value in shares if value is not None), default=0.0)
    if share > shared + _CACHE_HIT_TOLERANCE:
        yield (
            f"prefix cache is warm: {share:.0%} of the prompts' tokens were cached, {shared:.0%} "
            "are shared by design, so TTFT is too low; take another --seed"
        )


def _lengths(result: LoadMetrics, *, natural_end: bool) -> Iterator[str]:
    complete = [response for response in result.measurement.responses if response.complete]
    if not complete:
        return
    if any(not response.exact_tokens for response in complete):
        yield (
            "the server sends no usage: each chunk counts as one token, which is too few where "
            "chunks have several, and prompt tokens are not known"
        )
    requested = sum(response.request.output_tokens for response in complete)
    if not natural_end and abs(result.output_tokens - requested) > _LENGTH_TOLERANCE * requested:
        yield (
            f"mean output tokens are {result.output_tokens / len(complete):.0f} instead of "
            f"{requested / len(complete):.0f}: the server ends responses by itself"
        )
    requested = sum(response.request.input_tokens for response in complete)
    if result.input_tokens and abs(result.input_tokens - requested) > _LENGTH_TOLERANCE * requested:
        yield (
            f"mean prompt tokens are {result.input_tokens / len(complete):.0f} instead of "
            f"{requested / len(complete):.0f}: the figures are those of the real lengths"
        )


def _engine(result: LoadMetrics) -> Iterator[str]:
    measurement, activity = result.measurement, result.activity
    if not measurement.before.is_vllm:
        return
    if activity is None:
        yield (
            "the engine's metrics are not of one process throughout (several replicas, or a "
            "restart) and are left out; give each engine with --metrics URL,URL"
        )
    elif not result.counters_match:
        client_tokens = sum(response.output_tokens for response in measurement.responses)
        yield (
            f"the engine counted {activity.output_tokens:.0f} output tokens, the client "
            f"{client_tokens}: with other users or several replicas the engine's figures are not "
            "of this test alone"
        )
