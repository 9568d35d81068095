"""The load of a service from the readings of its replicas."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.domain.incremental import FOREVER
from tessera.domain.observed.demand import NO_TOKENS, GatewayDemand
from tessera.domain.observed.latency import ServiceLatency
from tessera.domain.observed.load_history import LoadHistory
from tessera.domain.observed.snapshot import (
    Pod,
    PodReading,
    Readings,
    Ref,
    SpeedReading,
    TokenRates,
)
from tessera.domain.scaling.state import ServiceLoad

# Older readings count as missing, and younger replicas need no reading yet.
MAX_READING_AGE = timedelta(seconds=30)


class ServiceReadings(NamedTuple):
    """What Prometheus answered about one service."""

    is_usable: bool = False
    """Its last answer is recent, and knows of replicas, be they of others."""
    pods: Mapping[Ref, PodReading] = {}
    """By replica; none of an answer that is not usable."""
    finished: float | None = None
    finish_rate: float | None = None
    token_rates: TokenRates | None = None
    speeds: Sequence[SpeedReading] = ()
    latency: ServiceLatency | None = None
    counted_at: datetime | None = None
    """When gateways counted the first tokens in `latency`; None where they counted none."""
    load_history: LoadHistory | None = None


def service_readings(
    readings: Readings | None, usable: Mapping[Ref, PodReading], ref: Ref, pods: Sequence[Pod]
) -> ServiceReadings:
    """Return what was answered about a service, of which these are the replicas.

    `usable` has the readings of all replicas of the fleet: see `usable_readings`.
    """
    if readings is None:
        return _NOT_READ
    latency = readings.latencies.get(ref)
    gateway = latency.gateway if latency is not None else None
    has_counts = gateway is not None and gateway.ttft is not None and gateway.ttft.total > 0
    return ServiceReadings(
        bool(usable),
        {pod.ref: usable[pod.ref] for pod in pods if pod.ref in usable},
        readings.finished.get(ref),
        readings.finish_rates.get(ref),
        readings.token_rates.get(ref),
        readings.speeds.get(ref, ()),
        latency,
        readings.latencies_at if has_counts else None,
        readings.load_histories.get(ref),
    )


_NOT_READ = ServiceReadings()


def load_of(
    pods: Sequence[Pod],
    readings: ServiceReadings,
    replicas: int,
    now: datetime,
    demand: GatewayDemand | None = None,
) -> ServiceLoad:
    """Sum waiting and running requests and average activity over the ready replicas.

    One replica without a reading makes the sum unknown, since missing is not zero; what the others
    hold waits at least. What runs on
    draining replicas counts too: its clients send their next requests to the others. What waits at
    gateways waits too; without a gateway `demand` is None.
    """
    serving = [pod for pod in pods if pod.takes_requests and pod.serving]
    by_pod = readings.pods
    samples = [(by_pod.get(pod.ref, PodReading()), _is_young(pod, now)) for pod in serving]
    waiting = _known_values([(reading.waiting, young) for reading, young in samples])
    running = _known_values([(reading.running, young) for reading, young in samples])
    leaving = [
        by_pod.get(pod.ref, PodReading()).running or 0
        for pod in pods
        if pod.draining_since is not None and not pod.serving and not pod.terminating
    ]
    counts = [
        reading.waiting + reading.running
        for reading, _ in samples
        if reading.waiting is not None and reading.running is not None
    ]
    activity = _known_values([(reading.activity, young) for reading, young in samples])
    young = [pod.ready_since for pod in pods if pod.ready_since and _is_young(pod, now)]
    queued = demand.queued if demand is not None else 0
    return ServiceLoad(
        at=now,
        replicas=replicas,
        ready=len(waiting or ()),
        serving=len(serving),
        waiting=None if waiting is None else sum(waiting) + queued,
        known_waiting=sum(reading.waiting or 0 for reading, _ in samples) + queued,
        running=None if running is None else sum(running) + sum(leaving),
        activity=None if activity is None else sum(activity) / len(activity),
        idle_replicas=sum(reading.seems_idle for reading, _ in samples),
        queued=demand.queued if demand is not None else None,
        gateway_requests=demand.arrived + demand.in_flight if demand is not None else 0,
        finished=readings.finished if readings.is_usable else None,
        finish_rate=readings.finish_rate if readings.is_usable else None,
        token_rates=readings.token_rates if readings.is_usable else None,
        arrival_rate=demand.arrivals_per_second if demand is not None else None,
        arrivals=demand.arrivals if demand is not None else (),
        arrived_tokens=demand.tokens if demand is not None else NO_TOKENS,
        known_requests=sum(counts) + sum(leaving) + queued if counts else None,
        with_counts=len(counts),
        until=min(young) + MAX_READING_AGE if young else FOREVER,
    )


def in_units(load: ServiceLoad, pods: Sequence[Pod], shares: Mapping[str, float]) -> ServiceLoad:
    """Return the load with its replicas counted as of the unit.

    `shares` says how much a replica of each variant serves in one of that.
    """
    serving = [shares[pod.variant] for pod in pods if pod.takes_requests and pod.serving]
    mean = sum(serving) / len(serving) if serving else 1.0
    if mean == 1:
        return load
    return replace(
        load,
        ready=round(load.ready * mean),
        serving=round(load.serving * mean),
        with_counts=round(load.with_counts * mean),
    )


def usable_readings(readings: Readings | None, now: datetime) -> Mapping[Ref, PodReading]:
    """Return readings by pod; none when they are old or failed."""
    if readings is None or readings.problem is not None or now - readings.at > MAX_READING_AGE:
        return {}
    return readings.pods


def _is_young(pod: Pod, now: datetime) -> bool:
    return pod.ready_since is not None and now - pod.ready_since <= MAX_READING_AGE


def _known_values(values: Sequence[tuple[float | None, bool]]) -> list[float] | None:
    """Return the known values; None if an older replica has none, or all lack one."""
    if any(value is None and not young for value, young in values):
        return None
    return [value for value, _ in values if value is not None] or None
