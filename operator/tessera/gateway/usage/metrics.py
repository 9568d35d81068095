"""The metrics of one gateway: its requests, as their usage records tell, and its store."""

import collections
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from operator import attrgetter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric

from tessera.domain.gateway.directory import ApiKey
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import Phase, StreamLatency, UsageRecord
from tessera.domain.observed.drafts import TemperatureClass
from tessera.gateway.http.connections import ConnectionEnd
from tessera.gateway.outside.client import OutsideClient
from tessera.gateway.store.writer import RecordOutcome
from tessera.gateway.usage.latency_metrics import TargetHistogram, TargetHistograms
from tessera.gateway.usage.provider_metrics import ProviderMetrics
from tessera.gateway.usage.route_metrics import RouteMetrics

# Pairs of tenant and service with series of their own; the names of both are those of objects.
MAX_PAIRS = 500
# Largest number of services whose tokens have a series: a fleet has as many.
MAX_SERVICES = 5000
# Of one pair, by status and reason: an engine may refuse with any status, and of further ones only
# the first digit is counted.
_MAX_OUTCOMES = 24
_ANY_STATUS = RequestReason.ENGINE_REFUSED
# The service of what a tenant's other requests share.
OTHER = "(other)"
# A pair of a tenant with most of them makes room for another of his after so long without a
# request: the longest range of a rate in our alerts. More at once would begin again and again.
PAIR_IDLE_NS = 15 * 60 * 10**9
_NS = 1e9
_KEY_END_NOTICE = timedelta(days=14)
_TTFT_BUCKETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60)
_TPOT_BUCKETS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)
_QUEUE_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_PAIR = ("tenant", "service")
_KINDS = (
    *("input", "cached", "predicted_cached", "uncached_prefix", "output", "reasoning"),
    "recomputed",
)
_JOINTS = ("Checked", "Unchecked")
_DRAFTS = attrgetter("drafts", "drafted_tokens", "accepted_tokens")
_TOKENS = attrgetter(*(f"{kind}_tokens" for kind in _KINDS))


