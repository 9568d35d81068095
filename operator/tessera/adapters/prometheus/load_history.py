"""The load of each service in the last seven days, by the engines' own series in Prometheus.

A service is asked for at most hourly, a day at a time, and from then on for what is new alone. So a
fleet costs Prometheus little, and a service with series that no answer has room for costs the
others nothing.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import NamedTuple, Protocol, TypeAlias

from tessera.adapters.prometheus.queries import (
    SERVICE,
    VARIANT,
    BoundedQuery,
    Bounds,
    Queries,
    each_engine,
    short_groups,
    split_by_query,
    union_query,
)
from tessera.adapters.prometheus.rows import QueryRow
from tessera.adapters.prometheus.speeds import CACHE_SIZES, cache_tokens, quotient
from tessera.api.ref import Ref
from tessera.domain.observed.load_history import LONGEST, SPAN, LoadHistory, LoadSpan, PackedSpans

_SPAN_SECONDS = SPAN // timedelta(seconds=1)
# As much as one step asks for.
_CHUNK = timedelta(days=1)
# How long a sample may take to be in Prometheus.
_SETTLED = timedelta(minutes=2)
_INTERVAL, _RETRY_INTERVAL = timedelta(hours=1), timedelta(minutes=10)
# So many of the ten minutes of a span have a sample of an engine; others have a gap in them.
_LEAST_MINUTES = 9
# More bounds than the histogram of an engine has.
_MAX_BUCKETS = 64
# No sum of ten minutes is larger.
_BOUNDS = Bounds((), 1e12)
# What no service has: requests per second, and tokens of a request.
_MAX_RATE, _MAX_TOKENS = 1e6, 1e8
# The bounds of an engine's histogram are 1, 2, 5, 10 and so on; beyond the last one ends the next.
_NEXT_BOUND = 2.5


class RecordedService(NamedTuple):
    """A service whose load is read."""

    ref: Ref
    model_name: str
    """The name by which clients ask for its model: under another one, it was another's load."""


class RangeQueries(Protocol):
    """What is asked."""

    async def query_range(
        self, query: BoundedQuery, start: datetime, end: datetime, step: timedelta
    ) -> list[QueryRow]:
        """Return the rows of a span; MetricsError on failure."""


@dataclass(slots=True)
class _Reading:
    """How far the load of a service is read."""

    due: datetime
    until: datetime
    spans: Sequence[LoadSpan] = ()


class LoadHistories:
    """Reads the load of one service after the other; what is known stays while reads fail."""

    def __init__(self, metrics: RangeQueries) -> None:
        self._metrics = metrics
        self._readings: dict[RecordedService, _Reading] = {}
        self.by_service: Mapping[Ref, LoadHistory] = {}
        """Those that were read from their beginning, by service."""

    def due(self, services: Iterable[RecordedService], at: datetime) -> RecordedService | None:
        """Return the service to read now, and forget those that are no more."""
        readings, beginning = self._readings, datetime.min.replace(tzinfo=UTC)
        self._readings = {
            service: readings.get(service) or _Reading(at, beginning) for service in services
        }
        refs = {service.ref for service in self._readings if service in readings}
        if not self.by_service.keys() <= refs:
            known = self.by_service.items()
            self.by_service = {ref: history for ref, history in known if ref in refs}
        service = min(self._readings, key=lambda each: self._readings[each].due, default=None)
        return service if service is not None and self._readings[service].due <= at else None

    async def read(self, service: RecordedService, at: datetime) -> datetime:
        """Read a day of a service that is due, and return until when its load is read.

        Raises MetricsError on failure, after which the service waits.
        """
        reading = self._readings[service]
        due, reading.due = reading.due, at + _RETRY_INTERVAL
        end = _last_end(at - _SETTLED)
        begin = max(reading.until, end - LONGEST)
        until = min(end, begin + _CHUNK)
        if begin < until:
            rows_by_query = await self._rows(service, begin + SPAN, until)
            # Many labels take too long for the event loop.
            spans = await asyncio.to_thread(spans_of, rows_by_query)
            reading.spans = [*reading.spans, *spans]
            reading.until = until
        if until < end:
            reading.due = due
            return until
        reading.due = at + _INTERVAL
        reading.spans = PackedSpans(span for span in reading.spans if span.end > end - LONGEST)
        history = LoadHistory(read_at=at, spans=reading.spans)
        self.by_service = {**self.by_service, service.ref: history}
        return end

    async def _rows(
        self, service: RecordedService, start: datetime, end: datetime
    ) -> Mapping[str, list[QueryRow]]:
        rows: list[QueryRow] = []
        for group in short_groups(_queries(service)):
            query = BoundedQuery(union_query(group), _BOUNDS)
            rows += await self._metrics.query_range(query, start, end, SPAN)
        return split_by_query(rows)


