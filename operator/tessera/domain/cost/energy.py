"""The energy of GPUs, split among who used them, in whole millijoules.

A window is the time between two samples of one GPU. Its energy is charged in the cycle that reads
the later sample; `energy_windows.py` splits it.
"""

import operator
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

from tessera.api.accelerator_pool import EnergyFactors, HourlyFactor
from tessera.domain.cost.bill import LINE_LIFETIME, within_bounds
from tessera.domain.cost.device_use import (
    CostLine,
    busy_since,
    node_use,
    pods_by_node,
)
from tessera.domain.cost.energy_windows import (
    MAX_WINDOW,
    EnergyGap,
    EnergySplit,
    Window,
    active_lines,
    gpu_resources,
    gpu_use,
    idle_watts_of,
    modelled_window,
    repeats,
    split_energy,
    window_of,
)
from tessera.domain.hardware import pools
from tessera.domain.money import to_nanos
from tessera.domain.observed.energy import EnergyReadings, EnergySource, GPUReading
from tessera.domain.observed.snapshot import Node, Pod, Ref, Snapshot
from tessera.domain.steps import Step

MILLIJOULES_PER_KWH = 3_600_000_000
# The state of energy of a time in which it is not known who used the GPU.
UNSPLIT = "unsplit"


class EnergyLine(NamedTuple):
    """A line of the bill with how its energy is known and was split.

    Energy that is not split is on the line of the stranded cost of its pool.
    """

    line: CostLine
    """Its currency is that of the pool's electricity, or empty."""
    source: EnergySource
    split: EnergySplit

    @property
    def state(self) -> str:
        """Return the state of the line, or that it is not split among any."""
        return UNSPLIT if self.split is EnergySplit.NONE else self.line.state


class Energy(NamedTuple):
    """Energy of GPUs, and what it cost and emitted by the factors of the pool."""

    millijoules: int = 0
    nanos: int = 0
    """Electricity with the share of the building, in nano-units of the line's currency."""
    micrograms: int = 0
    """CO2e of the same."""

    def plus(self, other: "Energy") -> "Energy":
        """Return the sum."""
        return Energy(*map(operator.add, self, other))

    def minus(self, other: "Energy") -> "Energy":
        """Return the difference."""
        return Energy(*map(operator.sub, self, other))


class IdleGPU(NamedTuple):
    """A GPU of which a part is free while another is used."""

    pool: str
    node: str
    gpu: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyMeter:
    """The energy that one process has charged since its start; no line ever shrinks."""

    as_of: datetime | None = None
    """Time of the last query that was charged."""
    lines: Mapping[EnergyLine, Energy] = field(default_factory=dict)
    charged_at: Mapping[EnergyLine, datetime] = field(default_factory=dict)
    gaps: Mapping[tuple[str, EnergyGap], float] = field(default_factory=dict)
    """Seconds of GPUs by pool and reason."""
    idle_watts: Mapping[IdleGPU, float] = field(default_factory=dict)
    """Idle watts of the free part of GPUs that are used in part."""
    last: Mapping[str, GPUReading] = field(default_factory=dict)
    """The sample at which the next window of each GPU begins, by its UUID."""


class _NodeEnergy(NamedTuple):
    """What one node is charged, and the times without energy."""

    charges: Sequence[tuple[EnergyLine, Energy]] = ()
    gaps: Sequence[tuple[EnergyGap, float]] = ()
    advanced: Sequence[GPUReading] = ()
    """The samples at which the next windows begin."""
    idle_watts: Mapping[str, float] = {}
    """Of the free part of GPUs whose windows ended, by their index; 0 where none or all is used."""