@dataclass(slots=True, kw_only=True)
class _PairSeries:
    """The series of one tenant and service."""

    names: tuple[str, str]
    requests: dict[tuple[str, str], Counter] = field(default_factory=dict)
    """By status and reason."""
    ttft: TargetHistogram
    itl: TargetHistogram
    tpot: Histogram
    queue: Histogram
    tokens: Sequence[Counter]
    joints: Sequence[Counter]
    temperatures: set[TemperatureClass] = field(default_factory=set)
    """Of the series of drafts, where its engines speculate."""
    used_ns: int = 0
    """Unix time of the end of its last admitted request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRequests:
    """The requests of one service at a gateway."""

    in_flight: int = 0
    """At engines."""
    queued: int = 0
    overdue: int = 0
    """Streams that wait for their first token longer than their target."""
    oldest_seconds: float = 0.0
    """Age of the oldest stream without a token."""


_DRAFT_SERIES = (
    (
        "speculation_drafts",
        "Steps in which engines verified drafted tokens, by the request's `temperature`: Greedy, "
        "Low (to 0.8), High or Default (none was given).",
    ),
    ("speculation_drafted_tokens", "Tokens that engines drafted, by the request's `temperature`."),
    (
        "speculation_accepted_tokens",
        "Drafted tokens that engines accepted, by the request's `temperature`.",
    ),
)
_LOADS: Sequence[tuple[str, str, Callable[[ServiceRequests], float]]] = (
    ("tessera_gateway_requests_in_flight", "Requests at engines.", lambda load: load.in_flight),
    (
        "tessera_gateway_requests_queued",
        "Requests that wait in the gateway.",
        lambda load: load.queued,
    ),
    (
        "tessera_gateway_requests_overdue",
        "Streams that wait for their first token longer than spec.slo.ttftP95.",
        lambda load: load.overdue,
    ),
    (
        "tessera_gateway_oldest_request_seconds",
        "For how long the oldest stream without a token has waited.",
        lambda load: load.oldest_seconds,
    ),
)


class RequestMetrics:
    """The series of requests that ended, by tenant and service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "tessera_gateway_requests",
            "Requests that ended, by HTTP status and reason; of very many statuses with which one "
            "engine refuses, later ones are `4xx`.",
            (*_PAIR, "code", "reason"),
            registry=registry,
        )
        self._ttft = TargetHistograms(
            "tessera_gateway_time_to_first_token_seconds",
            "Time from the arrival of a stream's request to its first token, with the gateway's "
            "queue; one bucket ends at spec.slo.ttftP95. A stream that ended without a token "
            "counts if it waited longer.",
            _PAIR,
            _TTFT_BUCKETS,
        )
        registry.register(self._ttft)
        self._itl = TargetHistograms(
            "tessera_gateway_inter_token_latency_seconds",
            "Time between two tokens of a stream; one bucket ends at spec.slo.itlP95.",
            _PAIR,
        )
        registry.register(self._itl)
        self._tpot = Histogram(
            "tessera_gateway_time_per_output_token_seconds",
            "Mean time between two tokens of a stream.",
            _PAIR,
            buckets=_TPOT_BUCKETS,
            registry=registry,
        )
        self._queue = Histogram(
            "tessera_gateway_queue_duration_seconds",
            "Time that a request waited in the gateway before it was sent to an engine.",
            _PAIR,
            buckets=_QUEUE_BUCKETS,
            registry=registry,
        )
        self._tokens = Counter(
            "tessera_gateway_tokens",
            "Tokens by `kind`: input, cached (part of input), predicted_cached (the same, as the "
            "gateway predicted), uncached_prefix (part of input that a replica of the service had, "
            "by the gateway's record, and the chosen one computed again), output, reasoning (part "
            "of output), recomputed (no part of these: what a second engine computed again since "
            "the first one failed).",
            (*_PAIR, "kind"),
            registry=registry,
        )
        self._service_tokens = Counter(
            "tessera_gateway_service_tokens",
            "Tokens of input and output of a service; prices by cost are measured by them.",
            ("service",),
            registry=registry,
        )
        self._services = OrderedDict[str, Counter]()
        self._joints = Counter(
            "tessera_gateway_streams_resumed",
            "How often streams went on at another replica, by `joint`: Checked where its engine "
            "said how it reads what came before, else Unchecked.",
            (*_PAIR, "joint"),
            registry=registry,
        )
        self._charges = Counter(
            "tessera_charge_nanos",
            "What ended requests are charged by price lists, in nano-units of the currency.",
            ("tenant", "currency"),
            registry=registry,
        )
        self._charged: dict[tuple[str, str], Counter] = {}
        self._drafts = [
            Counter(f"tessera_gateway_{name}", text, (*_PAIR, "temperature"), registry=registry)
            for name, text in _DRAFT_SERIES
        ]
        self.routes = RouteMetrics(registry)
        # Those with series of their own, and those of a tenant's other requests.
        self._pairs = OrderedDict[tuple[str, str], _PairSeries]()
        self._shared: dict[tuple[str, str], _PairSeries] = {}

    def observe(self, record: UsageRecord) -> None:
        """Count a request that ended, or a call that did not answer it: what that used."""
        pair = self._pair(record)
        if record.requests:
            self._count_request(pair, record)
        self.routes.observe(record)
        if record.latency is not None:
            _observe_stream(pair, record, record.latency)
        for tokens, counter in zip(_TOKENS(record), pair.tokens, strict=True):
            # Most requests have no tokens of most kinds.
            if tokens:
                counter.inc(tokens)
        self._count_tokens(record.service, record.input_tokens + record.output_tokens)
        if record.charge_nanos is not None and record.currency is not None:
            # Tenants and currencies are those of objects of the platform.
            names = record.tenant, record.currency
            charged = self._charged.get(names)
            if charged is None:
                charged = self._charged[names] = self._charges.labels(*names)
            charged.inc(record.charge_nanos)
        if record.resumed:
            checked, unchecked = pair.joints
            checked.inc(record.resumed - record.unchecked_joints)
            unchecked.inc(record.unchecked_joints)
        if record.drafts is not None:
            temperature = record.drafts.temperature
            pair.temperatures.add(temperature)
            for count, counter in zip(_DRAFTS(record.drafts), self._drafts, strict=True):
                counter.labels(*pair.names, temperature).inc(count)

    def _count_tokens(self, service: str, tokens: int) -> None:
        if not (service and tokens):
            return
        if service not in self._services:
            # The one that was used last is last.
            if len(self._services) >= MAX_SERVICES:
                self._service_tokens.remove(self._services.popitem(last=False)[0])
            self._services[service] = self._service_tokens.labels(service)
        self._services[service].inc(tokens)
        self._services.move_to_end(service)

    def _count_request(self, pair: _PairSeries, record: UsageRecord) -> None:
        outcome = (str(record.status), record.reason)
        is_new = outcome not in pair.requests
        if is_new and record.reason == _ANY_STATUS and len(pair.requests) >= _MAX_OUTCOMES:
            outcome = (f"{record.status // 100}xx", record.reason)
        counter = pair.requests.get(outcome)
        if counter is None:
            counter = pair.requests[outcome] = self._requests.labels(*pair.names, *outcome)
        counter.inc()
        pair.queue.observe(record.queue_ns / _NS)

    def _pair(self, record: UsageRecord) -> _PairSeries:
        """Return where a record counts: a request that is refused takes no series."""
        names = (record.tenant, record.service)
        pair = self._pairs.get(names)
        if record.phase is not Phase.REFUSED and record.service:
            used_ns = record.started_at_ns + record.total_ns
            if pair is None and self._make_room(record.tenant, used_ns):
                pair = self._pairs[names] = self._series(names)
            if pair is not None:
                pair.used_ns = used_ns
                self._pairs.move_to_end(names)
        if pair is not None:
            return pair
        shared = (record.tenant, OTHER if record.service else "")
        if shared not in self._shared:
            self._shared[shared] = self._series(shared)
        return self._shared[shared]

    def _make_room(self, tenant: str, now_ns: int) -> bool:
        """Return whether there is room for another pair of this tenant.

        One that was not used for long makes room, else the one of the tenant with most pairs that
        was not used for longest; a tenant never displaces what it uses itself.
        """
        if len(self._pairs) < MAX_PAIRS:
            return True
        leaving = next(iter(self._pairs))
        if now_ns - self._pairs[leaving].used_ns < PAIR_IDLE_NS:
            pairs = collections.Counter(each for each, _ in self._pairs)
            ((most, count),) = pairs.most_common(1)
            if count <= pairs[tenant] + 1:
                return False
            leaving = next(names for names in self._pairs if names[0] == most)
        self._remove(self._pairs.pop(leaving))
        return True

    def _series(self, names: tuple[str, str]) -> _PairSeries:
        return _PairSeries(
            names=names,
            ttft=self._ttft.labels(*names),
            itl=self._itl.labels(*names),
            tpot=self._tpot.labels(*names),
            queue=self._queue.labels(*names),
            tokens=[self._tokens.labels(*names, kind) for kind in _KINDS],
            joints=[self._joints.labels(*names, joint) for joint in _JOINTS],
        )

    def _remove(self, pair: _PairSeries) -> None:
        """Remove all series of a pair.

        One that comes back begins at 0, as after a restart of this process. To `rate` and
        `increase` that is the reset of a counter if a scrape saw the last value and the new one is
        less: they add the new value. They miss what came before the first scrape, and, of a series
        that is back with more than it left with, the last value. Nothing is counted twice or
        below 0. The operator reads `increase` over 5 minutes and the alerts `rate` over 15, so
        after PAIR_IDLE_NS neither sees both the last value and the new one.
        """
        for outcome in pair.requests:
            self._requests.remove(*pair.names, *outcome)
        for kind in _KINDS:
            self._tokens.remove(*pair.names, kind)
        for joint in _JOINTS:
            self._joints.remove(*pair.names, joint)
        for temperature in pair.temperatures:
            for counter in self._drafts:
                counter.remove(*pair.names, temperature)
        for metric in (self._ttft, self._itl, self._tpot, self._queue):
            metric.remove(*pair.names)


