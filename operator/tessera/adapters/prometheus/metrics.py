"""Prometheus: named queries, and their results as readings."""

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, get_args
from urllib.parse import urlsplit

from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from urllib3.exceptions import HTTPError
from urllib3.util.retry import Retry

from tessera.adapters.prometheus.access import PrometheusAccess
from tessera.adapters.prometheus.demand import DEMAND_BOUNDS, demand_of, demand_query
from tessera.adapters.prometheus.latency import LATENCY_BOUNDS, latencies_of, latency_query
from tessera.adapters.prometheus.queries import SERVICE, split_by_query, union_query
from tessera.adapters.prometheus.rows import (
    MAX_TIMESTAMP,
    Bounds,
    QueryRow,
    bounded_rows,
    well_formed_rows,
)
from tessera.adapters.prometheus.session import PrometheusSession, start_daemon
from tessera.adapters.prometheus.speeds import SPEED_BOUNDS, SPEEDS, speeds_of
from tessera.api.tenant_budget import WindowName
from tessera.domain.billing.bill import CostLine, CostState
from tessera.domain.billing.statement import SLACK, Amounts, BillScrape, ProcessLabels, ScrapeRef
from tessera.domain.budget.meter import SpendMeter, SpendRecord, WindowSpend
from tessera.domain.budget.periods import MAX_PERIOD
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.latency import ServiceLatency
from tessera.domain.observed.snapshot import (
    EngineReading,
    PodReading,
    Readings,
    Ref,
    SpeedReading,
    TokenRates,
)
from tessera.domain.scaling.state import ServiceLoad
from tessera.domain.slo.measurement import LatencyEdges
from tessera.ports import Clock, MetricsError, RejectedSample

WAITING = f'sum by (namespace, pod, {SERVICE}) (vllm:num_requests_waiting{{{SERVICE}!=""}})'
RUNNING = f'sum by (namespace, pod, {SERVICE}) (vllm:num_requests_running{{{SERVICE}!=""}})'
ACTIVITY = 'avg by (namespace, pod) (DCGM_FI_PROF_GR_ENGINE_ACTIVE{pod!=""})'
STEPS = f'sum by (namespace, pod) (vllm:iteration_tokens_total_count{{{SERVICE}!=""}})'
# The timestamp of the step counter: between two scrapes Prometheus repeats the old sample.
SCRAPED = f'max by (namespace, pod) (timestamp(vllm:iteration_tokens_total_count{{{SERVICE}!=""}}))'
AWAKE = f'min by (namespace, pod) (vllm:engine_sleep_state{{sleep_state="awake",{SERVICE}!=""}})'
FINISHED = (
    f'sum by (namespace, {SERVICE}) (increase(vllm:request_success_total{{{SERVICE}!=""}}[5m]))'
)
FINISH_RATE = (
    f'sum by (namespace, {SERVICE}) (rate(vllm:request_success_total{{{SERVICE}!=""}}[1m]))'
)
TOKENS = f'sum by (namespace, {SERVICE}) (rate(vllm:generation_tokens_total{{{SERVICE}!=""}}[1m]))'
# Prompt tokens that steps computed, and output tokens.
COMPUTED_TOKENS = (
    f'sum by (namespace, {SERVICE}) (rate(vllm:iteration_tokens_total_sum{{{SERVICE}!=""}}[1m]))'
)

_LOAD_QUERY = union_query(
    {
        "waiting": WAITING,
        "running": RUNNING,
        "activity": ACTIVITY,
        "steps": STEPS,
        "scraped": SCRAPED,
        "awake": AWAKE,
        "finished": FINISHED,
        "finish_rate": FINISH_RATE,
        "computed_tokens": COMPUTED_TOKENS,
        "output_tokens": TOKENS,
    }
)

# A metric that every engine exports as long as it runs.
LIVENESS_METRIC = "vllm:num_requests_waiting"
COST = "tessera_cost_nanos_total"
COST_AS_OF = "tessera_cost_as_of_timestamp_seconds"
COST_SINCE = "tessera_cost_since_timestamp_seconds"

BUDGET_SPENT = "tessera_budget_spent_nanos"
BUDGET_WINDOW_START = "tessera_budget_window_start_timestamp_seconds"

