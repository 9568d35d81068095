"""Prometheus: the named questions and their answers as readings."""

import asyncio
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from urllib3.util.retry import Retry

from tessera.domain.autoscale import Load
from tessera.domain.snapshot import PodReading, Readings, Ref
from tessera.ports import Clock, MetricsError

SERVICE = "tessera_dev_service"
"""What a PodMonitor makes of the pod label `tessera.dev/service`."""

WAITING = f'sum by (namespace, pod, {SERVICE}) (vllm:num_requests_waiting{{{SERVICE}!=""}})'
RUNNING = f'sum by (namespace, pod, {SERVICE}) (vllm:num_requests_running{{{SERVICE}!=""}})'
ACTIVITY = 'avg by (namespace, pod) (DCGM_FI_PROF_GR_ENGINE_ACTIVE{pod!=""})'
FINISHED = (
    f'sum by (namespace, {SERVICE}) (increase(vllm:request_success_total{{{SERVICE}!=""}}[5m]))'
)

_TIMEOUT_SECONDS = 3
_STEP = timedelta(seconds=5)
Row = Mapping[str, Any]


class PrometheusMetrics:
    """`Metrics` over the HTTP API of Prometheus."""

    def __init__(self, url: str, clock: Clock) -> None:
        self._client = PrometheusConnect(
            url=url.rstrip("/"), retry=Retry(total=0), timeout=_TIMEOUT_SECONDS
        )
        self._url = url
        self._clock = clock

    async def read(self) -> Readings:
        at = self._clock()
        try:
            waiting, running, activity, finished = await asyncio.gather(
                *(self._ask(query) for query in (WAITING, RUNNING, ACTIVITY, FINISHED))
            )
        except MetricsError as error:
            return Readings(at=at, problem=str(error))
        pods: dict[Ref, PodReading] = defaultdict(PodReading)
        for row in waiting:
            pods[_pod(row)] = replace(pods[_pod(row)], waiting=_value(row))
        for row in running:
            pods[_pod(row)] = replace(pods[_pod(row)], running=_value(row))
        for row in activity:
            pods[_pod(row)] = replace(pods[_pod(row)], activity=_value(row))
        return Readings(
            at=at, pods=dict(pods), finished={_service(row): _value(row) for row in finished}
        )

    async def past(self, span: timedelta) -> Mapping[Ref, tuple[Load, ...]]:
        end = self._clock()
        waiting, activity = await asyncio.gather(
            self._ask_range(WAITING, end - span, end), self._ask_range(ACTIVITY, end - span, end)
        )
        return loads_of(waiting, activity)

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


def loads_of(waiting: Iterable[Row], activity: Iterable[Row]) -> dict[Ref, tuple[Load, ...]]:
    """Two range answers -> the loads of every service at every step."""
    services = {_pod(row): _service(row) for row in waiting}
    queues: dict[tuple[Ref, float], list[float]] = defaultdict(list)
    shares: dict[tuple[Ref, float], list[float]] = defaultdict(list)
    for rows, found in ((waiting, queues), (activity, shares)):
        for row in rows:
            for moment, value in row["values"] if _pod(row) in services else ():
                if math.isfinite(float(value)):
                    found[services[_pod(row)], float(moment)].append(float(value))
    loads: dict[Ref, list[Load]] = defaultdict(list)
    for service, moment in sorted(queues):
        active = shares.get((service, moment))
        replicas = len(queues[service, moment])
        loads[service].append(
            Load(
                at=datetime.fromtimestamp(moment, UTC),
                replicas=replicas,
                ready=replicas,
                waiting=sum(queues[service, moment]),
                activity=sum(active) / len(active) if active else None,
            )
        )
    return {service: tuple(found) for service, found in loads.items()}


def _pod(row: Row) -> Ref:
    return Ref(row["metric"]["namespace"], row["metric"]["pod"])


def _service(row: Row) -> Ref:
    return Ref(row["metric"]["namespace"], row["metric"][SERVICE])


def _value(row: Row) -> float:
    return float(row["value"][1])


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
