"""How many replicas: waiting requests lead, the activity of the slices guards.

The rules are those of the HorizontalPodAutoscaler (ratio with tolerance, windows, step limit), with
one difference: an engine that decodes is nearly always active, so activity above its target keeps
replicas, and adds some only while something waits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tessera.api.inference_service import Scaling as ScalingSpec
from tessera.domain.reasons import Scaling

TOLERANCE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What was read of a service. None is "not known"."""

    at: datetime
    replicas: int
    """Replicas that exist; they count as wanted when nothing is remembered."""
    ready: int
    """Replicas that take requests: those that the activity speaks about."""
    waiting: float | None
    """Waiting requests, all replicas together."""
    activity: float | None
    """Share of time in which the slices work, mean over the ready replicas."""


@dataclass(frozen=True, slots=True)
class Count:
    """A number of replicas and the moment from which it held or was wished."""

    at: datetime
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the next decision has to know of the past."""

    lows: tuple[Count, ...] = ()
    """Wishes of the up window that no later wish undercuts, oldest first."""
    highs: tuple[Count, ...] = ()
    """Wishes of the down window that no later wish exceeds, oldest first."""
    counts: tuple[Count, ...] = ()
    """The decisions of the last period, oldest first; the last one holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The decision. The caller keeps the memory."""

    replicas: int
    reason: Scaling
    message: str
    memory: Memory


def desired_replicas(total: float, target_average: float) -> int:
    """ceil(total / target average): the bare HPA formula (F19)."""
    return math.ceil(total / target_average)


def scale(policy: ScalingSpec, load: Load, memory: Memory) -> Scale:
    """Choose the replica count.

    Without a past (a new service, a restarted operator that could not read it back) the present
    number counts as wished until now, so both windows begin anew and nothing moves early.
    """
    current = memory.counts[-1].replicas if memory.counts else load.replicas
    wish = _wish(policy, load, current)
    bounded = _bounded(policy, wish.replicas)
    memory = _remember(policy, load.at, current, bounded, memory)
    memory = replace(memory, counts=_recent(memory.counts, load.at, policy.scale_up.period))
    replicas, reason, message = _decide(policy, wish, bounded, current, memory)
    if replicas != current:
        memory = replace(memory, counts=(*memory.counts, Count(load.at, replicas)))
    return Scale(replicas=replicas, reason=reason, message=message, memory=memory)


def is_steady(decided: Scale, at: datetime) -> bool:
    """The same readings will decide the same, however often: nothing is on its way."""
    memory, number = decided.memory, decided.replicas
    windows = [count.replicas for count in (*memory.lows, *memory.highs)]
    return windows in ([number, number], []) and memory.counts[-1].at < at


def held(memory: Memory, at: datetime) -> Memory:
    """The memory after the last wish was repeated until a moment."""
    return replace(memory, lows=_until(memory.lows, at), highs=_until(memory.highs, at))


def _until(window: tuple[Count, ...], at: datetime) -> tuple[Count, ...]:
    return (*window[:-1], Count(at, window[-1].replicas)) if window else ()


def wished(policy: ScalingSpec, load: Load, current: int) -> int:
    """What one reading asks for within the bounds, before windows and steps."""
    return _bounded(policy, _wish(policy, load, current).replicas)


def cap(decided: Scale, replicas: int, message: str, at: datetime) -> Scale:
    """The decision after somebody granted less; the windows keep what was wished."""
    counts = tuple(count for count in decided.memory.counts if count.at < at)
    if not counts or counts[-1].replicas != replicas:
        counts = (*counts, Count(at, replicas))
    return Scale(
        replicas=replicas,
        reason=Scaling.BUDGET_EXHAUSTED,
        message=message,
        memory=replace(decided.memory, counts=counts),
    )


def recall(policy: ScalingSpec, readings: Sequence[Load], memory: Memory) -> Memory:
    """Build the windows from readings of the past, oldest first."""
    for load in readings:
        current = memory.counts[-1].replicas if memory.counts else load.replicas
        wish = _bounded(policy, _wish(policy, load, current).replicas)
        memory = _remember(policy, load.at, current, wish, memory)
    return memory


def _remember(policy: ScalingSpec, at: datetime, current: int, wish: int, memory: Memory) -> Memory:
    """The windows after one more wish; a past that is not known counts as the present number."""
    start = (Count(at, current),)
    new = Count(at, wish)
    return Memory(
        lows=_pushed(memory.lows or start, new, policy.scale_up.window, lowest=True),
        highs=_pushed(memory.highs or start, new, policy.scale_down.window, lowest=False),
        counts=memory.counts or start,
    )


def _bounded(policy: ScalingSpec, replicas: int) -> int:
    return min(max(replicas, policy.min_replicas), policy.max_replicas)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What one reading asks for, before windows, steps and bounds."""

    replicas: int
    reason: Scaling
    message: str


def _wish(policy: ScalingSpec, load: Load, current: int) -> _Wish:
    if load.waiting is None:
        replicas, reason = current, Scaling.NO_READING
    elif load.activity is None:
        replicas, reason = (
            max(_by_queue(policy, current, load.waiting), current),
            Scaling.PARTLY_READ,
        )
    else:
        replicas, reason = _weighed(policy, load, current, load.waiting, load.activity)
    return _Wish(replicas=replicas, reason=reason, message=_told(policy, load, current))