_COST_LABELS = ("currency", "pool", "profile", "tenant", "namespace", "service", "state")
_STATES = {state.value: state for state in CostState}
# The prefix that Prometheus adds to a target's own label when it collides with one of ours.
_EXPORTED_PREFIX = "exported_"

_POD_LABELS = ("namespace", "pod")
_SERVICE_LABELS = ("namespace", SERVICE)
_QUEUE_BOUNDS = Bounds((*_POD_LABELS, SERVICE), 1e6)
_ACTIVITY_BOUNDS = Bounds(_POD_LABELS, 1.01)
_TOKEN_BOUNDS = Bounds(_SERVICE_LABELS, 1e9)
_TIMESTAMP_BOUNDS = Bounds((), MAX_TIMESTAMP)
_NANO_BOUNDS = Bounds((), 1e18)
_SPENT_BOUNDS = Bounds(("budget", "window"), 1e18)
_LOAD_BOUNDS = {
    "waiting": _QUEUE_BOUNDS,
    "running": _QUEUE_BOUNDS,
    "activity": _ACTIVITY_BOUNDS,
    "steps": Bounds(_POD_LABELS, 1e15),
    "scraped": Bounds(_POD_LABELS, MAX_TIMESTAMP),
    "awake": Bounds(_POD_LABELS, 1e6),
    "finished": Bounds(_SERVICE_LABELS, 1e9),
    "finish_rate": Bounds(_SERVICE_LABELS, 1e6),
    "computed_tokens": _TOKEN_BOUNDS,
    "output_tokens": _TOKEN_BOUNDS,
}
# A bill further ahead of this process' clock is not that of an operator.
_MAX_CLOCK_SKEW = timedelta(minutes=5)

_HISTORY_TIMEOUT_SECONDS = 30
# So long after the start of a window a scrape may show the spend of the one before.
_WINDOW_CHANGE = timedelta(seconds=30)
# Seconds that a thread may outlive its query's own deadline, which does not cover slow headers.
_GRACE_SECONDS = 1
_MAX_QUERIES = 8
_RANGE_STEP = timedelta(seconds=5)
_MAX_STEPS = 240
# One service with a longer window must not make the query longer for all.
_MAX_HISTORY = timedelta(hours=1)
_SPEEDS_INTERVAL = timedelta(seconds=30)
_MAX_LATENCY_AGE = timedelta(minutes=5)

