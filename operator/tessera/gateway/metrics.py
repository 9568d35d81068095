"""The metrics of one gateway: its requests, as their usage records tell, and its store."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric

from tessera.domain.gateway.requests import UsageRecord
from tessera.gateway.store.writer import RecordOutcome

# Pairs of tenant and service with series of their own; the names of both are those of objects.
MAX_PAIRS = 500
OTHER = "(other)"
_NS = 1e9
_TTFT_BUCKETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60)
_TPOT_BUCKETS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)
_QUEUE_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_PAIR = ("tenant", "service")


@dataclass(frozen=True, slots=True)
class _PairSeries:
    """The series of one tenant and service that every request moves."""

    names: tuple[str, str]
    ttft: Histogram
    tpot: Histogram
    queue: Histogram
    tokens: Mapping[str, Counter]


class GatewayMetrics:
    """All series of a gateway pod; its supervisor keeps them for all workers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "tessera_gateway_requests",
            "Requests that ended, by HTTP status and reason.",
            (*_PAIR, "code", "reason"),
            registry=self.registry,
        )
        self._ttft = Histogram(
            "tessera_gateway_time_to_first_token_seconds",
            "Time from the arrival of a request to its first token, with the gateway's queue.",
            _PAIR,
            buckets=_TTFT_BUCKETS,
            registry=self.registry,
        )
        self._tpot = Histogram(
            "tessera_gateway_time_per_output_token_seconds",
            "Mean time between two tokens of a request.",
            _PAIR,
            buckets=_TPOT_BUCKETS,
            registry=self.registry,
        )
        self._queue = Histogram(
            "tessera_gateway_queue_duration_seconds",
            "Time that a request waited in the gateway before it was sent to an engine.",
            _PAIR,
            buckets=_QUEUE_BUCKETS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "tessera_gateway_tokens",
            "Tokens by `kind`: input, cached (part of input), output, reasoning (part of output).",
            (*_PAIR, "kind"),
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "tessera_gateway_requests_in_flight",
            "Requests at engines.",
            ("service",),
            registry=self.registry,
        )
        self._queued = Gauge(
            "tessera_gateway_requests_queued",
            "Requests that wait in the gateway.",
            ("service",),
            registry=self.registry,
        )
        self._records = Counter(
            "tessera_gateway_usage_records",
            "Usage records by `outcome`: Stored, Spooled in the pod while the store fails, or "
            "Lost.",
            ("outcome",),
            registry=self.registry,
        )
        for outcome in RecordOutcome:
            self._records.labels(outcome)
        self.records_waiting = Gauge(
            "tessera_gateway_usage_records_waiting",
            "Usage records that are not in the store.",
            registry=self.registry,
        )
        self._store_failing = Gauge(
            "tessera_gateway_store_failing_seconds",
            "For how long the store has failed, by `operation`: record or borrow; 0 while it does "
            "not.",
            ("operation",),
            registry=self.registry,
        )
        for operation in ("record", "borrow"):
            self._store_failing.labels(operation)
        self.demand_failing = Gauge(
            "tessera_gateway_demand_failing_seconds",
            "For how long no operator has taken the reports of waiting requests; 0 while one does.",
            registry=self.registry,
        )
        self._pairs: dict[tuple[str, str], _PairSeries] = {}

    def observe(self, records: Iterable[UsageRecord]) -> None:
        """Count requests that ended."""
        for record in records:
            self._observe(record)

    def _observe(self, record: UsageRecord) -> None:
        pair = self._pair(record.tenant, record.service)
        self._requests.labels(*pair.names, record.status, record.reason).inc()
        pair.queue.observe(record.queue_ns / _NS)
        if record.ttft_ns is not None:
            pair.ttft.observe(record.ttft_ns / _NS)
            if record.output_tokens > 1:
                decode_ns = max(0, record.total_ns - record.ttft_ns)
                pair.tpot.observe(decode_ns / (record.output_tokens - 1) / _NS)
        pair.tokens["input"].inc(record.input_tokens)
        pair.tokens["cached"].inc(record.cached_tokens)
        pair.tokens["output"].inc(record.output_tokens)
        pair.tokens["reasoning"].inc(record.reasoning_tokens)

    def count_records(self, outcome: RecordOutcome, count: int) -> None:
        """Count usage records on their way to the store."""
        self._records.labels(outcome).inc(count)

    def set_load(self, in_flight: Mapping[str, int], queued: Mapping[str, int]) -> None:
        """Set the requests of each service; services without any lose their series."""
        for gauge, loads in ((self._in_flight, in_flight), (self._queued, queued)):
            gauge.clear()
            for service, requests in loads.items():
                gauge.labels(service).set(requests)

    def set_store_failing(self, operation: str, seconds: float) -> None:
        """Set for how long an operation of the store has failed."""
        self._store_failing.labels(operation).set(seconds)

    def families(self) -> Iterable[Metric]:
        """Return all metrics."""
        return self.registry.collect()

    def page(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)

    def _pair(self, tenant: str, service: str) -> _PairSeries:
        if (pair := self._pairs.get((tenant, service))) is not None:
            return pair
        names = (tenant, service) if len(self._pairs) < MAX_PAIRS else (OTHER, OTHER)
        pair = _PairSeries(
            names=names,
            ttft=self._ttft.labels(*names),
            tpot=self._tpot.labels(*names),
            queue=self._queue.labels(*names),
            tokens=dict(self._token_series(names)),
        )
        if names != (OTHER, OTHER):
            self._pairs[tenant, service] = pair
        return pair

    def _token_series(self, names: tuple[str, str]) -> Iterator[tuple[str, Counter]]:
        for kind in ("input", "cached", "output", "reasoning"):
            yield kind, self._tokens.labels(*names, kind)
