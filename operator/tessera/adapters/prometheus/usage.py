"""The Prometheus queries for what services used in a past time, by engines and by gateways."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from tessera.adapters.prometheus.queries import (
    GATEWAY_LABELS,
    SERVICE_LABELS,
    BoundedQuery,
    Bounds,
    Queries,
    each_gateway,
    sum_by_service,
)
from tessera.adapters.prometheus.rows import QueryRow, gateway_key, service_ref, values_by
from tessera.api.ref import Ref
from tessera.domain.usage.report import UsageRow

_BOUNDS = Bounds(SERVICE_LABELS, 1e15)
# Counters with the labels of their own.
_COUNTERS = {
    "requests": ("vllm:request_success_total", "finished_reason"),
    "input": ("vllm:prompt_tokens_total",),
    "cached": ("vllm:prompt_tokens_cached_total",),
    "output": ("vllm:generation_tokens_total",),
}
# A Prometheus that has samples of the beginning has them within so long.
START_SLACK = timedelta(minutes=5)


def usage_queries(since: datetime, until: datetime) -> Queries:
    """Return the queries at the end of a span, and whether there are samples of its beginning."""
    seconds = (until - since) // timedelta(seconds=1)
    counters = {
        name: BoundedQuery(
            sum_by_service(f"increase({counter}{{%s}}[{seconds}s])", *labels), _BOUNDS
        )
        for name, (counter, *labels) in _COUNTERS.items()
    }
    return {**_started(seconds), **counters}


def _started(seconds: int) -> Queries:
    """Return the query that has a row where there are samples of so many seconds ago."""
    offset = max(0, seconds - START_SLACK // timedelta(seconds=1))
    # Of this metric a page can add no series, however many it has of its own.
    return {"started": BoundedQuery(f"count(up offset {offset}s)", Bounds((), 1e9))}


def token_queries(target: str, since: datetime, until: datetime) -> Queries:
    """Return the queries for tokens that gateways recorded; `target` selects their series alone.

    Those by service have all tokens. Those by tenant have not where pairs of tenants and services
    are many, and are from before there were others.
    """
    seconds = (until - since) // timedelta(seconds=1)
    whole = f"increase(tessera_gateway_service_tokens_total{{%s}}[{seconds}s])"
    by_service = f"sum by (service) ({each_gateway(whole, target, 'service')})"
    matchers = f'kind=~"input|output",{target}'
    series = f"increase(tessera_gateway_tokens_total{{%s}}[{seconds}s])"
    text = f"sum by (service) ({each_gateway(series, matchers, 'tenant', 'service', 'kind')})"
    bounds = Bounds(GATEWAY_LABELS, 1e15)
    queries = {"by_service": BoundedQuery(by_service, bounds), "tokens": BoundedQuery(text, bounds)}
    return {**_started(seconds), **queries}


def tokens_of(rows_by_query: Mapping[str, Sequence[QueryRow]]) -> Mapping[Ref, int] | None:
    """Return input and output tokens by service; None without samples of the beginning."""
    if not rows_by_query["started"]:
        return None
    pairs = values_by(rows_by_query["tokens"], gateway_key)
    whole = values_by(rows_by_query["by_service"], gateway_key)
    return {
        service: round(max(pairs.get(service, 0.0), whole.get(service, 0.0)))
        for service in {*pairs, *whole}
    }


def usage_rows(rows_by_query: Mapping[str, Sequence[QueryRow]]) -> tuple[UsageRow, ...] | None:
    """Return what each service used; None without samples of the beginning."""
    if not rows_by_query["started"]:
        return None
    requests, inputs, cached, outputs = (
        values_by(rows_by_query[name], service_ref) for name in _COUNTERS
    )
    return tuple(
        UsageRow(
            group=(str(service),),
            requests=round(requests.get(service, 0.0)),
            failed=0,
            aborted=0,
            estimated=0,
            input_tokens=round(inputs.get(service, 0.0)),
            # An extrapolated part is never more than the whole.
            cached_tokens=round(min(cached.get(service, 0.0), inputs.get(service, 0.0))),
            output_tokens=round(outputs[service]),
            reasoning_tokens=0,
        )
        for service in sorted(outputs)
    )
