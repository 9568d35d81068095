"""Prometheus: named queries, and their results as readings."""

import asyncio
import math
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from urllib3.exceptions import HTTPError
from urllib3.util.retry import Retry

from tessera.adapters.prometheus.access import PrometheusAccess
from tessera.adapters.prometheus.billing import (
    BUDGET_LENT,
    BUDGET_OUTSIDE,
    BUDGET_SPENT,
    BUDGET_WINDOW_START,
    COST,
    COST_AS_OF,
    COST_SINCE,
    amounts_of,
    process_labels,
    scrapes_of,
    spend_records_of,
)
from tessera.adapters.prometheus.demand import demand_of, demand_queries
from tessera.adapters.prometheus.drafts import draft_queries, drafts_of
from tessera.adapters.prometheus.energy import EnergyReader, gpu_queries
from tessera.adapters.prometheus.latency import latencies_of, latency_queries
from tessera.adapters.prometheus.queries import (
    OF_SERVICES,
    POD_LABELS,
    SERVICE,
    SERVICE_LABELS,
    BoundedQuery,
    Bounds,
    Queries,
    each_engine,
    short_groups,
    split_by_query,
    sum_by_service,
    union_query,
)
from tessera.adapters.prometheus.rows import (
    MAX_TIMESTAMP,
    QueryRow,
    bounded_rows,
    pod_ref,
    sample_value,
    service_ref,
    to_datetime,
    values_by,
    well_formed_rows,
)
from tessera.adapters.prometheus.session import PrometheusSession, start_daemon
from tessera.adapters.prometheus.speeds import SPEEDS, STEPS, speeds_of, steps_of
from tessera.adapters.prometheus.usage import usage_queries, usage_rows
from tessera.domain.budget.meter import SpendRecord
from tessera.domain.budget.periods import MAX_PERIOD
from tessera.domain.cost.statement import SLACK, Amounts, BillScrape, ProcessLabels, ScrapeRef
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.drafts import DraftCounts
from tessera.domain.observed.latency import ServiceLatency
from tessera.domain.observed.snapshot import (
    MIN_BUSY_ACTIVITY,
    EngineReading,
    PodReading,
    Readings,
    Ref,
    SpeedReading,
    StepReading,
    TokenRates,
)
from tessera.domain.scaling.state import ServiceLoad
from tessera.domain.slo.measurement import LatencyEdges
from tessera.domain.usage.report import UsageRow
from tessera.ports import Clock, MetricsError, RejectedSample