def meter_energy(
    meter: EnergyMeter, snapshot: Snapshot, views: Sequence[pools.PoolView]
) -> EnergyMeter:
    """Return the meter with the windows charged that end at the newest samples."""
    readings = snapshot.readings
    energy = readings.energy if readings is not None else None
    if readings is None or energy is None or (meter.as_of and energy.at <= meter.as_of):
        return meter
    repeated = repeated_gpus(energy.gpus)
    single = [gpu for gpu in energy.gpus if gpu.uuid not in repeated]
    newest = newest_readings(single, meter.last, snapshot)
    round_ = _Round(
        begin=meter.as_of,
        at=energy.at,
        busy=busy_since(snapshot),
        activities={ref: reading.measured_activity for ref, reading in readings.pods.items()},
        gpus=newest,
        repeated={gpu.uuid: gpu.node for gpu in energy.gpus if gpu.uuid in repeated},
        last=meter.last,
        gpus_by_node=_by_node(newest.values()),
        last_by_node=_by_node(meter.last.values()),
    )
    bound_pods, views_by_node = pods_by_node(snapshot), pools.pools_by_node(views)
    charged: dict[EnergyLine, Energy] = {}
    gaps, idle_watts = dict(meter.gaps), dict(meter.idle_watts)
    advanced: dict[str, GPUReading] = {}
    for node in snapshot.nodes:
        view = views_by_node.get(node.name)
        if view is None or view.pool.spec is None:
            continue
        of_node = energy_of(round_, node, view, bound_pods.get(node.name, ()))
        for line, parts in of_node.charges:
            charged[line] = charged.get(line, Energy()).plus(parts)
        for gap, seconds in of_node.gaps:
            key = view.pool.name, gap
            gaps[key] = gaps.get(key, 0.0) + seconds
        advanced |= {gpu.uuid: gpu for gpu in of_node.advanced}
        for gpu, watts in of_node.idle_watts.items():
            idle_watts[IdleGPU(view.pool.name, node.name, gpu)] = watts
    current = _without_ended(meter, energy.at - LINE_LIFETIME)
    last = {**current.last, **advanced}
    recent = {
        IdleGPU(views_by_node[gpu.node].pool.name, gpu.node, gpu.gpu)
        for gpu in last.values()
        if gpu.node in views_by_node and energy.at - gpu.at <= MAX_WINDOW
    }
    return replace(
        _with_charges(current, charged, energy.at),
        as_of=energy.at,
        gaps=gaps,
        idle_watts={gpu: watts for gpu, watts in idle_watts.items() if watts and gpu in recent},
        last=last,
    )


def restored_meter(ended: EnergyReadings | None) -> EnergyMeter:
    """Return the meter that goes on from the samples at which an earlier process ended."""
    if ended is None:
        return EnergyMeter()
    repeated = repeated_gpus(ended.gpus)
    last = {gpu.uuid: gpu for gpu in ended.gpus if gpu.uuid not in repeated}
    return EnergyMeter(as_of=ended.at, last=last)


def repeated_gpus(gpus: Iterable[GPUReading]) -> frozenset[str]:
    """Return the GPUs that several exporters show: a page of any exporter may name any GPU.

    After an exporter moved, its last samples stay beside the new ones for a moment.
    """
    exporters = defaultdict[str, set[str]](set)
    for gpu in gpus:
        exporters[gpu.uuid].add(gpu.exporter)
    return frozenset(uuid for uuid, of_gpu in exporters.items() if len(of_gpu) > 1)


def newest_readings(
    gpus: Collection[GPUReading], last: Mapping[str, GPUReading], snapshot: Snapshot
) -> Mapping[str, GPUReading]:
    """Return the reading of each GPU that is newer than its last one."""
    nodes = {node.name for node in snapshot.nodes}
    node_by_pod = {pod.ref: pod.node for pod in snapshot.pods}
    newest: dict[str, GPUReading] = {}
    for reading in gpus:
        gpu, before = reading, last.get(reading.uuid)
        if reading.node not in nodes:
            # An exporter that does not know its node names itself; the pods on the GPU know it.
            hosts = [node_by_pod.get(device.pod) for device in reading.devices if device.pod]
            known = reading.node if before is None else before.node
            gpu = replace(reading, node=next(filter(None, hosts), known))
        if before is None or gpu.at > before.at:
            newest[gpu.uuid] = gpu
    return newest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """One query, beside what was charged before."""

    begin: datetime | None
    """Time of the query before."""
    at: datetime
    busy: Mapping[Ref, datetime]
    activities: Mapping[Ref, float | None]
    gpus: Mapping[str, GPUReading]
    repeated: Mapping[str, str]
    """Nodes of GPUs that several exporters show."""
    last: Mapping[str, GPUReading]
    gpus_by_node: Mapping[str, Sequence[GPUReading]]
    last_by_node: Mapping[str, Sequence[GPUReading]]


def _by_node(gpus: Iterable[GPUReading]) -> Mapping[str, Sequence[GPUReading]]:
    by_node: dict[str, list[GPUReading]] = defaultdict(list)
    for gpu in gpus:
        by_node[gpu.node].append(gpu)
    return by_node