def _weighed(
    policy: ScalingSpec, load: Load, current: int, waiting: float, activity: float
) -> tuple[int, Scaling]:
    queue = _by_queue(policy, current, waiting)
    busy = _by_activity(policy, current, load.ready, activity)
    if queue > current and queue >= busy:
        return queue, Scaling.QUEUE_ABOVE_TARGET
    if busy > current and waiting:
        return busy, Scaling.ACTIVITY_ABOVE_TARGET
    if max(queue, busy) < current:
        return max(queue, busy), Scaling.LOAD_BELOW_TARGET
    held = queue < current and activity > policy.activity.target
    return current, Scaling.BUSY if held else Scaling.STEADY


def _by_queue(policy: ScalingSpec, current: int, waiting: float) -> int:
    return _by_ratio(current, waiting, policy.queue.target)


def _by_activity(policy: ScalingSpec, current: int, ready: int, activity: float) -> int:
    """Replicas on their way count as idle when the wish goes up, and as on target when down."""
    target = float(policy.activity.target)
    missing = 0.0 if activity > target else max(0, current - ready) * target
    return _by_ratio(current, ready * activity + missing, target)


def _by_ratio(current: int, total: float, target: float) -> int:
    if current and abs(total / (current * target) - 1) <= TOLERANCE:
        return current
    return desired_replicas(total, target)


def _decide(
    policy: ScalingSpec, wish: _Wish, bounded: int, current: int, memory: Memory
) -> tuple[int, Scaling, str]:
    """The windows, then the step, then what holds the present number."""
    if current != _bounded(policy, current):
        moved = _bounded(policy, current)
        bound = "minReplicas" if moved > current else "maxReplicas"
        return moved, Scaling.BOUNDS_CHANGED, f"spec.scaling.{bound} is {moved}"
    up = min(count.replicas for count in memory.lows)
    down = max(count.replicas for count in memory.highs)
    if up > current:
        return _raise(policy, wish, up, current, memory.counts[0].replicas)
    if down < current:
        return down, Scaling.LOAD_BELOW_TARGET, wish.message
    return current, _why_held(wish, bounded, current), _held(policy, wish, bounded, current)


def _raise(
    policy: ScalingSpec, wish: _Wish, up: int, current: int, before: int
) -> tuple[int, Scaling, str]:
    """Up to the smallest wish of the window, within the step of one period."""
    limit = before + policy.scale_up.pods
    replicas = max(current, min(up, limit))
    if replicas == up:
        return up, wish.reason, wish.message
    period = int(policy.scale_up.period.total_seconds())
    step = (
        f"{wish.message}; {up} are wished, and spec.scaling.scaleUp allows {limit}: "
        f"{policy.scale_up.pods} more than the {before} of {period} s ago"
    )
    return replicas, wish.reason if replicas > current else Scaling.STEP_LIMITED, step


def _why_held(wish: _Wish, bounded: int, current: int) -> Scaling:
    if wish.reason in (Scaling.NO_READING, Scaling.PARTLY_READ, Scaling.BUSY):
        return wish.reason
    if wish.replicas > current and bounded == current:
        return Scaling.AT_MAXIMUM
    if bounded > current:
        return Scaling.WAITING_TO_SCALE_UP
    if bounded < current:
        return Scaling.WAITING_FOR_QUIET
    return Scaling.STEADY


def _held(policy: ScalingSpec, wish: _Wish, bounded: int, current: int) -> str:
    if bounded > current:
        window = int(policy.scale_up.window.total_seconds())
        return f"{wish.message}; {bounded} must be wished for {window} s"
    if bounded < current:
        window = int(policy.scale_down.window.total_seconds())
        return f"{wish.message}; {bounded} must suffice for {window} s"
    if wish.replicas > bounded:
        return f"{wish.message}; {wish.replicas} are wished, spec.scaling.maxReplicas is {bounded}"
    return wish.message


def _told(policy: ScalingSpec, load: Load, current: int) -> str:
    """The readings with their targets, as every message begins."""
    queue = (
        "waiting requests could not be read"
        if load.waiting is None
        else f"{load.waiting:.0f} waiting (target {policy.queue.target} a replica)"
    )
    activity = (
        "activity could not be read"
        if load.activity is None
        else f"activity {load.activity:.2f} (target {policy.activity.target})"
    )
    return f"{queue}, {activity}, {current} replicas"


def _pushed(
    window: tuple[Count, ...], new: Count, span: timedelta, *, lowest: bool
) -> tuple[Count, ...]:
    """A window of extremes: drop what left it, and what `new` makes irrelevant."""
    sign = 1 if lowest else -1
    kept = tuple(
        old
        for old in window
        if new.at - old.at < span and sign * old.replicas < sign * new.replicas
    )
    return (*kept, new)


def _recent(counts: tuple[Count, ...], now: datetime, period: timedelta) -> tuple[Count, ...]:
    """The decisions of the last period, and the one that held when it began, which is the first."""
    while len(counts) > 1 and now - counts[1].at >= period:
        counts = counts[1:]
    return counts
