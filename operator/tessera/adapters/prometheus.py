"""Prometheus: the named questions and their answers as readings."""

import asyncio
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from urllib3.util.retry import Retry

from tessera.adapters.prometheus_queries import SERVICE, Row, all_of, by_question
from tessera.adapters.prometheus_speeds import SPEEDS, speeds_of
from tessera.domain.autoscale import ServiceLoad
from tessera.domain.bill import CostState, Line
from tessera.domain.snapshot import EngineReading, PodReading, Readings, Ref, SpeedReading
from tessera.domain.statement import SLACK, Amounts, Look, Mark, Process
from tessera.ports import Clock, MetricsError

WAITING = f'sum by (namespace, pod, {SERVICE}) (vllm:num_requests_waiting{{{SERVICE}!=""}})'
RUNNING = f'sum by (namespace, pod, {SERVICE}) (vllm:num_requests_running{{{SERVICE}!=""}})'
ACTIVITY = 'avg by (namespace, pod) (DCGM_FI_PROF_GR_ENGINE_ACTIVE{pod!=""})'
STEPS = f'sum by (namespace, pod) (vllm:iteration_tokens_total_count{{{SERVICE}!=""}})'
SCRAPED = f'max by (namespace, pod) (timestamp(vllm:iteration_tokens_total_count{{{SERVICE}!=""}}))'
"""When the steps were counted: between two scrapes Prometheus gives the old number again."""
AWAKE = f'min by (namespace, pod) (vllm:engine_sleep_state{{sleep_state="awake",{SERVICE}!=""}})'
FINISHED = (
    f'sum by (namespace, {SERVICE}) (increase(vllm:request_success_total{{{SERVICE}!=""}}[5m]))'
)

_ALL = all_of(
    {
        "waiting": WAITING,
        "running": RUNNING,
        "activity": ACTIVITY,
        "steps": STEPS,
        "scraped": SCRAPED,
        "awake": AWAKE,
        "finished": FINISHED,
    }
)
TOKENS = f'sum by (namespace, {SERVICE}) (rate(vllm:generation_tokens_total{{{SERVICE}!=""}}[1m]))'

ALIVE = "vllm:num_requests_waiting"
"""What every engine exports as long as it lives."""
COST = "tessera_cost_nanos_total"
COST_AS_OF = "tessera_cost_as_of_timestamp_seconds"
COST_SINCE = "tessera_cost_since_timestamp_seconds"
BILLED_UNTIL = f"max(max_over_time({COST_AS_OF}[1d]))"

_COST_LABELS = ("currency", "pool", "profile", "tenant", "namespace", "service", "state")
_STATES = {state.value: state for state in CostState}
_EXPORTED = "exported_"
"""What Prometheus puts before a label of ours where the target has one of that name."""

_TIMEOUT_SECONDS = 3
_HISTORY_TIMEOUT_SECONDS = 30
_STEP = timedelta(seconds=5)
_SPEEDS_AGAIN = timedelta(seconds=30)

_Speeds: TypeAlias = tuple[datetime | None, Mapping[Ref, tuple[SpeedReading, ...]]]


