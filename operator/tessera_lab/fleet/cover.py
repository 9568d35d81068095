"""The fewest replicas over time that carry a load which is known beforehand."""

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from tessera_lab.fleet.attainment import AttainmentGoal
from tessera_lab.fleet.observation import ReplicaModel
from tessera_lab.fleet.trace import Trace
from tessera_lab.fleet.work import trace_work

SLOT_SECONDS = 10.0
# Slots for which a replica stays at least.
HOLD_SLOTS = 12
# Replica seconds that a late request costs: all loads have their price in between.
_LOWEST_PRICE, _HIGHEST_PRICE = 1e-3, 1e6
_BISECTIONS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotDemand:
    """A load by slots; the columns have equal lengths."""

    work: Sequence[float]
    """Replica seconds."""
    requests: Sequence[int]
    """Scored requests that arrive in the slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cover:
    """Replicas over time for a load that is known beforehand."""

    schedule: tuple[tuple[float, int], ...]
    """Ready replicas from each moment on, in seconds since the start of the trace."""
    replica_seconds: float
    late: float
    """Scored requests that are beyond the load limit of their slot."""


def slot_demand(trace: Trace, replica: ReplicaModel, goal: AttainmentGoal) -> SlotDemand:
    """Return the least work by slots: of prompts at their arrival, of tokens at the ITL objective.

    What is left after the window of the trace belongs to no slot.
    """
    count = max(1, math.ceil(trace.seconds / SLOT_SECONDS))
    prompts, changes, requests = [0.0] * count, [0.0] * (count + 1), [0] * count
    least = trace_work(trace, replica)
    for arrival, output_tokens, prompt, decode in zip(
        trace.arrivals, trace.output_tokens, least.prompt, least.decode, strict=True
    ):
        slot = min(int(arrival / SLOT_SECONDS), count - 1)
        prompts[slot] += prompt
        requests[slot] += goal.window_of(arrival) is not None
        slots = max(1, round((output_tokens - 1) * replica.itl / SLOT_SECONDS))
        changes[slot] += decode / slots
        changes[min(slot + slots, count)] -= decode / slots
    decodes = accumulate(changes[:count])
    work = [prompt + decode for prompt, decode in zip(prompts, decodes, strict=True)]
    return SlotDemand(work=array("d", work), requests=array("l", requests))


def cover(demand: SlotDemand, goal: AttainmentGoal, load_limit: float) -> Cover:
    """Return the fewest replica seconds that carry the load within the limit and attain the goal.

    A late request has a price, and a replica is there while it costs less than the requests that
    would be late without it, for at least `HOLD_SLOTS`; its start takes no time. The price is one
    for all requests or one for each window of the goal, whichever gives the fewer replica seconds.
    """
    fluid = _FluidFleet(demand, goal, [load_limit] * window_count(demand, goal))
    replicas = min(fluid.with_one_price(), fluid.with_window_prices(), key=sum)
    return fluid.as_cover(replicas)


def full_cover(demand: SlotDemand, goal: AttainmentGoal, load_limits: Sequence[float]) -> Cover:
    """Return the fewest replica seconds that carry all of the load within its limits.

    There is one limit for each window of the goal.
    """
    fluid = _FluidFleet(demand, goal, load_limits)
    return fluid.as_cover(fluid.with_all())


def window_count(demand: SlotDemand, goal: AttainmentGoal) -> int:
    return int((len(demand.work) - 1) * SLOT_SECONDS // goal.window) + 1


class _FluidFleet:
    """A load on replicas that carry as much work as the load limits allow."""

    def __init__(
        self, demand: SlotDemand, goal: AttainmentGoal, load_limits: Sequence[float]
    ) -> None:
        self._requests, self._goal = demand.requests, goal
        self._window = [
            int(slot * SLOT_SECONDS // goal.window) for slot in range(len(demand.requests))
        ]
        # Of each slot: how many replicas carry it.
        self._needed = [
            work / (load_limits[window] * SLOT_SECONDS)
            for work, window in zip(demand.work, self._window, strict=True)
        ]

    def as_cover(self, replicas: Sequence[int]) -> Cover:
        schedule = tuple(
            (slot * SLOT_SECONDS, count)
            for slot, count in enumerate(replicas)
            if slot == 0 or count != replicas[slot - 1]
        )
        return Cover(
            schedule=schedule,
            replica_seconds=sum(replicas) * SLOT_SECONDS,
            late=sum(self.late(replicas)),
        )

    def late(self, replicas: Sequence[int]) -> Iterator[float]:
        """Yield the late requests of each slot."""
        for requests, needed, count in zip(self._requests, self._needed, replicas, strict=True):
            yield requests * (1 - count / needed) if count < needed else 0.0

    def with_all(self) -> list[int]:
        return self._replicas([_HIGHEST_PRICE] * (self._window[-1] + 1), all_work=True)

    def with_one_price(self) -> list[int]:
        windows = self._window[-1] + 1
        best = self._replicas([_HIGHEST_PRICE] * windows)
        low, high = _LOWEST_PRICE, _HIGHEST_PRICE
        for _ in range(_BISECTIONS):
            price = math.sqrt(low * high)
            replicas = self._replicas([price] * windows)
            if self._attains(replicas):
                best, high = replicas, price
            else:
                low = price
        return best

    def with_window_prices(self) -> list[int]:
        """Lower the price of each window until its own share is just attained."""
        windows = self._window[-1] + 1
        low, high = [_LOWEST_PRICE] * windows, [_HIGHEST_PRICE] * windows
        for _ in range(_BISECTIONS):
            prices = [math.sqrt(a * b) for a, b in zip(low, high, strict=True)]
            late, total = self._by_window(self._replicas(prices))
            for window, price in enumerate(prices):
                if self._suffices(late[window], total[window]):
                    high[window] = price
                else:
                    low[window] = price
        replicas = self._replicas(high)
        # A window's replicas depend on its neighbors' prices, too, through the least stay.
        return replicas if self._attains(replicas) else self._replicas([_HIGHEST_PRICE] * windows)

    def _attains(self, replicas: Sequence[int]) -> bool:
        late, total = self._by_window(replicas)
        windows = [window for window, requests in enumerate(total) if requests]
        sufficient = sum(self._suffices(late[window], total[window]) for window in windows)
        return self._suffices(sum(late), sum(total)) and sufficient >= self._goal.required_windows(
            len(windows)
        )

    def _suffices(self, late: float, requests: int) -> bool:
        return requests - late >= self._goal.required_requests(requests) - 1e-6

    def _by_window(self, replicas: Sequence[int]) -> tuple[list[float], list[int]]:
        late, total = [0.0] * (self._window[-1] + 1), [0] * (self._window[-1] + 1)
        for window, requests, missed in zip(
            self._window, self._requests, self.late(replicas), strict=True
        ):
            late[window] += missed
            total[window] += requests
        return late, total

    def _replicas(self, prices: Sequence[float], *, all_work: bool = False) -> list[int]:
        """Return the replicas of each slot that cost least, late requests included.

        The late requests are convex in the replicas. So the first, the second and each further
        replica are chosen separately, each by the late requests that it saves beside those before.
        """
        replicas = [0] * len(self._needed)
        for level in range(math.ceil(max(self._needed))):
            gains = [
                self._gain(needed, requests, level) * prices[window] - SLOT_SECONDS
                for needed, requests, window in zip(
                    self._needed, self._requests, self._window, strict=True
                )
            ]
            if level == 0 or all_work:
                # Nothing is lost: whatever work there is, some replica does it.
                gains = [
                    _HIGHEST_PRICE if needed > level else gain
                    for needed, gain in zip(self._needed, gains, strict=True)
                ]
            chosen = best_stays(gains, HOLD_SLOTS)
            for slot, present in enumerate(chosen):
                replicas[slot] += present
        return replicas

    @staticmethod
    def _gain(needed: float, requests: int, level: int) -> float:
        return requests * min(1.0, needed - level) / needed if needed > level else 0.0


def best_stays(gains: Sequence[float], least: int) -> list[bool]:
    """Return in which slots to stay for the greatest sum of gains, for `least` slots or longer.

    The last stay may be cut by the end.
    """
    if max(gains) <= 0:
        return [False] * len(gains)
    # A stay that the end cuts is one that goes on without gain.
    sums = [*accumulate((*gains, *[0.0] * (least - 1)), initial=0.0)]
    # The best sums of the first slots: away in the last of them, and staying long enough.
    away, staying = [0.0], [-math.inf]
    begins = [False]
    for end in range(1, len(sums)):
        longer, new = staying[-1] + sums[end] - sums[end - 1], -math.inf
        if end >= least:
            new = away[end - least] + sums[end] - sums[end - least]
        away.append(max(away[-1], staying[-1]))
        staying.append(max(longer, new))
        begins.append(new > longer)
    return _traced(away, staying, begins, least)[: len(gains)]


def _traced(
    away: Sequence[float], staying: Sequence[float], begins: Sequence[bool], least: int
) -> list[bool]:
    """Return the choices that led to the best sums."""
    end = len(away) - 1
    present, stays = [False] * end, staying[end] > away[end]
    while end > 0:
        if stays:
            length = least if begins[end] else 1
            present[end - length : end] = [True] * length
            stays = not begins[end]
            end -= length
        else:
            end -= 1
            stays = staying[end] > away[end]
    return present
