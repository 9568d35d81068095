"""Rows of DCGM exporters about the energy of GPUs, and of the operator about that of services."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TypeAlias

from tessera.adapters.prometheus.billing import own_label, process_labels, tenant_line
from tessera.adapters.prometheus.queries import (
    SERVICE_LABELS,
    BoundedQuery,
    Bounds,
    Queries,
    sum_by_service,
)
from tessera.adapters.prometheus.rows import (
    QueryRow,
    sample_value,
    service_ref,
    to_datetime,
    values_by,
)
from tessera.domain.cost.device_use import CostState
from tessera.domain.cost.energy import UNSPLIT, EnergyLine, IdleGPU
from tessera.domain.cost.energy_statement import EnergyKey, EnergyScrape, GapKey
from tessera.domain.cost.energy_windows import EnergySplit
from tessera.domain.cost.statement import ScrapeRef
from tessera.domain.observed.energy import (
    DeviceReading,
    EnergyReadings,
    EnergySource,
    GPUReading,
    ServiceEnergy,
    worst_source,
)
from tessera.domain.observed.snapshot import Ref
from tessera.ports import MetricsError

JOULES = "tessera_energy_joules_total"
ENERGY_AS_OF = "tessera_energy_as_of_timestamp_seconds"
# The series of `Energy` with their field, and how many of its units are one of the series.
_AMOUNTS = {
    JOULES: ("millijoules", 10**3),
    "tessera_energy_electricity_cost_total": ("nanos", 10**9),
    "tessera_energy_co2_grams_total": ("micrograms", 10**6),
}
_GAPS = "tessera_energy_gap_seconds_total"
_IDLE = "tessera_energy_idle_watts"

# The UUID and the exporter.
_GpuKey: TypeAlias = tuple[str, str]
_SOURCES = frozenset(source.value for source in EnergySource)
# They are of an hour.
_SERVICES_INTERVAL = timedelta(minutes=5)
# A GPU that more pods share, or that has more instances, is none.
_MAX_DEVICES = 64


class EnergyReader:
    """The newest samples of GPUs, and the energy of services; both stay while queries fail."""

    def __init__(
        self,
        query: Callable[[str, Bounds, datetime | None], Awaitable[list[QueryRow]]],
        query_union: Callable[[Queries], Awaitable[Mapping[str, list[QueryRow]]]],
        own_target: str,
        gpu_queries: Sequence[BoundedQuery],
    ) -> None:
        self._query, self._query_union, self._own_target = query, query_union, own_target
        self._gpu_queries = gpu_queries
        self.gpus: EnergyReadings | None = None
        self.services: Mapping[Ref, ServiceEnergy] = {}
        self._services_at: datetime | None = None

    async def read(self, at: datetime, *, samples: bool) -> None:
        """Read the services each five minutes, and the samples of GPUs each time."""
        if samples:
            with suppress(MetricsError):
                self.gpus = await self.gpus_at(at)
        if self._services_at is None or at - self._services_at >= _SERVICES_INTERVAL:
            self._services_at = at
            with suppress(MetricsError):
                rows = await self._query_union(service_energy_queries(self._own_target))
                self.services = service_energies(rows)

    async def gpus_at(self, at: datetime) -> EnergyReadings:
        """Return the samples of all GPUs at a moment; raises MetricsError on failure."""
        counters, powers, activities = await asyncio.gather(
            *(self._query(*query, at) for query in self._gpu_queries)
        )
        # Of a large fleet this takes too long for the event loop.
        return await asyncio.to_thread(gpu_readings, at, counters, powers, activities)

    async def ended(self, now: datetime) -> EnergyReadings | None:
        """Return the samples at which the operators of the last day ended; None without any.

        Raises MetricsError on failure.
        """
        query = f"max_over_time({ENERGY_AS_OF}{{{self._own_target}}}[1d])"
        rows = await self._query(query, Bounds((), now.timestamp()), None)
        return await self.gpus_at(to_datetime(max(map(sample_value, rows)))) if rows else None

    async def energy_at(self, scrape: ScrapeRef) -> EnergyScrape:
        """Return what a process had counted at a scrape; raises MetricsError on failure."""
        query = f'{{__name__=~"tessera_energy_.+",{self._own_target}}}'
        rows = await self._query(query, Bounds((), 1e15), scrape.scraped_at)
        return energy_scrape_of(row for row in rows if process_labels(row) == scrape.process)


def gpu_queries(target: str) -> Sequence[BoundedQuery]:
    """Return the queries of counter, power and activity of all GPUs of these exporters.

    Raw samples have the time of their scrape.
    """
    labels = "UUID", "instance"
    return (
        BoundedQuery(
            f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{target}}}[90s]", Bounds(labels, 1e18)
        ),
        BoundedQuery(f"DCGM_FI_DEV_POWER_USAGE{{{target}}}[90s]", Bounds(labels, 1e5)),
        BoundedQuery(
            f"avg_over_time(DCGM_FI_PROF_GR_ENGINE_ACTIVE{{{target}}}[1m])", Bounds(labels, 1.01)
        ),
    )


def service_energy_queries(own_target: str) -> Queries:
    """Return the queries about the last hour of all services."""
    # Both are extrapolated alike, so their quotient is not.
    return {
        "joules": BoundedQuery(f"increase({JOULES}{{{own_target}}}[1h])", Bounds((), 1e15)),
        "tokens": BoundedQuery(
            sum_by_service("increase(vllm:generation_tokens_total{%s}[1h])"),
            Bounds(SERVICE_LABELS, 1e13),
        ),
        "requests": BoundedQuery(
            sum_by_service("increase(vllm:request_success_total{%s}[1h])", "finished_reason"),
            Bounds(SERVICE_LABELS, 1e12),
        ),
    }


def service_energies(rows: Mapping[str, list[QueryRow]]) -> Mapping[Ref, ServiceEnergy]:
    """Return the energy of each service that has a row; its source is the worst of its rows."""
    joules: dict[Ref, float] = defaultdict(float)
    sources: dict[Ref, set[EnergySource]] = defaultdict(set)
    for row in rows["joules"]:
        service = Ref(own_label(row, "namespace"), own_label(row, "service"))
        source = own_label(row, "source")
        if service.name and source in _SOURCES and sample_value(row):
            joules[service] += sample_value(row)
            sources[service].add(EnergySource(source))
    tokens, requests = (values_by(rows[name], service_ref) for name in ("tokens", "requests"))
    return {
        service: ServiceEnergy(
            joules=amount,
            source=worst_source(sources[service]),
            output_tokens=tokens.get(service, 0.0),
            requests=requests.get(service, 0.0),
        )
        for service, amount in joules.items()
    }


def gpu_readings(
    at: datetime,
    counters: Collection[QueryRow],
    powers: Collection[QueryRow],
    activities: Iterable[QueryRow],
) -> EnergyReadings:
    """Return the GPUs by the newest samples of each exporter, with who holds their devices.

    The counter and the power of a GPU come again for each of its MIG instances.
    """
    millijoules, watts = _newest(counters), _newest(powers)
    devices: dict[_GpuKey, dict[tuple[str, Ref | None], DeviceReading]] = defaultdict(dict)
    nodes: dict[_GpuKey, str] = {}
    for newest, rows in ((millijoules, counters), (watts, powers)):
        for row in rows:
            key, device = _gpu_key(row), _device(row, None)
            # A device that another pod took has an old series for as long as the range.
            if row["value"][0] == newest[key][0] and len(devices[key]) < _MAX_DEVICES:
                devices[key][device.instance, device.pod] = device
                nodes[key] = _node(row)
    for row in activities:
        key, device = _gpu_key(row), _device(row, sample_value(row))
        known, pair = devices.get(key, {}), (device.instance, device.pod)
        if pair in known:
            known[pair] = device
        elif any(each == device.instance for each, _ in known) and len(known) < _MAX_DEVICES:
            known[pair] = device._replace(is_held=False)
    gpus = []
    for key in sorted(devices):
        counter, power = millijoules.get(key), watts.get(key)
        moment, _, index = millijoules[key] if key in millijoules else watts[key]
        gpus.append(
            GPUReading(
                uuid=key[0],
                node=nodes[key],
                gpu=index,
                exporter=key[1],
                at=to_datetime(moment),
                millijoules=None if counter is None else round(counter[1]),
                watts=None if power is None else power[1],
                devices=_without_parent(devices[key].values()),
            )
        )
    return EnergyReadings(at=at, gpus=tuple(gpus))


def _newest(rows: Iterable[QueryRow]) -> dict[_GpuKey, tuple[float, float, str]]:
    """Return the time and value of the newest sample of each GPU and exporter, and its index."""
    newest: dict[_GpuKey, tuple[float, float, str]] = {}
    for row in rows:
        moment, value = row["value"]
        sample = moment, value, row["metric"].get("gpu", "")
        newest[_gpu_key(row)] = max(newest.get(_gpu_key(row), sample), sample)
    return newest


def _without_parent(devices: Collection[DeviceReading]) -> tuple[DeviceReading, ...]:
    """Return the instances of a partitioned GPU without the GPU itself."""
    instances = [device for device in devices if device.profile]
    return tuple(
        sorted(instances or devices, key=lambda device: (device.instance, str(device.pod)))
    )


def _gpu_key(row: QueryRow) -> _GpuKey:
    return row["metric"]["UUID"], row["metric"]["instance"]


def _node(row: QueryRow) -> str:
    labels: Mapping[str, str] = row["metric"]
    return labels.get("Hostname") or labels.get("hostname") or labels.get("node", "")


def _device(row: QueryRow, activity: float | None) -> DeviceReading:
    labels: Mapping[str, str] = row["metric"]
    pod = Ref(own_label(row, "namespace"), own_label(row, "pod"))
    return DeviceReading(
        instance=labels.get("GPU_I_ID", ""),
        profile=labels.get("GPU_I_PROFILE", ""),
        pod=pod if pod.name and pod.namespace else None,
        activity=None if activity is None else min(1.0, activity),
    )


def energy_scrape_of(rows: Iterable[QueryRow]) -> EnergyScrape:
    """Return the counters of one process; raises MetricsError on a word that is not known."""
    amounts: dict[EnergyKey, int] = {}
    gaps: dict[GapKey, int] = {}
    idle_watts: dict[IdleGPU, float] = {}
    for row in rows:
        name, value = row["metric"]["__name__"], sample_value(row)
        pool = own_label(row, "pool")
        if name in _AMOUNTS:
            quantity, units = _AMOUNTS[name]
            # What was exported is the integer divided by its units, so rounding restores it.
            amounts[*_tenant_energy_line(row), quantity] = round(value * units)
        elif name == _GAPS:
            gaps[pool, own_label(row, "reason")] = round(value * 1000)
        elif name == _IDLE:
            idle_watts[IdleGPU(pool, own_label(row, "node"), own_label(row, "gpu"))] = value
    return EnergyScrape(amounts=amounts, gaps=gaps, idle_watts=idle_watts)


def _tenant_energy_line(row: QueryRow) -> tuple[str, EnergyLine]:
    word, source, split = (own_label(row, name) for name in ("state", "source", "split"))
    try:
        state = CostState.STRANDED if word == UNSPLIT else CostState(word)
        tenant, line = tenant_line(row, state)
        return tenant, EnergyLine(line, EnergySource(source), EnergySplit(split))
    except ValueError as error:
        raise MetricsError(f"{JOULES}: {error}") from error
