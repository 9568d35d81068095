"""The replicas that bursts need: the rate of a minute says nothing of its seconds.

A burst is over before a replica starts, so a single one adds none. But bursts come again, and what
two of them needed is there for a while. One that lasts for minutes counts again.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter

# Fewer arrivals in a minute are no burst.
_LEAST_ARRIVALS = 20
# Share of the arrivals that may have waited too long. Replicas that share no work do less than one
# queue, so it is below that of the objective.
_LATE_SHARE = 0.03
# A burst is remembered for so long. What comes within the interval belongs to it.
_SPAN, _INTERVAL = timedelta(minutes=30), timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Burst:
    """Arrivals that needed more replicas than the rate of their minute."""

    at: datetime
    replicas: int
    rate: float
    """Requests per second of the minute."""


def round_up(replicas: float) -> int:
    """Round up, but not by the error of a float."""
    return math.ceil(replicas - 1e-9)


def replicas_for_bursts(
    arrivals: Sequence[int],
    prompts_per_second: float,
    queue_time: timedelta,
    least: int,
    most: int,
) -> int:
    """Return the fewest replicas, from `least` on, that would have read the prompts in time.

    `arrivals` are those of each second, oldest first. They wait in one queue, from which a replica
    reads so many prompts per second, and at most for `queue_time`.
    """
    total = sum(arrivals)
    if total < _LEAST_ARRIVALS or not queue_time:
        return least

    def suffices(replicas: int) -> bool:
        return _late(arrivals, replicas * prompts_per_second, queue_time) <= _LATE_SHARE * total

    # `most` is the answer also where it does not suffice.
    return least + bisect_left(range(least, most), True, key=suffices)


def _late(arrivals: Sequence[int], prompts_per_second: float, queue_time: timedelta) -> int:
    """Return the arrivals of the seconds whose mean wait was too long."""
    longest = queue_time.total_seconds() * prompts_per_second
    queued, late = 0.0, 0
    for count in arrivals:
        before, queued = queued, max(0.0, queued + count - prompts_per_second)
        if (before + queued) / 2 > longest:
            late += count
    return late


def next_bursts(
    bursts: tuple[Burst, ...], at: datetime, replicas: int, rate: float
) -> tuple[Burst, ...]:
    """Return the bursts of the last half hour after a minute that needed so many; 0 is none."""
    bursts = tuple(each for each in bursts if at - each.at < _SPAN)
    if not replicas:
        return bursts
    if bursts and at - bursts[-1].at < _INTERVAL:
        last = bursts[-1]
        new = Burst(last.at, replicas, rate)
        return (*bursts[:-1], max(last, new, key=attrgetter("replicas")))
    return (*bursts, Burst(at, replicas, rate))


def needed_again(bursts: Sequence[Burst], rate: float) -> int:
    """Return what two bursts needed: a load that rises once looks like one, and so does a spike.

    While fewer requests come, so are those of their bursts.
    """
    needed = sorted(round_up(each.replicas * min(1.0, rate / each.rate)) for each in bursts)
    return needed[-2] if len(needed) > 1 else 0