_QUEUE_BOUNDS = Bounds((*POD_LABELS, SERVICE), 1e6)
_TOKEN_BOUNDS = Bounds(SERVICE_LABELS, 1e9)
_COUNT_BOUNDS = Bounds((), math.inf)
_TIMESTAMP_BOUNDS = Bounds((), MAX_TIMESTAMP)
_NANO_BOUNDS = Bounds((), 1e18)
_SPENT_BOUNDS = Bounds(("budget", "window"), 1e18)
WAITING = BoundedQuery(
    f"sum by (namespace, pod, {SERVICE}) ({each_engine('vllm:num_requests_waiting{%s}')})",
    _QUEUE_BOUNDS,
)
RUNNING = BoundedQuery(
    f"sum by (namespace, pod, {SERVICE}) ({each_engine('vllm:num_requests_running{%s}')})",
    _QUEUE_BOUNDS,
)
# The mean of the devices of a pod; of two exporters of a device one may hang at 0.
ACTIVITY = BoundedQuery(
    "avg by (namespace, pod) (max by (namespace, pod, UUID, GPU_I_ID) "
    '(DCGM_FI_PROF_GR_ENGINE_ACTIVE{pod!=""}))',
    Bounds(POD_LABELS, 1.01),
)
# GPUs that several targets report.
REPEATED_GPUS = (
    "count by (UUID) (count by (UUID, instance) "
    '(DCGM_FI_PROF_GR_ENGINE_ACTIVE{UUID!="",instance!=""})) > 1'
)
# Engines that have run requests for five minutes on devices that seem idle.
CONTRADICTED_ACTIVITY = (
    'max by (namespace, pod) (max_over_time(DCGM_FI_PROF_GR_ENGINE_ACTIVE{pod!=""}[5m])) < '
    f"{MIN_BUSY_ACTIVITY} and on (namespace, pod) min by (namespace, pod) "
    f"(min_over_time(vllm:num_requests_running{OF_SERVICES}[5m])) > 0"
)
TOKENS = BoundedQuery(sum_by_service("rate(vllm:generation_tokens_total{%s}[1m])"), _TOKEN_BOUNDS)
CACHED_SHARE = BoundedQuery(
    f"{sum_by_service('rate(vllm:prompt_tokens_cached_total{%s}[5m])')} / "
    f"{sum_by_service('rate(vllm:prompt_tokens_total{%s}[5m])')}",
    Bounds(SERVICE_LABELS, 1.0),
)
_LOAD: Queries = {
    "waiting": WAITING,
    "running": RUNNING,
    "activity": ACTIVITY,
    "idle": BoundedQuery(CONTRADICTED_ACTIVITY, Bounds(POD_LABELS, MIN_BUSY_ACTIVITY)),
    "cached": BoundedQuery(
        f"sum by (namespace, pod) ({each_engine('rate(vllm:prompt_tokens_cached_total{%s}[5m])')})",
        Bounds(POD_LABELS, 1e9),
    ),
    "steps": BoundedQuery(
        f"sum by (namespace, pod) ({each_engine('vllm:iteration_tokens_total_count{%s}')})",
        Bounds(POD_LABELS, 1e15),
    ),
    # The age of the step counter: between two scrapes Prometheus repeats the old sample. Its clock
    # may be another than that of the operator, so the moment itself says nothing.
    "age": BoundedQuery(
        "min by (namespace, pod) "
        f"(time() - timestamp(vllm:iteration_tokens_total_count{OF_SERVICES}))",
        Bounds(POD_LABELS, MAX_TIMESTAMP),
    ),
    "awake": BoundedQuery(
        f'min by (namespace, pod) (vllm:engine_sleep_state{{sleep_state="awake",{SERVICE}!=""}})',
        Bounds(POD_LABELS, 1e6),
    ),
    "finished": BoundedQuery(
        sum_by_service("increase(vllm:request_success_total{%s}[5m])", "finished_reason"),
        Bounds(SERVICE_LABELS, 1e9),
    ),
    "finish_rate": BoundedQuery(
        sum_by_service("rate(vllm:request_success_total{%s}[1m])", "finished_reason"),
        Bounds(SERVICE_LABELS, 1e6),
    ),
    # Prompt tokens that steps computed, and output tokens.
    "computed_tokens": BoundedQuery(
        sum_by_service("rate(vllm:iteration_tokens_total_sum{%s}[1m])"), _TOKEN_BOUNDS
    ),
    "output_tokens": TOKENS,
}

# A metric that every engine exports as long as it runs.
LIVENESS_METRIC = "vllm:num_requests_waiting"
ENGINES = each_engine(f"{LIVENESS_METRIC}{{%s}}")
# Pods with an engine that several targets report.
REPEATED_ENGINES = BoundedQuery(
    "group by (namespace, pod) (count by (namespace, pod, model_name, engine) "
    f"({LIVENESS_METRIC}{OF_SERVICES}) > 1)",
    Bounds(POD_LABELS, 1),
)

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