_TimedSpeeds: TypeAlias = tuple[datetime | None, Mapping[Ref, tuple[SpeedReading, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _TimedLatencies:
    """The last latencies, which stay while queries fail for less than five minutes."""

    by_service: Mapping[Ref, ServiceLatency] = field(default_factory=dict)
    read_at: datetime | None = None
    failing_since: datetime | None = None

    def failed(self, at: datetime) -> "_TimedLatencies":
        """Return what is known after a query failed."""
        since = self.failing_since or at
        if at - since < _MAX_LATENCY_AGE:
            return replace(self, failing_since=since)
        return _TimedLatencies(read_at=since + _MAX_LATENCY_AGE, failing_since=since)


class PrometheusMetrics:
    """Readings and history by the HTTP API of Prometheus."""

    def __init__(
        self,
        url: str,
        clock: Clock,
        access: PrometheusAccess | None = None,
        timeout_seconds: float = 3,
    ) -> None:
        access = access or PrometheusAccess()
        self._client = PrometheusConnect(
            url=url.rstrip("/"), retry=Retry(total=0), session=PrometheusSession(access)
        )
        # Without a user and password in it.
        self._url = urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2]).geturl()
        self._timeout_seconds = timeout_seconds
        self._own_target = access.own_target
        self._free_queries = threading.Semaphore(_MAX_QUERIES)
        self._clock = clock
        self._gateway_target = access.gateway_target
        self._last_speeds: _TimedSpeeds = None, {}
        self._latencies = _TimedLatencies()
        self._rejected: Counter[RejectedSample] = Counter()

    def take_rejected(self) -> Mapping[RejectedSample, int]:
        """Return how many samples were left out since the last call, by reason."""
        rejected, self._rejected = self._rejected, Counter()
        return rejected

    async def read(self, edges: LatencyEdges | None = None) -> Readings:
        """Return the readings of now; latencies by these edges, and without them none."""
        at = self._clock()
        try:
            rows_by_query = await self._query_union(_LOAD_QUERY, _LOAD_BOUNDS)
        except MetricsError as error:
            latencies = self._latencies = self._latencies.failed(at)
            return Readings(
                at=at,
                latencies=latencies.by_service,
                latencies_at=latencies.read_at,
                problem=str(error),
            )
        last = self._last_speeds[0]
        if last is None or at - last >= _SPEEDS_INTERVAL:
            self._last_speeds, self._latencies = await asyncio.gather(
                self._read_speeds(at), self._read_latencies(at, edges)
            )
        (speeds_at, speeds), latencies = self._last_speeds, self._latencies
        return Readings(
            at=at,
            pods=pods_of(
                rows_by_query["waiting"], rows_by_query["running"], rows_by_query["activity"]
            ),
            finished=_values_by_service(rows_by_query["finished"]),
            finish_rates=_values_by_service(rows_by_query["finish_rate"]),
            token_rates=_token_rates(
                _values_by_service(rows_by_query["computed_tokens"]),
                _values_by_service(rows_by_query["output_tokens"]),
            ),
            engines=engines_of(
                rows_by_query["steps"], rows_by_query["scraped"], rows_by_query["awake"]
            ),
            speeds=speeds,
            speeds_at=speeds_at,
            latencies=latencies.by_service,
            latencies_at=latencies.read_at,
        )

    async def _read_speeds(self, at: datetime) -> _TimedSpeeds:
        """Return the speeds, queried seldom, since the result is long and covers five minutes.

        When the query fails, speeds are unknown; everything else stays known.
        """
        try:
            return at, speeds_of(await self._query_union(SPEEDS, SPEED_BOUNDS))
        except MetricsError:
            return at, {}

    async def _read_latencies(self, at: datetime, edges: LatencyEdges | None) -> _TimedLatencies:
        """Return the latencies, queried as seldom as speeds."""
        if edges is None:
            return self._latencies
        query = latency_query(edges, self._gateway_target)
        try:
            rows_by_query = await self._query_union(query, LATENCY_BOUNDS)
        except MetricsError:
            return self._latencies.failed(at)
        # Of a large fleet this takes too long for the event loop.
        by_service = await asyncio.to_thread(latencies_of, rows_by_query)
        return _TimedLatencies(by_service=by_service, read_at=at)

    async def load_history(self, span: timedelta) -> Mapping[Ref, tuple[ServiceLoad, ...]]:
        """Return the load of each service within the span, of at most the last hour."""
        end, span = self._clock(), min(span, _MAX_HISTORY)
        waiting, running, activity = await asyncio.gather(
            self._query_range(WAITING, end - span, end),
            self._query_range(RUNNING, end - span, end),
            self._query_range(ACTIVITY, end - span, end),
        )
        return loads_of(
            self._bounded(waiting, _QUEUE_BOUNDS),
            self._bounded(running, _QUEUE_BOUNDS),
            self._bounded(activity, _ACTIVITY_BOUNDS),
        )

    async def billed_until(self) -> datetime | None:
        """Return until when operators billed within the last day; MetricsError on failure."""
        latest = Bounds((), (self._clock() + _MAX_CLOCK_SKEW).timestamp())
        query = f"max_over_time({COST_AS_OF}{{{self._own_target}}}[1d])"
        rows = self._bounded(await self._query(query), latest)
        return _to_datetime(max(map(_sample_value, rows))) if rows else None

    async def spend_records(self) -> Mapping[str, SpendRecord]:
        """Return what each budget spent in its latest windows, as the operators exported it.

        Raises MetricsError on failure.
        """
        at, own = self._clock(), f"{{{self._own_target}}}"
        span = f"[{MAX_PERIOD // timedelta(seconds=1)}s]"
        latest = (at + _MAX_CLOCK_SKEW).timestamp()
        as_of, started = await asyncio.gather(
            self._query_at(f"max(max_over_time({COST_AS_OF}{own}{span}))", at),
            self._query_at(
                "max by (budget, window, currency) "
                f"(max_over_time({BUDGET_WINDOW_START}{own}{span}))",
                at,
            ),
        )
        charged = self._bounded(as_of, Bounds((), latest))
        starts = self._bounded(started, Bounds(("budget", "window", "currency"), latest))
        spent: list[tuple[float, QueryRow]] = []
        for start in sorted({_sample_value(row) for row in starts}):
            elapsed = at - _to_datetime(start) - _WINDOW_CHANGE
            if elapsed > timedelta(seconds=1):
                seconds = elapsed // timedelta(seconds=1)
                query = f"max by (budget, window) (max_over_time({BUDGET_SPENT}{own}[{seconds}s]))"
                rows = self._bounded(await self._query_at(query, at), _SPENT_BOUNDS)
                spent += [(start, row) for row in rows]
        return spend_records_of(charged, starts, spent)

    async def last_seen(self, pods: Sequence[str], span: timedelta) -> Mapping[str, datetime]:
        """Return when each of these pods (namespace/name) was last scraped.

        Unknown pods are absent.
        """
        names = "|".join(pod.partition("/")[2] for pod in pods)
        # Of this metric a page can add no series, however many it has of its own.
        query = f'up{{pod=~"{names}"}}[{span // timedelta(seconds=1) + 1}s]'
        rows = self._bounded(await self._query_at(query, self._clock()), Bounds(_POD_LABELS, 1))
        last_scrapes = {
            str(_pod_ref(row)): _to_datetime(moment)
            for row in rows
            for moment, value in row["values"]
            if value
        }
        return {pod: last_scrapes[pod] for pod in pods if pod in last_scrapes}

    async def tokens(self) -> Mapping[Ref, float]:
        """Return the output tokens per second of every service in the last minute."""
        rows = self._bounded(await self._query(TOKENS), _TOKEN_BOUNDS)
        return _values_by_service(rows)

    async def gateway_demand(self) -> Mapping[Ref, GatewayDemand] | None:
        """Return the requests at gateways; None while the operator has no reports of them."""
        query = demand_query(self._gateway_target)
        return demand_of(await self._query_union(query, DEMAND_BOUNDS))

    async def count_series(self, selectors: Sequence[str]) -> Mapping[str, int]:
        """Return how many series each selector matches now."""
        results = await asyncio.gather(
            *(self._query(f"count({selector})") for selector in selectors)
        )
        return {
            selector: int(_sample_value(rows[0])) if rows else 0
            for selector, rows in zip(selectors, results, strict=True)
        }

    async def bill_scrapes(
        self, begin: datetime, end: datetime
    ) -> Mapping[ProcessLabels, tuple[BillScrape, ...]]:
        """Return every raw scrape of every bill, from shortly before `begin` as a base of sums."""
        span = (end - begin + SLACK) // timedelta(milliseconds=1)
        since, as_of = await asyncio.gather(
            *(
                self._query_at(f"{name}{{{self._own_target}}}[{span}ms]", end)
                for name in (COST_SINCE, COST_AS_OF)
            )
        )
        return scrapes_of(
            self._bounded(since, _TIMESTAMP_BOUNDS), self._bounded(as_of, _TIMESTAMP_BOUNDS)
        )

    async def amounts_at(self, scrape: ScrapeRef) -> Amounts:
        """Return the bill of a process as it was at a scrape."""
        query = f"{COST}{{{self._own_target}}}"
        rows = self._bounded(await self._query_at(query, scrape.scraped_at), _NANO_BOUNDS)
        return amounts_of(row for row in rows if _process_labels(row) == scrape.process)

    async def _query_at(self, query: str, at: datetime) -> list[QueryRow]:
        params, seconds = {"time": at.timestamp()}, _HISTORY_TIMEOUT_SECONDS
        return await self._execute(seconds, self._client.custom_query, query, params)

    async def _query(self, query: str) -> list[QueryRow]:
        return await self._execute(self._timeout_seconds, self._client.custom_query, query)

    async def _query_union(
        self, query: str, bounds: Mapping[str, Bounds]
    ) -> Mapping[str, list[QueryRow]]:
        rows_by_query = split_by_query(await self._query(query))
        return {name: self._bounded(rows_by_query[name], bounds[name]) for name in bounds}

    def _bounded(self, rows: Iterable[QueryRow], bounds: Bounds) -> list[QueryRow]:
        return bounded_rows(rows, bounds, self._rejected)

    async def _query_range(self, query: str, start: datetime, end: datetime) -> list[QueryRow]:
        step = f"{max(_RANGE_STEP, (end - start) // _MAX_STEPS) // timedelta(seconds=1)}s"
        return await self._execute(
            _HISTORY_TIMEOUT_SECONDS, self._client.custom_query_range, query, start, end, step
        )

    async def _execute(self, seconds: float, function: Any, *arguments: Any) -> list[QueryRow]:
        rejected: Counter[RejectedSample] = Counter()

        # A long answer is parsed in the thread too, beside the event loop.
        def run() -> list[QueryRow]:
            try:
                return well_formed_rows(function(*arguments, timeout=seconds), rejected)
            finally:
                self._free_queries.release()

        if not self._free_queries.acquire(blocking=False):
            raise MetricsError(f"Prometheus at {self._url}: {_MAX_QUERIES} queries have no answer")
        try:
            async with asyncio.timeout(seconds + _GRACE_SECONDS):
                rows = await asyncio.wrap_future(start_daemon(run))
        except (
            *(PrometheusApiClientException, HTTPError, OSError),
            *(ValueError, KeyError, TypeError, RecursionError),
        ) as error:
            summary = f"{type(error).__name__}: {error}"[:300]
            raise MetricsError(f"Prometheus at {self._url}: {summary}") from error
        self._rejected.update(rejected)
        return rows


def pods_of(
    waiting: Iterable[QueryRow], running: Iterable[QueryRow], activity: Iterable[QueryRow]
) -> dict[Ref, PodReading]:
    """Return the load of each replica; a missing value is None."""
    queued, served, active = map(_values_by_pod, (waiting, running, activity))
    return {
        pod: PodReading(waiting=queued.get(pod), running=served.get(pod), activity=active.get(pod))
        for pod in {**queued, **served, **active}
    }


def engines_of(
    steps: Iterable[QueryRow], scraped: Iterable[QueryRow], awake: Iterable[QueryRow]
) -> dict[Ref, EngineReading]:
    """Return the steps of each engine; an engine without a count or its timestamp is absent."""
    times, states = _values_by_pod(scraped), _values_by_pod(awake)
    return {
        pod: EngineReading(
            steps=count,
            scraped_at=_to_datetime(times[pod]),
            awake=states[pod] > 0 if pod in states else None,
        )
        for pod, count in _values_by_pod(steps).items()
        if pod in times
    }


def _token_rates(
    computed: Mapping[Ref, float], output: Mapping[Ref, float]
) -> Mapping[Ref, TokenRates]:
    return {
        ref: TokenRates(prompt=max(0.0, computed[ref] - output[ref]), output=output[ref])
        for ref in computed.keys() & output.keys()
    }


def _values_by_service(rows: Iterable[QueryRow]) -> dict[Ref, float]:
    return {_service_ref(row): _sample_value(row) for row in rows}


def _values_by_pod(rows: Iterable[QueryRow]) -> dict[Ref, float]:
    return {_pod_ref(row): _sample_value(row) for row in rows}


def loads_of(
    waiting: Iterable[QueryRow], running: Iterable[QueryRow], activity: Iterable[QueryRow]
) -> dict[Ref, tuple[ServiceLoad, ...]]:
    """Return the loads of every service at every step of three range queries."""
    services = {_pod_ref(row): _service_ref(row) for row in waiting}
    queues: dict[tuple[Ref, float], list[float]] = defaultdict(list)
    batches: dict[tuple[Ref, float], list[float]] = defaultdict(list)
    activities: dict[tuple[Ref, float], list[float]] = defaultdict(list)
    for rows, samples in ((waiting, queues), (running, batches), (activity, activities)):
        for row in rows:
            for moment, value in row["values"] if _pod_ref(row) in services else ():
                samples[services[_pod_ref(row)], moment].append(value)
    loads: dict[Ref, list[ServiceLoad]] = defaultdict(list)
    for service, moment in sorted(queues):
        running_values = batches.get((service, moment))
        activity_values = activities.get((service, moment))
        replicas = len(queues[service, moment])
        loads[service].append(
            ServiceLoad(
                at=datetime.fromtimestamp(moment, UTC),
                replicas=replicas,
                ready=replicas,
                waiting=sum(queues[service, moment]),
                running=sum(running_values) if running_values else None,
                activity=sum(activity_values) / len(activity_values) if activity_values else None,
            )
        )
    return {service: tuple(service_loads) for service, service_loads in loads.items()}


def spend_records_of(
    charged: Sequence[QueryRow], starts: Iterable[QueryRow], spent: Iterable[tuple[float, QueryRow]]
) -> Mapping[str, SpendRecord]:
    """Return a record for each budget, from the starts of its windows and the spend since these."""
    if not charged:
        return {}
    as_of = _to_datetime(max(map(_sample_value, charged)))
    nanos = {
        (row["metric"]["budget"], row["metric"]["window"], start): int(_sample_value(row))
        for start, row in spent
    }
    latest: dict[tuple[str, WindowName], tuple[float, str]] = {}
    for row in starts:
        labels = row["metric"]
        for window in get_args(WindowName):
            if labels["window"] == window:
                key = labels["budget"], window
                latest[key] = max(
                    latest.get(key, (0.0, "")), (_sample_value(row), labels["currency"])
                )
    windows: dict[str, dict[WindowName, WindowSpend]] = defaultdict(dict)
    currencies: dict[str, str] = {}
    for (budget, window), (start, currency) in sorted(latest.items()):
        amount = nanos.get((budget, window, start))
        if amount is not None:
            since = _to_datetime(start)
            windows[budget][window] = WindowSpend(since, amount, since)
            # Of windows in several currencies none can be used.
            currencies[budget] = currency if currencies.get(budget, currency) == currency else ""
    return {
        budget: SpendRecord(
            currency=currencies[budget],
            meter=SpendMeter(as_of=as_of, spend_by_window=spends, names_replicas=False),
        )
        for budget, spends in windows.items()
    }


def scrapes_of(
    since: Iterable[QueryRow], as_of: Iterable[QueryRow]
) -> dict[ProcessLabels, tuple[BillScrape, ...]]:
    """Return the scrapes in raw samples of the two gauges, oldest first."""
    starts = {
        (_process_labels(row), moment): float(value)
        for row in since
        for moment, value in row["values"]
    }
    scrapes: dict[ProcessLabels, list[BillScrape]] = defaultdict(list)
    for row in as_of:
        process = _process_labels(row)
        for moment, value in row["values"]:
            start = starts.get((process, moment))
            if start is not None:
                scrape = BillScrape(
                    scraped_at=_to_datetime(moment),
                    since=_to_datetime(start),
                    as_of=_to_datetime(float(value)),
                )
                scrapes[process].append(scrape)
    return {process: tuple(process_scrapes) for process, process_scrapes in scrapes.items()}


def amounts_of(rows: Iterable[QueryRow]) -> dict[tuple[str, CostLine], int]:
    """Return the counters of one process in nano-units, by tenant and line."""
    amounts = {}
    for row in rows:
        labels = {name: _own_label(row, name) for name in _COST_LABELS}
        state = _STATES.get(labels["state"])
        if state is None:
            raise MetricsError(f"{COST}: unknown state {labels['state']!r}")
        if not state.allocated:  # our own labels are empty there, so these are the target's
            labels |= dict.fromkeys(("tenant", "namespace", "service"), "")
        line = CostLine(
            currency=labels["currency"],
            pool=labels["pool"],
            profile=labels["profile"],
            namespace=labels["namespace"],
            service=labels["service"],
            state=state,
        )
        amounts[labels["tenant"], line] = int(_sample_value(row))
    return amounts


def _own_label(row: QueryRow, name: str) -> str:
    labels = row["metric"]
    return str(labels.get(_EXPORTED_PREFIX + name, labels.get(name, "")))


def _process_labels(row: QueryRow) -> ProcessLabels:
    """Return the labels of the target; where both set a name, it cannot tell processes apart."""
    own_labels = {"__name__", *_COST_LABELS, *(_EXPORTED_PREFIX + name for name in _COST_LABELS)}
    return tuple(
        sorted((name, value) for name, value in row["metric"].items() if name not in own_labels)
    )


def _to_datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _pod_ref(row: QueryRow) -> Ref:
    return Ref(row["metric"]["namespace"], row["metric"]["pod"])


def _service_ref(row: QueryRow) -> Ref:
    return Ref(row["metric"]["namespace"], row["metric"][SERVICE])


def _sample_value(row: QueryRow) -> float:
    return float(row["value"][1])
