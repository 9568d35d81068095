"""The headroom for what the demand grows by while a replica starts."""

import math
from bisect import bisect_left
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter

# How far back the demand is remembered, and how often.
_SPAN = timedelta(hours=1)
_INTERVAL = timedelta(seconds=30)
# Fewer moments say nothing.
_LEAST_MOMENTS = 20
# Share of the moments after which the headroom would have been enough. While a replica starts, the
# gateway keeps all but the excess in time.
_SHARE = 0.4
_LEAST, _MOST = 1.02, 1.4
# Before there is a history: what served recorded traffic best was 1.15 with a lead of 110 s and
# 1.2 with one of 180 s.
_BASE, _PER_SECOND, _MOST_UNKNOWN = 1.04, 0.001, 1.3


@dataclass(frozen=True, slots=True)
class Growth:
    """The demand of the last hour, and what it grew by within the lead of a replica."""

    demands: tuple[tuple[datetime, float], ...] = ()
    """Replicas that the load would fill, oldest first."""
    measured: float | None = None
    """Factor; None of too short a history."""

    def headroom(self, lead: timedelta) -> float:
        """Return the factor by which replicas carry more than the demand of the moment."""
        if self.measured is not None:
            return self.measured
        return min(_MOST_UNKNOWN, _BASE + _PER_SECOND * lead.total_seconds())


def next_growth(growth: Growth, at: datetime, demand: float, lead: timedelta) -> Growth:
    """Return the growth after a reading of the demand, in replicas.

    The demand counts the lengths of requests as well as their rate: what comes in bursts may be
    long prompts. Where nothing comes there is nothing to compare with.
    """
    if not demand or (growth.demands and at - growth.demands[-1][0] < _INTERVAL):
        return growth
    demands = (*(each for each in growth.demands if at - each[0] < _SPAN), (at, demand))
    return Growth(demands, _measured(demands, lead))


def _measured(demands: tuple[tuple[datetime, float], ...], lead: timedelta) -> float | None:
    """Return what the demand grew by within a lead, at most, after most moments."""
    values = [demand for _, demand in demands]
    first_since = demands[-1][0] - lead
    # Moments are as far apart as usual, so each has as many within its lead as the last one.
    within = len(values) - bisect_left(demands, first_since, key=itemgetter(0))
    ratios = [
        max(values[index : index + within]) / values[index]
        for index in range(len(values) - within + 1)
    ]
    if len(ratios) < _LEAST_MOMENTS:
        return None
    return min(_MOST, max(_LEAST, sorted(ratios)[math.ceil(_SHARE * len(ratios)) - 1]))
