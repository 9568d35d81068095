"""The energy of GPUs, split among who used them, in whole millijoules.

A window is the time between two samples of one GPU. Of its energy, the idle watts of the product go
by billing weight, as the bill does; the rest by the activity of the engines times their share of
the GPU's multiprocessors, as Kepler splits it too. The parts
sum exactly to the difference of the two samples.
"""

import operator
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from heapq import nlargest
from typing import NamedTuple

from tessera.api.accelerator_pool import EnergyFactors, HourlyFactor
from tessera.domain.billing.bill import LINE_LIFETIME, within_bounds
from tessera.domain.billing.device_use import (
    CostLine,
    CostState,
    DeviceUse,
    busy_since,
    node_use,
    pods_by_node,
)
from tessera.domain.hardware import pools
from tessera.domain.hardware.device import GPU, MIG_PREFIX, is_gpu_resource
from tessera.domain.hardware.power import PowerRange, compute_share, power_range
from tessera.domain.money import to_nanos
from tessera.domain.observed.energy import EnergyReadings, EnergySource, GPUReading
from tessera.domain.observed.snapshot import Node, Pod, Ref, Snapshot
from tessera.domain.steps import Step

# In a longer window devices may have been used by others than at its ends.
MAX_WINDOW = timedelta(minutes=3)
# No GPU draws so many times its maximum, not even for milliseconds.
_IMPLAUSIBLE = 2
_MILLIJOULES_PER_KWH = 3_600_000_000
# Of a product without a figure.
_UNKNOWN_WATTS = 1500.0
_PARTS = 10**6
# The state of energy of a time in which it is not known who used the GPU.
UNSPLIT = "unsplit"
_NO_POD = Ref("", "")


class EnergySplit(StrEnum):
    """By what the energy above the idle watts was split."""

    ACTIVITY = "Activity"
    WEIGHT = "Weight"
    """Billing weight, since no engine was active or nothing is known of their activity."""
    NONE = "None"
    """Not at all: its window was too long, or the GPU was partitioned within it."""


class EnergyGap(StrEnum):
    """Why the time of a window has no measured energy."""

    COUNTER_RESET = "CounterReset"
    """The counter fell, as after the driver was loaded again."""
    IMPLAUSIBLE = "Implausible"
    """More than twice the power that the product can draw."""
    NO_READING = "NoReading"
    """No counter, and power samples too far apart."""


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