class GatewayMetrics:
    """All series of a gateway; counters by a closed set begin at 0."""

    def __init__(self, outside: OutsideClient | None = None) -> None:
        """Take what asks providers, whose calls it counts itself."""
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        self.requests = RequestMetrics(self.registry)
        self.registry.register(ProviderMetrics(outside))
        self._loads = [(gauge(name, text, ("service",)), value) for name, text, value in _LOADS]
        self.held_bytes = gauge(
            "tessera_gateway_held_bytes",
            "Bytes of bodies and answers that all requests hold in the gateway's memory, and of "
            "what connections hold before a key is accepted.",
        )
        self.prefix_record_bytes = gauge(
            "tessera_gateway_prefix_record_bytes",
            "Bytes of the gateway's record of prompts in the caches of engines.",
        )
        self.connections = gauge("tessera_gateway_connections", "Connections of clients.")
        self.handshakes = gauge(
            "tessera_gateway_unfinished_handshakes",
            "TLS handshakes of clients that have begun and are not finished.",
        )
        self.connection_ends = counter(
            "tessera_gateway_connections_ended",
            "Connections of clients that were too many, by `outcome`: Evicted while they waited "
            "for a request, or Refused at once.",
            ("outcome",),
        )
        self._records = counter(
            "tessera_gateway_usage_records",
            "Usage records by `outcome`: Stored, Spooled in the pod while the store fails, Summed "
            "since their tenant has very many, or Lost.",
            ("outcome",),
        )
        self.records_waiting = gauge(
            "tessera_gateway_usage_records_waiting", "Usage records that are not in the store."
        )
        self.store_failing = gauge(
            "tessera_gateway_store_failing_seconds",
            "For how long the store has failed, by `operation`: record or borrow; 0 while it does "
            "not.",
            ("operation",),
        )
        self.log_lines_lost = counter(
            "tessera_gateway_log_lines_lost",
            "Lines of the access log and the audit log that are lost, since the output was not "
            "read and too many waited.",
        )
        self.readers_refused = counter(
            "tessera_gateway_readers_refused",
            "Requests for usage, running requests and explanations that were refused, by `code`.",
            ("code",),
        )
        self.demand_failing = gauge(
            "tessera_gateway_demand_failing_seconds",
            "For how long no operator has taken the reports of waiting requests; 0 while one does.",
        )
        self._key_ends = gauge(
            "tessera_gateway_key_expiration_timestamp_seconds",
            "Expiry of a key that ends within two weeks, without those that a rotation replaced.",
            ("tenant", "key"),
        )
        for end in ConnectionEnd:
            self.connection_ends.labels(end)
        for outcome in RecordOutcome:
            self._records.labels(outcome)
        for operation in ("record", "borrow"):
            self.store_failing.labels(operation)

    def count_records(self, outcome: RecordOutcome, count: int) -> None:
        """Count usage records on their way to the store."""
        self._records.labels(outcome).inc(count)

    def set_load(self, loads: Mapping[str, ServiceRequests]) -> None:
        """Set the requests of each service; services without any lose their series."""
        for series, value in self._loads:
            series.clear()
            for service, load in loads.items():
                series.labels(service).set(value(load))

    def set_keys(self, keys: Collection[ApiKey], at: datetime) -> None:
        """Set the expiry of the keys that end soon, the next ones first; others have no series."""
        self._key_ends.clear()
        ending = [
            (key.expires, key.tenant, key.name, key.line)
            for key in keys
            if key.expires is not None and at < key.expires < at + _KEY_END_NOTICE
        ]
        if not ending:
            return
        names = {(key.tenant, key.name) for key in keys}
        for expires, tenant, name, line in sorted(ending)[:MAX_PAIRS]:
            # A key that was rotated ends beside its successor.
            if name == line or (tenant, line) not in names:
                self._key_ends.labels(tenant, name).set(expires.timestamp())

    def families(self) -> Iterable[Metric]:
        """Return all metrics."""
        return self.registry.collect()

    def page(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)


def _observe_stream(pair: _PairSeries, record: UsageRecord, latency: StreamLatency) -> None:
    """Count the times of a stream, beside others of the same targets."""
    started_at_ns, ttft_ns = record.started_at_ns, record.ttft_ns
    # What many services share can have no target.
    is_own = pair.names[1] not in ("", OTHER)
    follows = not is_own or pair.ttft.follow(latency.ttft_target_ns / _NS, started_at_ns)
    if ttft_ns is None:
        if follows and record.total_ns > latency.ttft_target_ns:
            pair.ttft.observe(record.total_ns / _NS)
        return
    if follows:
        pair.ttft.observe(ttft_ns / _NS)
    decode_ns = max(0, record.total_ns - ttft_ns)
    if record.output_tokens > 1:
        pair.tpot.observe(decode_ns / (record.output_tokens - 1) / _NS)
    if latency.gaps and is_own and pair.itl.follow(latency.itl_target_ns / _NS, started_at_ns):
        within = latency.gaps - latency.late_gaps
        pair.itl.add(within, latency.late_gaps, decode_ns / _NS)