_TimedSpeeds: TypeAlias = tuple[
    datetime | None, Mapping[Ref, tuple[SpeedReading, ...]], Mapping[Ref, StepReading]
]


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
        self.own_target = access.own_target
        """The label matchers of the operator's own series."""
        self._free_queries = threading.Semaphore(_MAX_QUERIES)
        self._clock = clock
        self.gateway_target = access.gateway_target
        """The label matchers of the gateways' own series."""
        self._last_speeds: _TimedSpeeds = None, {}, {}
        self._latencies = _TimedLatencies()
        self.energy = EnergyReader(
            self._query, self.query_union, self.own_target, gpu_queries(access.gpu_target)
        )
        self._rejected: Counter[RejectedSample] = Counter()

    def take_rejected(self) -> Mapping[RejectedSample, int]:
        """Return how many samples were left out since the last call, by reason."""
        rejected, self._rejected = self._rejected, Counter()
        return rejected

    async def read(self, edges: LatencyEdges | None = None, *, samples: bool = False) -> Readings:
        """Return the readings of now; latencies by these edges, and without them none.

        The samples of all GPUs are long, and read for the meter of their energy alone.
        """
        at = self._clock()
        try:
            rows_by_query = await self.query_union(_LOAD)
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
            self._last_speeds, self._latencies, _ = await asyncio.gather(
                self._read_speeds(at),
                self._read_latencies(at, edges),
                self.energy.read(at, samples=samples),
            )
        (speeds_at, speeds, steps), latencies = self._last_speeds, self._latencies
        return Readings(
            at=at,
            pods=pods_of(rows_by_query, steps),
            finished=values_by(rows_by_query["finished"], service_ref),
            finish_rates=values_by(rows_by_query["finish_rate"], service_ref),
            token_rates=_token_rates(
                values_by(rows_by_query["computed_tokens"], service_ref),
                values_by(rows_by_query["output_tokens"], service_ref),
            ),
            engines=engines_of(rows_by_query, at),
            speeds=speeds,
            speeds_at=speeds_at,
            latencies=latencies.by_service,
            latencies_at=latencies.read_at,
            energy=self.energy.gpus,
            energies=self.energy.services,
        )

    async def _read_speeds(self, at: datetime) -> _TimedSpeeds:
        """Return the speeds, queried seldom, since the result is long and covers five minutes.

        When the query fails, speeds are unknown; everything else stays known.
        """
        try:
            rows_by_query = await self.query_union({**SPEEDS, **STEPS})
        except MetricsError:
            return at, {}, {}
        return at, speeds_of(rows_by_query), steps_of(rows_by_query)

    async def _read_latencies(self, at: datetime, edges: LatencyEdges | None) -> _TimedLatencies:
        """Return the latencies, queried as seldom as speeds."""
        if edges is None:
            return self._latencies
        try:
            rows_by_query = await self.query_union(latency_queries(edges, self.gateway_target))
        except MetricsError:
            return self._latencies.failed(at)
        # Of a large fleet this takes too long for the event loop.
        by_service = await asyncio.to_thread(latencies_of, rows_by_query)
        return _TimedLatencies(by_service=by_service, read_at=at)

    async def load_history(self, span: timedelta) -> Mapping[Ref, tuple[ServiceLoad, ...]]:
        """Return the load of each service within the span, of at most the last hour."""
        end, span = self._clock(), min(span, _MAX_HISTORY)
        waiting, running, activity = await asyncio.gather(
            *(self.query_range(query, end - span, end) for query in (WAITING, RUNNING, ACTIVITY))
        )
        return loads_of(waiting, running, activity)

    async def billed_until(self) -> datetime | None:
        """Return until when operators billed within the last day; MetricsError on failure."""
        latest = Bounds((), (self._clock() + _MAX_CLOCK_SKEW).timestamp())
        query = f"max_over_time({COST_AS_OF}{{{self.own_target}}}[1d])"
        rows = await self._query(query, latest)
        return to_datetime(max(map(sample_value, rows))) if rows else None

    async def spend_records(self) -> Mapping[str, SpendRecord]:
        """Return what each budget spent in its latest windows, as the operators exported it.

        Raises MetricsError on failure.
        """
        at, own = self._clock(), f"{{{self.own_target}}}"
        span = f"[{MAX_PERIOD // timedelta(seconds=1)}s]"
        latest = (at + _MAX_CLOCK_SKEW).timestamp()
        labels = ("budget", "window", "currency")
        started = f"max by ({', '.join(labels)}) (max_over_time({BUDGET_WINDOW_START}{own}{span}))"
        charged, starts = await asyncio.gather(
            self._query(f"max(max_over_time({COST_AS_OF}{own}{span}))", Bounds((), latest), at),
            self._query(started, Bounds(labels, latest), at),
        )
        names = (BUDGET_SPENT, BUDGET_OUTSIDE, BUDGET_LENT)
        amounts: dict[str, list[tuple[float, QueryRow]]] = {name: [] for name in names}
        for start in sorted({sample_value(row) for row in starts}):
            elapsed = at - to_datetime(start) - _WINDOW_CHANGE
            if elapsed > timedelta(seconds=1):
                seconds = elapsed // timedelta(seconds=1)
                for name in names:
                    query = f"max by (budget, window) (max_over_time({name}{own}[{seconds}s]))"
                    rows = await self._query(query, _SPENT_BOUNDS, at)
                    amounts[name] += [(start, row) for row in rows]
        return spend_records_of(charged, starts, *amounts.values())

    async def last_seen(self, pods: Sequence[str], span: timedelta) -> Mapping[str, datetime]:
        """Return when each of these pods (namespace/name) was last scraped.

        Unknown pods are absent.
        """
        names = "|".join(pod.partition("/")[2] for pod in pods)
        # Of this metric a page can add no series, however many it has of its own.
        query = f'up{{pod=~"{names}"}}[{span // timedelta(seconds=1) + 1}s]'
        rows = await self._query(query, Bounds(POD_LABELS, 1), self._clock())
        last_scrapes = {
            str(pod_ref(row)): to_datetime(moment)
            for row in rows
            for moment, value in row["values"]
            if value
        }
        return {pod: last_scrapes[pod] for pod in pods if pod in last_scrapes}

    async def tokens(self) -> tuple[Mapping[Ref, float], Mapping[Ref, float]]:
        """Return output tokens per second, and the share of input that prefix caches had.

        Both are by service, of the last minute and of the last five; a service without input has no
        share.
        """
        rates, shares = await asyncio.gather(self._query(*TOKENS), self._query(*CACHED_SHARE))
        return values_by(rates, service_ref), values_by(shares, service_ref)

    async def gateway_demand(self) -> Mapping[Ref, GatewayDemand] | None:
        """Return the requests at gateways; None while the operator has no reports of them."""
        return demand_of(await self.query_union(demand_queries(self.gateway_target)))

    async def drafts(self) -> Mapping[Ref, tuple[DraftCounts, ...]]:
        """Return what engines drafted for each service by temperature, as gateways count it."""
        return drafts_of(await self.query_union(draft_queries(self.gateway_target)))

    async def count_series(self, selectors: Sequence[str]) -> Mapping[str, int]:
        """Return how many series each selector matches now."""
        queries = (self._query(f"count({selector})", _COUNT_BOUNDS) for selector in selectors)
        results = await asyncio.gather(*queries)
        return {
            selector: int(sample_value(rows[0])) if rows else 0
            for selector, rows in zip(selectors, results, strict=True)
        }

    async def usage(self, since: datetime, until: datetime) -> tuple[UsageRow, ...] | None:
        """Return what each service used between two moments; None without samples of the first."""
        return usage_rows(await self.query_union(usage_queries(since, until), until))

    async def bill_scrapes(
        self, begin: datetime, end: datetime
    ) -> Mapping[ProcessLabels, tuple[BillScrape, ...]]:
        """Return every raw scrape of every bill, from shortly before `begin` as a base of sums."""
        span = (end - begin + SLACK) // timedelta(milliseconds=1)
        since, as_of = await asyncio.gather(
            *(
                self._query(f"{name}{{{self.own_target}}}[{span}ms]", _TIMESTAMP_BOUNDS, end)
                for name in (COST_SINCE, COST_AS_OF)
            )
        )
        return scrapes_of(since, as_of)

    async def amounts_at(self, scrape: ScrapeRef) -> Amounts:
        """Return the bill of a process as it was at a scrape."""
        query = f"{COST}{{{self.own_target}}}"
        rows = await self._query(query, _NANO_BOUNDS, scrape.scraped_at)
        return amounts_of(row for row in rows if process_labels(row) == scrape.process)

    async def query_range(
        self,
        query: BoundedQuery,
        start: datetime,
        end: datetime,
        step: timedelta | None = None,
        seconds: float = _HISTORY_TIMEOUT_SECONDS,
    ) -> list[QueryRow]:
        """Return the rows of a span, by default at most 240 samples of each.

        Raises MetricsError on failure, and after so many seconds without an answer.
        """
        step = step or max(_RANGE_STEP, (end - start) // _MAX_STEPS)
        width = f"{step // timedelta(seconds=1)}s"
        arguments = (self._client.custom_query_range, query.text, start, end, width)
        rows = await self._execute(seconds, *arguments)
        return bounded_rows(rows, query.bounds, self._rejected)

    async def _query(
        self, query: str, bounds: Bounds, at: datetime | None = None
    ) -> list[QueryRow]:
        """Return the rows of now, or of a past time, which may take longer."""
        seconds = self._timeout_seconds if at is None else _HISTORY_TIMEOUT_SECONDS
        rows = await self._execute(seconds, self._client.custom_query, query, _parameters(at))
        return bounded_rows(rows, bounds, self._rejected)

    async def query_union(
        self, queries: Queries, at: datetime | None = None
    ) -> Mapping[str, list[QueryRow]]:
        """Return the rows of each query, as `_query` does."""
        seconds = self._timeout_seconds if at is None else _HISTORY_TIMEOUT_SECONDS
        bounded: dict[str, list[QueryRow]] = {}
        for group in short_groups(queries):
            arguments = (self._client.custom_query, union_query(group), _parameters(at))
            rows_by_query = split_by_query(await self._execute(seconds, *arguments))
            for name, query in group.items():
                bounded[name] = bounded_rows(rows_by_query[name], query.bounds, self._rejected)
        return bounded

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


def _parameters(at: datetime | None) -> Mapping[str, float] | None:
    return None if at is None else {"time": at.timestamp()}


def pods_of(
    rows_by_query: Mapping[str, Sequence[QueryRow]],
    steps: Mapping[Ref, StepReading] = MappingProxyType({}),
) -> dict[Ref, PodReading]:
    """Return the load of each replica, with its last `steps`; a missing value is None."""
    waiting, running, activity, cached = (
        values_by(rows_by_query[name], pod_ref)
        for name in ("waiting", "running", "activity", "cached")
    )
    idle = values_by(rows_by_query["idle"], pod_ref)
    return {
        pod: PodReading(
            waiting=waiting.get(pod),
            running=running.get(pod),
            activity=activity.get(pod),
            cached=cached.get(pod),
            seems_idle=pod in idle,
            steps=steps.get(pod),
        )
        for pod in {**waiting, **running, **activity}
    }


def engines_of(
    rows_by_query: Mapping[str, Sequence[QueryRow]], at: datetime
) -> dict[Ref, EngineReading]:
    """Return the steps of each engine; an engine without a count or its age is absent."""
    steps, ages, states = (
        values_by(rows_by_query[name], pod_ref) for name in ("steps", "age", "awake")
    )
    return {
        pod: EngineReading(
            steps=count,
            scraped_at=at - timedelta(seconds=ages[pod]),
            awake=states[pod] > 0 if pod in states else None,
        )
        for pod, count in steps.items()
        if pod in ages
    }


def _token_rates(
    computed: Mapping[Ref, float], output: Mapping[Ref, float]
) -> Mapping[Ref, TokenRates]:
    return {
        ref: TokenRates(prompt=max(0.0, computed[ref] - output[ref]), output=output[ref])
        for ref in computed.keys() & output.keys()
    }


def loads_of(
    waiting: Iterable[QueryRow], running: Iterable[QueryRow], activity: Iterable[QueryRow]
) -> dict[Ref, tuple[ServiceLoad, ...]]:
    """Return the loads of every service at every step of three range queries."""
    services = {pod_ref(row): service_ref(row) for row in waiting}
    queues: dict[tuple[Ref, float], list[float]] = defaultdict(list)
    batches: dict[tuple[Ref, float], list[float]] = defaultdict(list)
    activities: dict[tuple[Ref, float], list[float]] = defaultdict(list)
    for rows, samples in ((waiting, queues), (running, batches), (activity, activities)):
        for row in rows:
            for moment, value in row["values"] if pod_ref(row) in services else ():
                samples[services[pod_ref(row)], moment].append(value)
    loads: dict[Ref, list[ServiceLoad]] = defaultdict(list)
    for service, moment in sorted(queues):
        running_values = batches.get((service, moment))
        activity_values = activities.get((service, moment))
        replicas = len(queues[service, moment])
        loads[service].append(
            ServiceLoad(
                at=to_datetime(moment),
                replicas=replicas,
                ready=replicas,
                waiting=sum(queues[service, moment]),
                running=sum(running_values) if running_values else None,
                activity=sum(activity_values) / len(activity_values) if activity_values else None,
            )
        )
    return {service: tuple(service_loads) for service, service_loads in loads.items()}