class PrometheusMetrics:
    """`Metrics` over the HTTP API of Prometheus."""

    def __init__(self, url: str, clock: Clock) -> None:
        self._client = PrometheusConnect(
            url=url.rstrip("/"), retry=Retry(total=0), timeout=_TIMEOUT_SECONDS
        )
        self._url = url
        self._clock = clock
        self._last_speeds: _Speeds = None, {}

    async def read(self) -> Readings:
        at = self._clock()
        try:
            told = by_question(await self._ask(_ALL))
        except MetricsError as error:
            return Readings(at=at, problem=str(error))
        asked, speeds = await self._speeds(at)
        return Readings(
            at=at,
            pods=pods_of(told["waiting"], told["running"], told["activity"]),
            finished={_service(row): _value(row) for row in told["finished"]},
            engines=engines_of(told["steps"], told["scraped"], told["awake"]),
            speeds=speeds,
            speeds_at=asked,
        )

    async def _speeds(self, at: datetime) -> _Speeds:
        """Seldom asked, since the answer is long and about five minutes. When it does not come
        nothing is known of speeds, and all else still is."""
        last, found = self._last_speeds
        if last is None or at - last >= _SPEEDS_AGAIN:
            try:
                found = speeds_of(by_question(await self._ask(SPEEDS)))
            except MetricsError:
                found = {}
            self._last_speeds = at, found
        return self._last_speeds

    async def load_history(self, span: timedelta) -> Mapping[Ref, tuple[ServiceLoad, ...]]:
        end = self._clock()
        waiting, activity = await asyncio.gather(
            self._ask_range(WAITING, end - span, end), self._ask_range(ACTIVITY, end - span, end)
        )
        return loads_of(waiting, activity)

    async def billed_until(self) -> datetime | None:
        """Until when operators billed, as far as the last day tells; MetricsError unreadable."""
        rows = await self._ask(BILLED_UNTIL)
        return _moment(_value(rows[0])) if rows else None

    async def last_seen(self, pods: Sequence[str], span: timedelta) -> Mapping[str, datetime]:
        """When each of these pods (namespace/name) was last scraped; unknown ones are absent."""
        names = "|".join(pod.partition("/")[2] for pod in pods)
        query = f'{ALIVE}{{pod=~"{names}"}}[{span // timedelta(seconds=1) + 1}s]'
        rows = await self._ask_at(query, self._clock())
        seen = {str(_pod(row)): _moment(row["values"][-1][0]) for row in rows}
        return {pod: seen[pod] for pod in pods if pod in seen}

    async def tokens(self) -> Mapping[Ref, float]:
        """Output tokens a second of every service in the last minute."""
        return {_service(row): _value(row) for row in await self._ask(TOKENS)}

    async def present(self, selectors: Sequence[str]) -> Mapping[str, int]:
        """How many series each selector finds now."""
        found = await asyncio.gather(*(self._ask(f"count({one})") for one in selectors))
        return {
            one: int(_value(rows[0])) if rows else 0
            for one, rows in zip(selectors, found, strict=True)
        }

    async def marks(self, begin: datetime, end: datetime) -> Mapping[Process, tuple[Mark, ...]]:
        """Every scrape of every bill, raw; from shortly before `begin`, for a base of the sums."""
        span = (end - begin + SLACK) // timedelta(milliseconds=1)
        since, as_of = await asyncio.gather(
            *(self._ask_at(f"{name}[{span}ms]", end) for name in (COST_SINCE, COST_AS_OF))
        )
        return marks_of(since, as_of)

    async def billed(self, look: Look) -> Amounts:
        """The bill of a process as it stood at a scrape."""
        rows = await self._ask_at(COST, look.scraped)
        return amounts_of(row for row in rows if _process(row) == look.process)

    async def _ask_at(self, query: str, at: datetime) -> list[Row]:
        when = {"time": at.timestamp()}
        return await self._call(self._client.custom_query, query, when, _HISTORY_TIMEOUT_SECONDS)

    async def _ask(self, query: str) -> list[Row]:
        rows = await self._call(self._client.custom_query, query)
        return [row for row in rows if math.isfinite(_value(row))]

    async def _ask_range(self, query: str, start: datetime, end: datetime) -> list[Row]:
        step = f"{int(_STEP.total_seconds())}s"
        return await self._call(self._client.custom_query_range, query, start, end, step)

    async def _call(self, function: Any, *arguments: Any) -> list[Row]:
        try:
            rows: list[Row] = await asyncio.to_thread(function, *arguments)
        except (PrometheusApiClientException, requests.RequestException, ValueError) as error:
            raise MetricsError(f"Prometheus at {self._url}: {_short(error)}") from error
        return rows


def pods_of(
    waiting: Iterable[Row], running: Iterable[Row], activity: Iterable[Row]
) -> dict[Ref, PodReading]:
    """The load of each replica; what is missing is None."""
    by_pod: dict[Ref, PodReading] = defaultdict(PodReading)
    for row in waiting:
        by_pod[_pod(row)] = replace(by_pod[_pod(row)], waiting=_value(row))
    for row in running:
        by_pod[_pod(row)] = replace(by_pod[_pod(row)], running=_value(row))
    for row in activity:
        by_pod[_pod(row)] = replace(by_pod[_pod(row)], activity=_value(row))
    return dict(by_pod)


