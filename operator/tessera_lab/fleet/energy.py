"""The energy of a simulated fleet, split by the product's own meter.

Its GPUs draw what `PowerRange` says: idle watts, and the rest in proportion to the time in which
engines step and to their share of the GPU. Each counts as real ones do, so `meter_energy` charges
the same lines as `tessera cost --energy`.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from tessera.api.accelerator_pool import COUNT_LABEL
from tessera.domain.cost.energy import MILLIJOULES_PER_KWH, EnergyLine, EnergyMeter, meter_energy
from tessera.domain.hardware.device import Hardware
from tessera.domain.hardware.gpu_models import find_gpu_model
from tessera.domain.hardware.pools import discover
from tessera.domain.hardware.power import PowerRange, compute_share, power_range
from tessera.domain.observed.energy import DeviceReading, EnergyReadings, GPUReading
from tessera.domain.observed.snapshot import Node, Pod, PodReading, Pool, Readings, Ref, Snapshot
from tessera_lab.fleet.course import Course, Lifetime
from tessera_lab.fleet.model import Tier

_START = datetime(2026, 1, 5, tzinfo=UTC)
_WINDOW = 60.0
_EXPORTER = "lab"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaHardware:
    """What the replicas of a service run on."""

    service: Ref
    hardware: Hardware
    pool: Pool
    node: Node
    """One of the pool, whose labels those of the simulation have."""
    reserved: int = 0
    """Replicas whose hardware is there all the time."""


class EnergySum(NamedTuple):
    """Energy, and the output tokens of the run that used it."""

    millijoules: int
    output_tokens: int

    @property
    def kwh(self) -> float:
        return self.millijoules / MILLIJOULES_PER_KWH

    @property
    def per_token(self) -> float | None:
        """Return the joules of an output token; None without one."""
        return self.millijoules / 1e3 / self.output_tokens if self.output_tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetEnergy:
    """What the GPUs of a run used."""

    total: EnergySum
    """By the counters of all GPUs."""
    service: EnergySum
    """The part that is not idle, stranded or unsplit."""
    lines: Mapping[EnergyLine, int]
    """The total in millijoules, by the lines of the bill."""


@dataclass(slots=True)
class _Replica:
    """A lifetime with its pod; without a pod a node that is held."""

    lifetime: Lifetime
    slot: int
    """Which slice of its GPU."""
    pod: Pod | None
    moments: Sequence[float]
    """Those of its activity."""

    def busy(self, begin: float, end: float) -> float:
        """Return the seconds in which its engine stepped between two moments."""
        first, last = max(begin, self.lifetime.begin), min(end, self.lifetime.end)
        return min(last - first, max(0.0, self._until(last) - self._until(first)))

    def _until(self, moment: float) -> float:
        points = self.lifetime.activity
        index = bisect_left(self.moments, moment)
        if index == len(points):
            return points[-1][1] if points else 0.0
        before = points[index - 1] if index else (self.lifetime.begin, 0.0)
        at, busy = points[index]
        share = (moment - before[0]) / (at - before[0]) if at > before[0] else 1.0
        return before[1] + (busy - before[1]) * share


@dataclass(slots=True)
class Host:
    """A node with the GPUs of one replica, or with one GPU that is cut into equal slices."""

    node: Node
    begin: float
    end: float
    free_at: list[float]
    """When each slice is free again."""
    gpus: int
    replicas: list[_Replica] = field(default_factory=list)
    """Those that have not ended, once they began."""
    joules: float = 0.0
    """Of each of its GPUs, since it began."""


def fleet_energy(course: Course, replicas: ReplicaHardware) -> FleetEnergy | None:
    """Return the energy of a run; None where the watts of the GPU are not known."""
    watts = power_range(replicas.hardware.product)
    if watts is None:
        return None
    hosts = hosts_of(course, replicas)
    nodes = [host.node for host in hosts]
    views = discover([replicas.pool], nodes, _START.date())
    meter, lines = EnergyMeter(), Counter[EnergyLine]()
    for snapshot in scraped(replicas, hosts, watts):
        # Lines begin at 0 in each window, since those of a meter end after a day without a charge.
        meter = meter_energy(replace(meter, lines={}, charged_at={}), snapshot, views)
        for key, parts in meter.lines.items():
            lines[key] += parts.millijoules
    tokens = course.output_tokens
    counted = sum(round(host.joules * 1e3) * host.gpus for host in hosts)
    own = sum(millijoules for key, millijoules in lines.items() if key.line.namespace)
    return FleetEnergy(
        total=EnergySum(counted, tokens), service=EnergySum(own, tokens), lines=lines
    )


def _slots(hardware: Hardware) -> int:
    """Return how many replicas a node has: a GPU is full of slices of one profile."""
    gpu_model = find_gpu_model(hardware.product)
    if hardware.profile is None or gpu_model is None:
        return 1
    gi_profile = gpu_model.find_profile(hardware.profile)
    return gi_profile.max_instances if gi_profile is not None else 1


def hosts_of(course: Course, replicas: ReplicaHardware) -> list[Host]:
    """Return the nodes of a run: reserved ones from start to end, others while they are used."""
    hardware, slots, hosts = replicas.hardware, _slots(replicas.hardware), list[Host]()

    def add(begin: float, end: float, size: int = 1) -> Host:
        gpus = hardware.devices * size
        node = replace(
            replicas.node,
            name=f"{replicas.pool.name}-{len(hosts)}",
            labels={**replicas.node.labels, COUNT_LABEL: str(gpus)},
            allocatable={hardware.resource: slots * gpus},
        )
        hosts.append(Host(node, begin, end, [begin] * slots, gpus))
        return hosts[-1]

    reserved = [
        add(0.0, round(course.paid_seconds, 6)) for _ in range(-(-replicas.reserved // slots))
    ]
    open_hosts: dict[tuple[Tier, int], list[Host]] = {(Tier.RESERVED, 1): reserved}
    # Moments of the cluster are whole microseconds.
    exact = (
        replace(each, begin=round(each.begin, 6), end=round(each.end, 6))
        for each in course.lifetimes
    )
    lifetimes = sorted(exact, key=lambda each: (each.begin, each.end))
    for number, lifetime in enumerate(lifetimes):
        if lifetime.end <= lifetime.begin:
            continue
        kind = lifetime.tier, lifetime.size
        candidates = [host for host in open_hosts.get(kind, ()) if host.end > lifetime.begin]
        open_hosts[kind] = candidates
        host = next((host for host in candidates if min(host.free_at) <= lifetime.begin), None)
        if host is None:
            host = add(lifetime.begin, lifetime.end, lifetime.size)
            candidates.append(host)
        slot = next(slot for slot, at in enumerate(host.free_at) if at <= lifetime.begin)
        host.free_at[slot] = lifetime.end
        host.end = max(host.end, lifetime.end)
        pod = _pod(replicas, lifetime, number, host.node.name) if lifetime.activity else None
        moments = [at for at, _ in lifetime.activity]
        host.replicas.append(_Replica(lifetime, slot, pod, moments))
    return hosts


def _pod(replicas: ReplicaHardware, lifetime: Lifetime, number: int, node: str) -> Pod:
    ref = Ref(replicas.service.namespace, f"{replicas.service.name}-{number}")
    return Pod(
        ref=ref,
        uid=ref.name,
        service=replicas.service,
        created=_moment(lifetime.begin),
        bound=_moment(lifetime.begin),
        node=node,
        devices={replicas.hardware.resource: replicas.hardware.devices * lifetime.size},
    )


def scraped(
    replicas: ReplicaHardware, hosts: Sequence[Host], watts: PowerRange
) -> Iterator[Snapshot]:
    """Yield what is scraped once a minute, and whenever a replica begins or ends.

    Hosts count their energy meanwhile, so they are scraped only once.
    """
    spans = [(host.begin, host.end) for host in hosts]
    spans += [(each.lifetime.begin, each.lifetime.end) for host in hosts for each in host.replicas]
    changes = {at for span in spans for at in span}
    minutes = range(math.floor(max(changes, default=0.0) / _WINDOW) + 1)
    before, alive, coming = 0.0, list[Host](), sorted(hosts, key=lambda each: -each.begin)
    for moment in sorted(changes | {minute * _WINDOW for minute in minutes}):
        while coming and coming[-1].begin <= moment:
            alive.append(coming.pop())
        alive = [host for host in alive if host.end > before or host.begin == moment]
        pods, running, gpus = list[Pod](), dict[Ref, PodReading](), list[GPUReading]()
        for host in alive:
            host.replicas = [each for each in host.replicas if each.lifetime.end > before]
            used = _use(host, replicas.hardware, watts, before, moment)
            gpus += _readings(replicas.hardware, host, used, (before, moment))
            for each, seconds in used:
                if each.pod is not None:
                    pods.append(_pod_at(each.pod, each.lifetime, moment))
                    running[each.pod.ref] = PodReading(running=float(seconds > 0))
        at = _moment(moment)
        yield Snapshot(
            at=at,
            pools=(replicas.pool,),
            nodes=tuple(host.node for host in alive),
            pods=tuple(pods),
            readings=Readings(at=at, pods=running, energy=EnergyReadings(at=at, gpus=tuple(gpus))),
        )
        before = moment


def _use(
    host: Host, hardware: Hardware, watts: PowerRange, begin: float, end: float
) -> Sequence[tuple[_Replica, float]]:
    """Count the energy of a time, and return its replicas with the seconds that they stepped."""
    used = [(each, each.busy(begin, end)) for each in host.replicas if each.lifetime.begin <= end]
    length = end - max(begin, host.begin)
    share = compute_share(hardware.product, hardware.profile or "")
    active = min(length, share * sum(seconds for _, seconds in used))
    host.joules += watts.idle_watts * length + (watts.max_watts - watts.idle_watts) * active
    return used


def _pod_at(pod: Pod, lifetime: Lifetime, moment: float) -> Pod:
    ready, ended = lifetime.ready_at <= moment, lifetime.end <= moment
    if not (ready or ended):
        return pod
    return replace(
        pod,
        ready_since=_moment(lifetime.ready_at) if ready else None,
        ended=_moment(lifetime.end) if ended else None,
    )


def _readings(
    hardware: Hardware,
    host: Host,
    used: Sequence[tuple[_Replica, float]],
    window: tuple[float, float],
) -> Iterator[GPUReading]:
    """Yield the counters of a node's GPUs, each with all of its devices."""
    begin, end = window
    profile = hardware.node_profile or hardware.profile or ""
    devices = [
        DeviceReading(str(slot) if profile else "", profile) for slot in range(len(host.free_at))
    ]
    # A replica that ends now is named beside what it did, and not the one that begins now.
    for each, seconds in reversed(used):
        if each.pod is not None:
            length = end - max(begin, each.lifetime.begin)
            devices[each.slot] = devices[each.slot]._replace(
                pod=each.pod.ref, activity=seconds / length if length else None
            )
    reading = GPUReading(
        uuid=host.node.name,
        node=host.node.name,
        gpu="0",
        exporter=_EXPORTER,
        at=_moment(end),
        millijoules=round(host.joules * 1e3),
        devices=tuple(devices),
    )
    for number in range(host.gpus):
        yield replace(reading, uuid=f"{host.node.name}/{number}", gpu=str(number))


def _moment(seconds: float) -> datetime:
    return _START + timedelta(seconds=seconds)