class _Window(NamedTuple):
    """What GPUs of a node used between two moments, and what is known of their devices."""

    begin: datetime
    end: datetime
    millijoules: int
    source: EnergySource
    use: DeviceUse
    active: Mapping[CostLine, int]
    """Activity times share of a GPU by line, in millionths."""
    gpus: int = 1
    """Of how many GPUs the energy is; where the exporter shows no pods, `use` is of the node."""
    is_whole: bool = True
    """Whether its devices stayed the same, and it is short enough to be split."""


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
    newest = newest_readings(energy.gpus, meter.last, snapshot)
    round_ = _Round(
        begin=meter.as_of,
        at=energy.at,
        busy=busy_since(snapshot),
        activities={ref: reading.activity for ref, reading in readings.pods.items()},
        gpus=newest,
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
    # Of two exporters it is not known which was read: the one that counted later charges no time
    # twice.
    gpus = sorted(ended.gpus, key=lambda gpu: gpu.millijoules or 0)
    return EnergyMeter(as_of=ended.at, last={gpu.uuid: gpu for gpu in gpus})


def newest_readings(
    gpus: Collection[GPUReading], last: Mapping[str, GPUReading], snapshot: Snapshot
) -> Mapping[str, GPUReading]:
    """Return one reading for each GPU, of the exporter before while that one goes on."""
    nodes = {node.name for node in snapshot.nodes}
    node_by_pod = {pod.ref: pod.node for pod in snapshot.pods}
    exporters = {(gpu.uuid, gpu.exporter) for gpu in gpus}
    newest: dict[str, GPUReading] = {}
    for reading in sorted(gpus, key=lambda gpu: (gpu.at, gpu.exporter)):
        gpu, before = reading, last.get(reading.uuid)
        if reading.node not in nodes:
            # An exporter that does not know its node names itself; the pods on the GPU know it.
            hosts = [node_by_pod.get(device.pod) for device in reading.devices if device.pod]
            known = reading.node if before is None else before.node
            gpu = replace(reading, node=next(filter(None, hosts), known))
        if before is not None and (
            gpu.at <= before.at
            # That one is shown for a while after its last sample.
            or (gpu.exporter != before.exporter and (gpu.uuid, before.exporter) in exporters)
        ):
            continue
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
    holders = {pod.ref for pod in pods if _gpu_resources(pod)}
    shown = {device.pod for gpu in (*sampled, *of_last) for device in gpu.devices}
    knows_pods = not holders or not holders.isdisjoint(shown)
    windows: list[_Window] = []
    gaps: list[tuple[EnergyGap, float]] = []
    idle: dict[str, float] = {}
    advanced = [gpu for gpu in sampled if not _repeats(last.get(gpu.uuid), gpu)]
    for gpu in advanced:
        before = last.get(gpu.uuid)
        if before is None or before.node != gpu.node:
            continue
        gpu_use = _gpu_use(use, before, gpu) if knows_pods else use
        active = _active_lines(gpu_use, before, gpu) if knows_pods else {}
        window, gap = _window_of(before, gpu, gpu_use, active)
        if gap is not None:
            gaps.append((gap, (gpu.at - before.at).total_seconds()))
        if window is not None:
            windows.append(window)
            idle[gpu.gpu] = _idle_watts(window) if knows_pods else 0.0
    silent = [gpu for gpu in of_last if gpu.uuid not in round_.gpus]
    for gpu in silent:
        if gpu.at <= round_.at - LINE_LIFETIME:
            # From here on it is modelled.
            gaps.append((EnergyGap.NO_READING, (round_.at - gpu.at).total_seconds()))
    count, begin = use.gpus - len(sampled) - len(silent), round_.begin
    if count > 0 and begin is not None:
        gaps.append((EnergyGap.NO_READING, count * (round_.at - begin).total_seconds()))
        if modelled := _modelled(round_, use, count, begin, [*sampled, *silent]):
            windows.append(modelled)
    charges = [charge for window in windows for charge in _lines_of(window, factors)]
    return _NodeEnergy(charges, gaps, advanced, idle)


# A node whose energy cannot be charged costs its rows, and no other.
energy_of = Step(_node_energy, lambda *_: _NodeEnergy())


def _repeats(before: GPUReading | None, gpu: GPUReading) -> bool:
    """Return whether an exporter shows the counter that it read before; a GPU never rests."""
    return (
        before is not None
        and gpu.millijoules is not None
        and gpu.millijoules == before.millijoules
        and gpu.at - before.at <= MAX_WINDOW
    )


def _window_of(
    before: GPUReading, after: GPUReading, use: DeviceUse, active: Mapping[CostLine, int]
) -> tuple[_Window | None, EnergyGap | None]:
    """Return the window between two samples of a GPU, and why it has no measured energy."""
    length = after.at - before.at
    instances = [
        {(device.instance, device.profile) for device in gpu.devices} for gpu in (before, after)
    ]
    window = _Window(
        begin=before.at,
        end=after.at,
        millijoules=0,
        source=EnergySource.MEASURED,
        use=use,
        active=active,
        is_whole=length <= MAX_WINDOW and instances[0] == instances[1],
    )
    watts = power_range(use.product)
    counted, gap = _counted(before, after, watts)
    if counted is not None:
        return window._replace(millijoules=counted), None
    if length > MAX_WINDOW:
        return None, gap
    powers = [gpu.watts for gpu in (before, after) if gpu.watts is not None]
    if len(powers) == 2 and all(_is_plausible(power, watts) for power in powers):
        sampled = round(sum(powers) / 2 * length.total_seconds() * 1e3)
        # Without a counter power is the reading, and nothing is missing.
        lost = None if gap is EnergyGap.NO_READING else gap
        return window._replace(millijoules=sampled, source=EnergySource.POWER), lost
    if watts is None:
        return None, gap
    busy = sum(window.active.values()) / _PARTS
    modelled = _millijoules(watts, busy, length)
    return window._replace(millijoules=modelled, source=EnergySource.MODEL), gap


def _counted(
    before: GPUReading, after: GPUReading, watts: PowerRange | None
) -> tuple[int | None, EnergyGap]:
    """Return the difference of the counters, or why it is none."""
    if before.millijoules is None or after.millijoules in (None, before.millijoules):
        return None, EnergyGap.NO_READING
    difference = after.millijoules - before.millijoules
    if difference < 0:
        return None, EnergyGap.COUNTER_RESET
    # What is scraped may have been counted a minute before.
    seconds = (after.at - before.at).total_seconds() + 60
    if difference > _IMPLAUSIBLE * _max_watts(watts) * seconds * 1e3:
        return None, EnergyGap.IMPLAUSIBLE
    return difference, EnergyGap.NO_READING


def _is_plausible(sampled: float, watts: PowerRange | None) -> bool:
    return 0 < sampled <= _IMPLAUSIBLE * _max_watts(watts)


def _max_watts(watts: PowerRange | None) -> float:
    return _UNKNOWN_WATTS if watts is None else watts.max_watts


def _millijoules(watts: PowerRange, busy: float, length: timedelta) -> int:
    """Return what a GPU uses that is busy for a share of a time."""
    draw = watts.idle_watts + (watts.max_watts - watts.idle_watts) * min(1.0, busy)
    return round(draw * length.total_seconds() * 1e3)


def _gpu_use(use: DeviceUse, before: GPUReading, after: GPUReading) -> DeviceUse:
    """Return the use of one GPU, whose devices and pods are those of its samples."""
    instances = {(device.instance, device.profile) for device in after.devices}
    holders = {
        (device.pod, device.instance, device.profile)
        for gpu in (before, after)
        for device in gpu.devices
        if device.pod is not None and device.is_held
    }
    holds: dict[Ref, Counter[str]] = defaultdict(Counter)
    for ref, _, profile in holders:
        holds[ref][_resource(profile)] += 1
    pods = [
        # Most pods have one device, and to replace one takes long.
        pod if pod.devices == holds[pod.ref] else replace(pod, devices=holds[pod.ref])
        for pod in use.pods
        if pod.ref in holds and _gpu_resources(pod)
    ]
    resources = Counter(_resource(profile) for _, profile in instances)
    return replace(use, gpus=1, allocatable=resources, pods=pods)


def _active_lines(use: DeviceUse, before: GPUReading, after: GPUReading) -> Mapping[CostLine, int]:
    """Return the activity of each device times its share of the GPU, in millionths, by line."""
    pods = {pod.ref: pod for pod in use.pods}
    holders = {(device.instance, device.pod) for device in before.devices if device.is_held}
    active: Counter[CostLine] = Counter()
    for device in after.devices:
        was_held = (device.instance, device.pod) in holders
        if device.activity and (device.is_held or was_held):
            share = device.activity * compute_share(use.product, device.profile)
            pod, resource = pods.get(device.pod or _NO_POD), _resource(device.profile)
            active[_line_of(use, pod, resource, before.at, after.at)] += round(share * _PARTS)
    return active


def _line_of(
    use: DeviceUse, pod: Pod | None, resource: str, begin: datetime, end: datetime
) -> CostLine:
    """Return the line of a device at the end of a window, or when its pod ended."""
    if pod is None:
        return use.line(use.profile(resource), CostState.COLD_IDLE)
    last = end if pod.ended is None else min(end, pod.ended)
    return use.pod_line(pod, resource, max(begin, last - timedelta(microseconds=1)))


def _modelled(
    round_: _Round, use: DeviceUse, count: int, begin: datetime, sampled: Sequence[GPUReading]
) -> _Window | None:
    """Return what the GPUs of a node without any sample used, by watts and activity."""
    watts = power_range(use.product)
    if watts is None or round_.at - begin > MAX_WINDOW:
        return None
    holders = {device.pod for gpu in sampled for device in gpu.devices}
    devices = Counter(_resource(device.profile) for gpu in sampled for device in gpu.devices)
    pods = [pod for pod in use.pods if pod.ref not in holders]
    rest = replace(use, gpus=count, allocatable=Counter(use.allocatable) - devices, pods=pods)
    active: Counter[CostLine] = Counter()
    for pod in pods:
        # A replica that works on requests without a reading of its activity steps all the time.
        activity = round_.activities.get(pod.ref)
        if activity is None:
            activity = float(pod.ref in round_.busy)
        for resource, number in _gpu_resources(pod).items():
            profile = "" if resource == GPU else resource.removeprefix(MIG_PREFIX)
            share = activity * number * compute_share(use.product, profile)
            if share:
                line = _line_of(rest, pod, resource, begin, round_.at)
                active[line] += round(share * _PARTS)
    busy = min(1.0, sum(active.values()) / _PARTS / count)
    millijoules = count * _millijoules(watts, busy, round_.at - begin)
    return _Window(begin, round_.at, millijoules, EnergySource.MODEL, rest, active, count)


def _gpu_resources(pod: Pod) -> Mapping[str, int]:
    return {name: count for name, count in pod.devices.items() if is_gpu_resource(name)}


def _resource(profile: str) -> str:
    return MIG_PREFIX + profile.replace("+", ".") if profile else GPU


def split_energy(window: _Window) -> tuple[Mapping[CostLine, int], EnergySplit]:
    """Return the millijoules of a window by line, which sum to its energy, and how it was split."""
    use, total = window.use, window.millijoules
    if not window.is_whole:
        return {use.line("", CostState.STRANDED): total}, EnergySplit.NONE
    weights: Counter[CostLine] = Counter()
    for _, microseconds, lines in use.spans(window.begin, window.end):
        for line, weight in lines:
            weights[line] += weight * microseconds
    watts = power_range(use.product)
    idle = 0 if watts is None else window.gpus * _millijoules(watts, 0, window.end - window.begin)
    above = max(0, total - idle)
    if not above:
        return apportion(total, weights), EnergySplit.ACTIVITY
    # An activity of less than a millionth is none.
    if not any(window.active.values()):
        return apportion(total, weights), EnergySplit.WEIGHT
    parts = Counter(apportion(total - above, weights))
    parts.update(apportion(above, window.active))
    return parts, EnergySplit.ACTIVITY


def apportion(total: int, weights: Mapping[CostLine, int]) -> Mapping[CostLine, int]:
    """Return whole parts of a total in proportion to weights, by largest remainder."""
    sum_of_weights = sum(weights.values())
    parts = {line: total * weight // sum_of_weights for line, weight in weights.items()}

    def remainder(line: CostLine) -> tuple[int, CostLine]:
        return total * weights[line] % sum_of_weights, line

    for line in nlargest(total - sum(parts.values()), weights, key=remainder):
        parts[line] += 1
    return parts


def _idle_watts(window: _Window) -> float:
    """Return the idle watts of the free part of a GPU at the end of a window, if a part is used."""
    watts = power_range(window.use.product)
    weights: Counter[bool] = Counter()
    for line, weight in window.use.at(window.end):
        weights[line.state.allocated] += weight
    if watts is None or not weights[True]:
        return 0.0
    return watts.idle_watts * weights[False] / weights.total()


def _lines_of(
    window: _Window, factors: EnergyFactors | None
) -> Iterator[tuple[EnergyLine, Energy]]:
    """Yield the energy of each line with what it cost and emitted, by the hour it began in."""
    parts, split = split_energy(window)
    price, grams = Decimal(0), Decimal(0)
    if factors is not None:
        price = factor_on(factors.electricity_per_kwh, window.begin) * factors.pue
        grams = factor_on(factors.grams_co2_per_kwh, window.begin) * factors.pue
    for line, millijoules in parts.items():
        if millijoules:
            kwh = Decimal(millijoules) / _MILLIJOULES_PER_KWH
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