def _node_energy(
    round_: _Round, node: Node, view: pools.PoolView, pods: Sequence[Pod]
) -> _NodeEnergy:
    """Return what the GPUs of a node used, each by itself, and together those without samples."""
    of_node = node_use(node, view, pods, round_.busy)
    factors = view.pool.spec.energy if view.pool.spec is not None else None
    use = replace(of_node, currency=factors.currency if factors is not None else "")
    last, samples = round_.last, round_.gpus_by_node.get(node.name, ())
    of_last = round_.last_by_node.get(node.name, ())
    # A page can name more GPUs than a node has; those that were read before keep their place.
    known = {gpu.uuid for gpu in of_last if round_.at - gpu.at <= MAX_WINDOW}
    room = max(0, use.gpus - len(known.difference(gpu.uuid for gpu in samples)))
    sampled = sorted(samples, key=lambda gpu: (gpu.uuid not in known, gpu.uuid))[:room]
    # A page without them may name the pod of the exporter itself.
    holders = {pod.ref for pod in pods if gpu_resources(pod)}
    shown = {device.pod for gpu in (*sampled, *of_last) for device in gpu.devices}
    knows_pods = not holders or not holders.isdisjoint(shown)
    windows: list[Window] = []
    gaps: list[tuple[EnergyGap, float]] = []
    idle: dict[str, float] = {}
    advanced = [gpu for gpu in sampled if not repeats(last.get(gpu.uuid), gpu)]
    for gpu in advanced:
        before = last.get(gpu.uuid)
        if before is None or before.node != gpu.node:
            continue
        of_gpu = gpu_use(use, before, gpu) if knows_pods else use
        active = active_lines(of_gpu, before, gpu) if knows_pods else {}
        window, gap = window_of(before, gpu, of_gpu, active)
        if gap is not None:
            gaps.append((gap, (gpu.at - before.at).total_seconds()))
        if window is not None:
            windows.append(window)
            idle[gpu.gpu] = idle_watts_of(window) if knows_pods else 0.0
    silent = [gpu for gpu in of_last if gpu.uuid not in round_.gpus]
    count, begin = use.gpus - len(sampled) - len(silent), round_.begin
    gaps += _gaps_without_samples(round_, node.name, silent, count)
    span = (begin, round_.at) if begin is not None and count > 0 else None
    if span is not None and (
        modelled := modelled_window(use, count, span, round_.activities, [*sampled, *silent])
    ):
        windows.append(modelled)
    charges = [charge for window in windows for charge in _lines_of(window, factors)]
    return _NodeEnergy(charges, gaps, advanced, idle)


def _gaps_without_samples(
    round_: _Round, node: str, silent: Iterable[GPUReading], count: int
) -> Iterator[tuple[EnergyGap, float]]:
    """Yield the seconds of silent GPUs that are modelled from now on, and of `count` others."""
    for gpu in silent:
        if gpu.at <= round_.at - LINE_LIFETIME:
            gap = EnergyGap.REPEATED if gpu.uuid in round_.repeated else EnergyGap.NO_READING
            yield gap, (round_.at - gpu.at).total_seconds()
    if count <= 0 or round_.begin is None:
        return
    seconds = (round_.at - round_.begin).total_seconds()
    without_last = set(round_.repeated).difference(round_.last)
    repeated = min(count, sum(round_.repeated[uuid] == node for uuid in without_last))
    if repeated:
        yield EnergyGap.REPEATED, repeated * seconds
    if count > repeated:
        yield EnergyGap.NO_READING, (count - repeated) * seconds


# A node whose energy cannot be charged costs its rows, and no other.
energy_of = Step(_node_energy, lambda *_: _NodeEnergy())


def _lines_of(window: Window, factors: EnergyFactors | None) -> Iterator[tuple[EnergyLine, Energy]]:
    """Yield the energy of each line with what it cost and emitted, by the hour it began in."""
    parts, split = split_energy(window)
    price, grams = Decimal(0), Decimal(0)
    if factors is not None:
        price = factor_on(factors.electricity_per_kwh, window.begin) * factors.pue
        grams = factor_on(factors.grams_co2_per_kwh, window.begin) * factors.pue
    for line, millijoules in parts.items():
        if millijoules:
            kwh = Decimal(millijoules) / MILLIJOULES_PER_KWH
            energy = Energy(millijoules, to_nanos(price * kwh), round(grams * kwh * 10**6))
            yield EnergyLine(line, window.source, split), energy


def factor_on(factors: Sequence[HourlyFactor], at: datetime) -> Decimal:
    """Return the factor of an hour of the day in UTC; before the first hour, that of the last."""
    hour = at.astimezone(UTC).hour
    begun = [factor for factor in factors if factor.from_hour <= hour] or factors
    return max(begun, key=lambda factor: factor.from_hour).value if begun else Decimal(0)


def _with_charges(
    meter: EnergyMeter, charged: Mapping[EnergyLine, Energy], at: datetime
) -> EnergyMeter:
    names = within_bounds((key.line for key in meter.lines), (key.line for key in charged))
    lines, charged_at = dict(meter.lines), dict(meter.charged_at)
    for key, parts in charged.items():
        bounded = key._replace(line=names[key.line])
        lines[bounded] = lines.get(bounded, Energy()).plus(parts)
        charged_at[bounded] = at
    return replace(meter, lines=lines, charged_at=charged_at)


def _without_ended(meter: EnergyMeter, oldest: datetime) -> EnergyMeter:
    """Return the meter without lines and GPUs that had nothing for a day."""
    ended = {key for key, at in meter.charged_at.items() if at <= oldest}
    return replace(
        meter,
        lines={key: parts for key, parts in meter.lines.items() if key not in ended},
        charged_at={key: at for key, at in meter.charged_at.items() if key not in ended},
        last={uuid: gpu for uuid, gpu in meter.last.items() if gpu.at > oldest},
    )
