"""A policy that knows the work of what has arrived, for knobs that are tuned in hindsight."""

import math
from array import array
from bisect import bisect_right
from collections import deque
from itertools import accumulate

from tessera_lab.fleet.hindsight.work import trace_work
from tessera_lab.fleet.observation import (
    Observation,
    PolicyFamily,
    ReplicaModel,
    Settings,
)
from tessera_lab.fleet.policies.knobs import grid
from tessera_lab.fleet.trace import Trace

_HEADROOMS = (1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.55, 1.7, 2.0)
_WINDOWS = (30.0, 60.0, 120.0)
_HOLDS = (60.0, 180.0, 300.0)


class ReactivePolicy:
    """Sizes the fleet for the work that arrived last, as if each request's length were known."""

    interval = 5.0
    scrape = 0.0

    def __init__(self, arrivals: "array[float]", sums: list[float], settings: Settings) -> None:
        """`sums` are those of the work up to each arrival."""
        self._arrivals, self._sums = arrivals, sums
        self._headroom, self._window = settings["headroom"], settings["window"]
        self._hold = settings["hold"]
        self._wanted = deque[tuple[float, int]]()
        """Replicas for the work at each decision, as far back as they are held."""

    def decide(self, observation: Observation) -> int:
        at = observation.at
        span = min(self._window, at)
        arrived = self._sums[bisect_right(self._arrivals, at)]
        work = arrived - self._sums[bisect_right(self._arrivals, at - span)] if span else 0.0
        wanted = math.ceil(self._headroom * work / span) if span else observation.replicas
        while self._wanted and self._wanted[0][0] < at - self._hold:
            self._wanted.popleft()
        self._wanted.append((at, wanted))
        return max(replicas for _, replicas in self._wanted)


def reactive(trace: Trace, replica: ReplicaModel) -> PolicyFamily:
    """Return the policy for this trace, with knobs to tune on it."""
    least = trace_work(trace, replica)
    work = (prompt + decode for prompt, decode in zip(least.prompt, least.decode, strict=True))
    sums = list(accumulate(work, initial=0.0))
    return PolicyFamily(
        title="Reactive, tuned in hindsight",
        create=lambda settings, _: ReactivePolicy(trace.arrivals, sums, settings),
        published={"headroom": 1.3, "window": 60.0, "hold": 180.0},
        grid=grid(headroom=_HEADROOMS, window=_WINDOWS, hold=_HOLDS),
    )
