"""How long a replica that is not needed stays, by what the lulls of its service showed.

It is not known beforehand whether a load comes back soon, the question of ski rental: to keep
a replica for as long as its start-up would cost is at most twice as dear as to know. So replicas
are held that were there before the service was observed for that long, and those of a service whose
load came back in the last lull that was longer than the stabilization window. Once a lull outlasts
the longer hold as well, the window suffices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from tessera.domain.scaling.state import TimestampedReplicas

# Starting a replica again costs its lead, and several times as much in late requests.
_START_UP_COST = 4
MAX_HOLD = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Lulls:
    """What is known of the times in which fewer replicas were enough."""

    first: TimestampedReplicas | None = None
    """The replicas at the first reading; how long they were needed before is not known."""
    returned: bool = False
    """Whether the load came back in the last one that was longer than the stabilization window."""


def longest_hold(window: timedelta, lead: timedelta) -> timedelta:
    """Return the time for which a replica is worth its start-up; at least the window."""
    return max(window, min(_START_UP_COST * lead, MAX_HOLD))


def is_new(lulls: Lulls, at: datetime, longest: timedelta) -> bool:
    """Return whether the service has not been observed for the longest hold yet."""
    return lulls.first is None or at - lulls.first.at < longest


def hold_of(
    lulls: Lulls, current: TimestampedReplicas, window: timedelta, longest: timedelta
) -> timedelta:
    """Return the time for which fewer must be enough before replicas are removed."""
    first = lulls.first or current
    unknown = is_new(lulls, current.at, longest) and current.replicas <= first.replicas
    return longest if unknown or lulls.returned else window


def next_lulls(
    lulls: Lulls,
    recommended: Sequence[TimestampedReplicas],
    new: TimestampedReplicas,
    current: int,
    window: timedelta,
    longest: timedelta,
) -> Lulls:
    """Return what is known after a recommendation.

    `recommended` are the earlier ones that no later one exceeds, oldest first: each says until when
    so many replicas were needed. What came back counts for more than what stayed away.
    """
    returned = lulls.returned
    ages = [(new.at - high.at, low.replicas) for high, low in pairwise(recommended)]
    if any(age >= longest for age, _ in ages):
        returned = False
    if any(window < age < longest and low < new.replicas for age, low in ages):
        returned = True
    return Lulls(lulls.first or TimestampedReplicas(new.at, current), returned)