def engines_of(
    steps: Iterable[Row], scraped: Iterable[Row], awake: Iterable[Row]
) -> dict[Ref, EngineReading]:
    """What each engine has done; one without a count, or without its time, is absent."""
    times = {_pod(row): _moment(_value(row)) for row in scraped}
    states = {_pod(row): _value(row) > 0 for row in awake}
    return {
        _pod(row): EngineReading(
            steps=_value(row), scraped_at=times[_pod(row)], awake=states.get(_pod(row))
        )
        for row in steps
        if _pod(row) in times
    }


def loads_of(waiting: Iterable[Row], activity: Iterable[Row]) -> dict[Ref, tuple[ServiceLoad, ...]]:
    """Two range answers -> the loads of every service at every step."""
    services = {_pod(row): _service(row) for row in waiting}
    queues: dict[tuple[Ref, float], list[float]] = defaultdict(list)
    shares: dict[tuple[Ref, float], list[float]] = defaultdict(list)
    for rows, found in ((waiting, queues), (activity, shares)):
        for row in rows:
            for moment, value in row["values"] if _pod(row) in services else ():
                if math.isfinite(float(value)):
                    found[services[_pod(row)], float(moment)].append(float(value))
    loads: dict[Ref, list[ServiceLoad]] = defaultdict(list)
    for service, moment in sorted(queues):
        active = shares.get((service, moment))
        replicas = len(queues[service, moment])
        loads[service].append(
            ServiceLoad(
                at=datetime.fromtimestamp(moment, UTC),
                replicas=replicas,
                ready=replicas,
                waiting=sum(queues[service, moment]),
                activity=sum(active) / len(active) if active else None,
            )
        )
    return {service: tuple(found) for service, found in loads.items()}


def marks_of(since: Iterable[Row], as_of: Iterable[Row]) -> dict[Process, tuple[Mark, ...]]:
    """Raw samples of the two gauges -> what was scraped, oldest first."""
    starts = {
        (_process(row), moment): float(value) for row in since for moment, value in row["values"]
    }
    found: dict[Process, list[Mark]] = defaultdict(list)
    for row in as_of:
        process = _process(row)
        for moment, value in row["values"]:
            start = starts.get((process, moment))
            if start is not None:
                mark = Mark(
                    scraped=_moment(moment), since=_moment(start), as_of=_moment(float(value))
                )
                found[process].append(mark)
    return {process: tuple(marks) for process, marks in found.items()}


def amounts_of(rows: Iterable[Row]) -> dict[tuple[str, Line], int]:
    """Counters of one process -> nano-units by tenant and line."""
    found = {}
    for row in rows:
        label = {name: _own(row, name) for name in _COST_LABELS}
        state = _STATES.get(label["state"])
        if state is None:
            raise MetricsError(f"{COST} has a state {label['state']!r} that is not known here")
        if not state.owned:  # our own labels are empty there, so these are the target's
            label |= dict.fromkeys(("tenant", "namespace", "service"), "")
        line = Line(
            currency=label["currency"],
            pool=label["pool"],
            profile=label["profile"],
            namespace=label["namespace"],
            service=label["service"],
            state=state,
        )
        found[label["tenant"], line] = int(_value(row))
    return found


def _own(row: Row, name: str) -> str:
    labels = row["metric"]
    return str(labels.get(_EXPORTED + name, labels.get(name, "")))


def _process(row: Row) -> Process:
    """The labels that the target brought; where both have a name, it cannot tell processes."""
    ours = {"__name__", *_COST_LABELS, *(_EXPORTED + name for name in _COST_LABELS)}
    return tuple(sorted((name, value) for name, value in row["metric"].items() if name not in ours))


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _pod(row: Row) -> Ref:
    return Ref(row["metric"]["namespace"], row["metric"]["pod"])


def _service(row: Row) -> Ref:
    return Ref(row["metric"]["namespace"], row["metric"][SERVICE])


def _value(row: Row) -> float:
    return float(row["value"][1])


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