def _last_end(at: datetime) -> datetime:
    """Return the last end of a span by a moment: all clocks and leaders have the same spans."""
    return datetime.fromtimestamp(at.timestamp() // _SPAN_SECONDS * _SPAN_SECONDS, UTC)


def _queries(service: RecordedService) -> Queries:
    """Return the queries for the engines of a service; each row has a value for each span."""
    namespace, name = service.ref.namespace, service.ref.name
    matchers = f'namespace="{namespace}",{SERVICE}="{name}",model_name="{service.model_name}"'
    span = f"[{_SPAN_SECONDS}s]"

    def over(function: str, metric: str, *labels: str) -> str:
        return each_engine(f"{function}({metric}{{%s}}{span})", *labels, matchers=matchers)

    running = "present_over_time(vllm:num_requests_running{%s}[1m])"
    present = f"count({each_engine(running, matchers=matchers)})"
    buckets = over("increase", "vllm:request_prompt_tokens_bucket", "le")
    sizes = over("max_over_time", "vllm:cache_config_info", *CACHE_SIZES)
    by_sizes = f"count by ({VARIANT}, {', '.join(CACHE_SIZES)}) ({sizes})"
    texts = {
        "minutes": f"count_over_time(({present}){span[:-1]}:1m])",
        "requests": f"sum({over('increase', 'vllm:request_success_total', 'finished_reason')})",
        "answers": f"sum({over('increase', 'vllm:request_generation_tokens_count')})",
        "inputs": f"sum({over('increase', 'vllm:request_prompt_tokens_sum')})",
        "outputs": f"sum({over('increase', 'vllm:request_generation_tokens_sum')})",
        "prompts": f"sum({over('increase', 'vllm:prompt_tokens_total')})",
        "cached": f"sum({over('increase', 'vllm:prompt_tokens_cached_total')})",
        "buckets": f"topk({_MAX_BUCKETS}, sum by (le) ({buckets}))",
        "running": f"sum by ({VARIANT}) ({over('sum_over_time', 'vllm:num_requests_running')})",
        "kv_usage": f"sum by ({VARIANT}) ({over('sum_over_time', 'vllm:kv_cache_usage_perc')})",
        "cache": f"topk by ({VARIANT}) (3, {by_sizes})",
    }
    return {name: BoundedQuery(text, _BOUNDS) for name, text in texts.items()}


# The values of a query at one moment, by the label that tells its rows apart.
_Values: TypeAlias = Mapping[str, dict[str, float]]


def spans_of(rows_by_query: Mapping[str, Sequence[QueryRow]]) -> list[LoadSpan]:
    """Return the spans that Prometheus has whole, oldest first."""
    values_at: dict[float, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for name, rows in rows_by_query.items():
        for row in rows:
            # Rows of a cache are told apart by variant too: the smallest counts.
            label = row["metric"].get("le" if name == "buckets" else VARIANT, "")
            tokens = min(cache_tokens(row), default=None) if name == "cache" else None
            for moment, value in row["values"]:
                values = values_at[moment][name]
                if name != "cache":
                    values[label] = value
                elif tokens is not None:
                    values[label] = min(tokens, values.get(label, tokens))
    spans = (_span(moment, values) for moment, values in sorted(values_at.items()))
    return [span for span in spans if span is not None]


def _span(moment: float, values: _Values) -> LoadSpan | None:
    """Return the span that ends at a moment; None of one that is not known whole."""
    requests = _sum(values, "requests")
    if (_sum(values, "minutes") or 0.0) < _LEAST_MINUTES or requests is None:
        return None
    rate, end = requests / _SPAN_SECONDS, datetime.fromtimestamp(moment, UTC)
    if not requests:
        return LoadSpan(
            end=end,
            rate=0.0,
            input_tokens=0.0,
            output_tokens=0.0,
            input_variation=0.0,
            resident_tokens=0.0,
        )
    prompt, answer = (
        quotient(_sum(values, name), _sum(values, "answers")) for name in ("inputs", "outputs")
    )
    if rate > _MAX_RATE or not prompt or answer is None or max(prompt, answer) > _MAX_TOKENS:
        return None
    cached = quotient(_sum(values, "cached"), _sum(values, "prompts"))
    return LoadSpan(
        end=end,
        rate=rate,
        input_tokens=prompt,
        output_tokens=answer,
        input_variation=_variation(values["buckets"]),
        resident_tokens=_resident_tokens(values) or prompt + answer / 2,
        cached_share=min(1.0, cached or 0.0),
    )


def _sum(values: _Values, name: str) -> float | None:
    """Return the value of a query that has one row."""
    return values[name].get("")


def _resident_tokens(values: _Values) -> float | None:
    """Return the tokens in use in the caches divided by the running requests; None without any.

    Of a variant whose engines name no size of their cache nothing counts.
    """
    sizes, usage, running = values["cache"], values["kv_usage"], values["running"]
    variants = sizes.keys() & usage.keys() & running.keys()
    tokens = sum(usage[variant] * sizes[variant] for variant in sorted(variants))
    resident = quotient(tokens, sum(running[variant] for variant in sorted(variants)))
    return min(resident, max(sizes.values())) if resident else None


def _variation(counts: Mapping[str, float]) -> float:
    """Return the squared coefficient of variation of a histogram, by the bounds of its buckets.

    An observation counts as the middle of its bucket: for lengths with a variation of 0.3 to 4 the
    result is 5 to 30 % too high; spread evenly within buckets they would have 0.15 to 0.5 more.
    """
    bounds = {bound: count for text, count in counts.items() if (bound := _bound(text)) is not None}
    total = first = second = 0.0
    for low, high in pairwise([0.0, *sorted(bounds)]):
        count = max(0.0, bounds[high] - bounds.get(low, 0.0))
        end = high if math.isfinite(high) else _NEXT_BOUND * low
        middle = (low + end) / 2
        total += count
        first += count * middle
        second += count * middle**2
    return max(0.0, second * total / first**2 - 1) if first else 0.0


def _bound(text: str) -> float | None:
    """Return the bound of a bucket; None of a text that is none."""
    try:
        bound = float(text)
    except ValueError:
        return None
    return bound if bound == math.inf or 1 <= bound <= _MAX_TOKENS else None
