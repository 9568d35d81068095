"""The windows of GPUs: what was used between two samples, and by whom.

Of the energy of a window, the idle watts of the product go by billing weight, as the bill does; the
rest by the activity of the engines times their share of the GPU's multiprocessors, as Kepler splits
it too. The parts sum exactly to the difference of the two samples.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from heapq import nlargest
from typing import NamedTuple

from tessera.domain.cost.device_use import CostLine, CostState, DeviceUse
from tessera.domain.hardware.device import GPU, MIG_PREFIX, is_gpu_resource, resource_of
from tessera.domain.hardware.power import PowerRange, compute_share, power_range
from tessera.domain.observed.energy import EnergySource, GPUReading
from tessera.domain.observed.snapshot import Pod, Ref

# In a longer window devices may have been used by others than at its ends.
MAX_WINDOW = timedelta(minutes=3)
# No GPU draws so many times its maximum, not even for milliseconds.
_IMPLAUSIBLE = 2
# Of a product without a figure.
_UNKNOWN_WATTS = 1500.0
_PARTS = 10**6
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
    REPEATED = "Repeated"
    """More than one exporter shows the GPU, so none of them counts."""


class Window(NamedTuple):
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


def repeats(before: GPUReading | None, gpu: GPUReading) -> bool:
    """Return whether an exporter shows the counter that it read before; a GPU never rests."""
    return (
        before is not None
        and gpu.millijoules is not None
        and gpu.millijoules == before.millijoules
        and gpu.at - before.at <= MAX_WINDOW
    )


def window_of(
    before: GPUReading, after: GPUReading, use: DeviceUse, active: Mapping[CostLine, int]
) -> tuple[Window | None, EnergyGap | None]:
    """Return the window between two samples of a GPU, and why it has no measured energy."""
    length = after.at - before.at
    instances = [
        {(device.instance, device.profile) for device in gpu.devices} for gpu in (before, after)
    ]
    window = Window(
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


def gpu_use(use: DeviceUse, before: GPUReading, after: GPUReading) -> DeviceUse:
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
        holds[ref][resource_of(profile)] += 1
    pods = [
        # Most pods have one device, and to replace one takes long.
        pod if pod.devices == holds[pod.ref] else replace(pod, devices=holds[pod.ref])
        for pod in use.pods
        if pod.ref in holds and gpu_resources(pod)
    ]
    resources = Counter(resource_of(profile) for _, profile in instances)
    return replace(use, gpus=1, allocatable=resources, pods=pods)


def active_lines(use: DeviceUse, before: GPUReading, after: GPUReading) -> Mapping[CostLine, int]:
    """Return the activity of each device times its share of the GPU, in millionths, by line."""
    pods = {pod.ref: pod for pod in use.pods}
    holders = {(device.instance, device.pod) for device in before.devices if device.is_held}
    active: Counter[CostLine] = Counter()
    for device in after.devices:
        was_held = (device.instance, device.pod) in holders
        if device.activity and (device.is_held or was_held):
            share = device.activity * compute_share(use.product, device.profile)
            pod, resource = pods.get(device.pod or _NO_POD), resource_of(device.profile)
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


def modelled_window(
    use: DeviceUse,
    count: int,
    times: tuple[datetime, datetime],
    activities: Mapping[Ref, float | None],
    sampled: Sequence[GPUReading],
) -> Window | None:
    """Return what so many GPUs of a node without any sample used, by watts and activity.

    None of a product without watts, and of a longer time than is split.
    """
    begin, end = times
    watts = power_range(use.product)
    if watts is None or end - begin > MAX_WINDOW:
        return None
    holders = {device.pod for gpu in sampled for device in gpu.devices}
    devices = Counter(resource_of(device.profile) for gpu in sampled for device in gpu.devices)
    pods = [pod for pod in use.pods if pod.ref not in holders]
    rest = replace(use, gpus=count, allocatable=Counter(use.allocatable) - devices, pods=pods)
    active: Counter[CostLine] = Counter()
    for pod in pods:
        # A replica that works on requests without a reading of its activity steps all the time.
        activity = activities.get(pod.ref)
        if activity is None:
            activity = float(pod.ref in use.busy_since)
        for resource, number in gpu_resources(pod).items():
            profile = "" if resource == GPU else resource.removeprefix(MIG_PREFIX)
            share = activity * number * compute_share(use.product, profile)
            if share:
                line = _line_of(rest, pod, resource, begin, end)
                active[line] += round(share * _PARTS)
    busy = min(1.0, sum(active.values()) / _PARTS / count)
    millijoules = count * _millijoules(watts, busy, end - begin)
    return Window(begin, end, millijoules, EnergySource.MODEL, rest, active, count)


def gpu_resources(pod: Pod) -> Mapping[str, int]:
    """Return the GPUs and slices of a pod, by resource."""
    return {name: count for name, count in pod.devices.items() if is_gpu_resource(name)}


def split_energy(window: Window) -> tuple[Mapping[CostLine, int], EnergySplit]:
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


def idle_watts_of(window: Window) -> float:
    """Return the idle watts of the free part of a GPU at the end of a window, if a part is used."""
    watts = power_range(window.use.product)
    weights: Counter[bool] = Counter()
    for line, weight in window.use.at(window.end):
        weights[line.state.allocated] += weight
    if watts is None or not weights[True]:
        return 0.0
    return watts.idle_watts * weights[False] / weights.total()
