"""The course of a fleet that knows its load beforehand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tessera_lab.fleet.attainment import AttainmentGoal
from tessera_lab.fleet.course import Course
from tessera_lab.fleet.hindsight.cover import Schedule, cover, slot_work_seconds, window_count
from tessera_lab.fleet.model import FleetModel, StartUp
from tessera_lab.fleet.policies.scheduled import ScheduledPolicy
from tessera_lab.fleet.simulation import Simulation
from tessera_lab.fleet.trace import Trace

_FIRST_LIMIT, _HIGHEST_LIMIT = 0.75, 2.0
# Rounds in which limits go up and down, and those in which they only go down.
_ROUNDS, _LAST_ROUNDS = 9, 4
# Logarithm of a limit's first change down; changes up are smaller, and all become smaller.
_STEP, _UP, _DECAY = 0.25, 0.4, 0.85
# A window that fails takes part of the limit of the one before, whose queue it may inherit.
_BEFORE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class ClairvoyantRun:
    """A schedule with its simulated course."""

    schedule: Schedule
    course: Course
    sufficient: bool
    """Whether it attained the goal."""


def clairvoyant_run(trace: Trace, fleet: FleetModel, goal: AttainmentGoal) -> ClairvoyantRun:
    """Return the cheapest of the schedules that attain the goal, else the one with most replicas.

    Each window of the goal has its own load limit: it rises while enough of the window's requests
    are in time in the simulation, and falls otherwise. Starts take no time.
    """
    work = slot_work_seconds(trace, fleet.replica)
    limits = [_FIRST_LIMIT] * window_count(work, goal)
    runs, step = list[ClairvoyantRun](), _STEP
    for number in range(_ROUNDS + _LAST_ROUNDS):
        schedule = cover(work, goal, limits)
        run, passed = _play(trace, fleet, goal, schedule, len(limits))
        runs.append(run)
        if number < _ROUNDS:
            limits, step = _changed(limits, passed, step, _UP), step * _DECAY
        elif run.sufficient:
            break
        else:
            limits = _changed(limits, passed, step, 0.0)
    attaining = [run for run in runs if run.sufficient]
    if attaining:
        return min(attaining, key=lambda run: run.course.replica_seconds)
    return max(runs, key=lambda run: run.course.replica_seconds)


def _play(
    trace: Trace, fleet: FleetModel, goal: AttainmentGoal, schedule: Schedule, windows: int
) -> tuple[ClairvoyantRun, list[bool]]:
    """Return the simulated schedule, and which windows have enough requests in time."""
    free = replace(
        fleet,
        initial_replicas=max(fleet.min_replicas, schedule[0][1]),
        max_replicas=max(replicas for _, replicas in schedule),
        start_up=StartUp(low=0.0, mode=0.0, high=0.0),
    )
    course = Simulation(trace, free, ScheduledPolicy(schedule)).run()
    served = list(zip(trace.arrivals, course.ttft, strict=True))
    counts = goal.by_window(served)
    passed = [
        in_time >= goal.required_requests(requests)
        for requests, in_time in (counts.get(window, (0, 0)) for window in range(windows))
    ]
    sufficient = goal.score(served).sufficient
    return ClairvoyantRun(schedule=schedule, course=course, sufficient=sufficient), passed


def _changed(
    limits: Sequence[float], passed: Sequence[bool], step: float, up: float
) -> list[float]:
    """Return the limits after a round: up only where the next window passed, too."""
    changes = [0.0] * len(limits)
    for window, sufficient in enumerate(passed):
        if not sufficient:
            changes[window] -= step
            if window and passed[window - 1]:
                changes[window - 1] -= _BEFORE * step
        elif all(passed[window + 1 : window + 2]):
            changes[window] += up * step
    return [
        min(_HIGHEST_LIMIT, limit * math.exp(change))
        for limit, change in zip(limits, changes, strict=True)
    ]
