"""The cheapest of all schedules of a tiny fleet, by trying them all.

Every engine step takes a slot of 10 s. In each slot any requests run on any replicas, within the
limits of a step; a request that got its first token gets one in every slot. This is more than a
policy can do, which moves no request from one replica to another.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

from tessera.domain.perf.step import StepTime
from tessera_lab.fleet.attainment import AttainmentGoal
from tessera_lab.fleet.hindsight.bound import Supply
from tessera_lab.fleet.observation import ReplicaModel
from tessera_lab.fleet.prices import GpuPrices
from tessera_lab.fleet.spot import SpotMarket
from tessera_lab.fleet.trace import Trace
from tests.lab.fleet import loads

SLOT = 10.0
TRACE_SLOTS, LAST_SLOT = 4, 6
MOST_REPLICAS = 3

# Remaining tokens of the prompt, and tokens that are still to be decoded.
_Progress = tuple[int, int]
# Tokens computed in a slot, and cached ones at its end.
_Item = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyFleet:
    """A trace of few requests with everything that decides on its cost."""

    trace: Trace
    replica: ReplicaModel
    goal: AttainmentGoal
    supply: Supply


def tiny_fleet(rng: random.Random) -> TinyFleet:
    tokens = rng.randint(1, 4)
    requests = sorted(
        (SLOT * rng.randint(0, 1), rng.randint(1, 4), rng.randint(1, 3))
        for _ in range(rng.randint(1, 3))
    )
    trace = loads.trace(requests, seconds=SLOT * TRACE_SLOTS)
    replica = loads.replica(
        StepTime(weights=SLOT, kv_token=0, token=0, sequence=0, fixed=0),
        seqs=rng.randint(1, tokens),
        tokens=tokens,
        kv=rng.choice([8, 12, 100]),
    )
    goal = AttainmentGoal(
        objective=SLOT * rng.randint(1, 2),
        share=rng.choice([0.5, 0.65, 1.0]),
        window=SLOT * rng.choice([1, 2, 4]),
        window_share=rng.choice([0.5, 1.0]),
        ignore_before=rng.choice([0.0, SLOT]),
    )
    capacity = [(SLOT * slot, rng.randint(0, 2)) for slot in range(LAST_SLOT)]
    supply = Supply(
        prices=GpuPrices(
            on_demand=7.0, reserved=rng.choice([2.0, 4.0]), spot=rng.choice([1.0, 3.0])
        ),
        reserved=rng.random() < 0.5,
        spot=SpotMarket(capacity=tuple(capacity), preemptions=(), notice=0.0)
        if rng.random() < 0.5
        else None,
        start_seconds=rng.choice([0.0, 5.0, 20.0]),
    )
    return TinyFleet(trace=trace, replica=replica, goal=goal, supply=supply)


def least_cost(fleet: TinyFleet) -> float:
    """Return the USD of the cheapest schedule; infinite if none serves all and attains the goal."""
    most = MOST_REPLICAS if fleet.supply.reserved else 0
    schedules = _Schedules(fleet)
    return min(map(schedules.least_cost, range(most + 1)))


class _Schedules:
    """All schedules of a fleet."""

    def __init__(self, fleet: TinyFleet) -> None:
        self._fleet, self._reserved = fleet, 0
        self._least = cache(self._least_uncached)
        self._attains = cache(self._attains_uncached)
        self._steps = cache(self._steps_uncached)
        self._node_choices = cache(self._node_choices_uncached)

    def least_cost(self, reserved: int) -> float:
        """Return the USD of the cheapest one with so many reserved nodes."""
        trace = self._fleet.trace
        self._reserved = reserved
        self._least.cache_clear()
        self._node_choices.cache_clear()
        requests = zip(trace.input_tokens, trace.output_tokens, strict=True)
        start = tuple((prompt, output - 1) for prompt, output in requests)
        return self._least(0, start, (False,) * len(trace), (0, 0)) * SLOT / 3600

    def _least_uncached(
        self,
        slot: int,
        state: tuple[_Progress, ...],
        late: tuple[bool, ...],
        nodes: tuple[int, int],
    ) -> float:
        """Return the cost from a slot on, with the (on-demand, spot) nodes of the slot before."""
        reserved = self._reserved * self._fleet.supply.prices.reserved
        if not any(map(any, state)):
            return max(0, TRACE_SLOTS - slot) * reserved if self._attains(late) else math.inf
        best = math.inf
        for (after, missed), replicas in self._steps(slot, state, late).items():
            for chosen, cost in self._node_choices(slot, replicas, nodes):
                if reserved + cost < best:
                    rest = self._least(slot + 1, after, missed, chosen)
                    best = min(best, reserved + cost + rest)
        return best

    def _steps_uncached(
        self, slot: int, state: tuple[_Progress, ...], late: tuple[bool, ...]
    ) -> dict[tuple[tuple[_Progress, ...], tuple[bool, ...]], int]:
        """Return the progress and misses after each choice of what runs, with its replicas.

        What cannot end or attain any more is left out.
        """
        trace, tokens = self._fleet.trace, self._fleet.replica.max_num_batched_tokens
        choices = [
            (0,)
            if arrival > slot * SLOT or not any(progress)
            else range(min(tokens, progress[0]) + 1)
            if progress[0]
            else (1,)
            for arrival, progress in zip(trace.arrivals, state, strict=True)
        ]
        results = {}
        for chunks in product(*choices):
            after, missed, items = list(state), list(late), list[_Item]()
            for number, chunk in enumerate(chunks):
                prompt, decode = state[number]
                length = trace.input_tokens[number]
                end = (slot + 1) * SLOT - trace.arrivals[number]
                if chunk and prompt:
                    after[number] = (prompt - chunk, decode)
                    items.append((chunk, length - prompt + chunk))
                elif chunk:
                    after[number] = (0, decode - 1)
                    items.append((1, length + trace.output_tokens[number] - decode))
                missed[number] |= prompt > 0 and (
                    end > self._fleet.goal.objective
                    or (end == self._fleet.goal.objective and chunk < prompt)
                )
            missing = max(decode + -(-prompt // tokens) for prompt, decode in after)
            if slot + 1 + missing <= LAST_SLOT and self._attains(tuple(missed)):
                key = tuple(after), tuple(missed)
                results[key] = self._replicas_for(items)
        return results

    def _replicas_for(self, items: Sequence[_Item]) -> int:
        """Return the fewest replicas whose steps hold the items."""
        for replicas in range(MOST_REPLICAS + 1):
            for places in product(range(replicas), repeat=len(items)):
                if all(
                    self._fits(
                        [item for item, at in zip(items, places, strict=True) if at == place]
                    )
                    for place in set(places)
                ):
                    return replicas
        raise AssertionError("more items than replicas")

    def _fits(self, items: Sequence[_Item]) -> bool:
        replica = self._fleet.replica
        return (
            len(items) <= replica.max_num_seqs
            and sum(tokens for tokens, _ in items) <= replica.max_num_batched_tokens
            and sum(cached for _, cached in items) <= replica.kv_tokens
        )

    def _node_choices_uncached(
        self, slot: int, replicas: int, before: tuple[int, int]
    ) -> Sequence[tuple[tuple[int, int], float]]:
        """Return the (on-demand, spot) nodes that suffice, with their costs in the slot."""
        supply, choices = self._fleet.supply, []
        prices, market = supply.prices, supply.spot
        most_spot = 0 if market is None else market.available(slot * SLOT)
        least = max(0, replicas - self._reserved)
        # Without a price of starting, no node is there for later.
        most = MOST_REPLICAS if supply.start_seconds else least
        for total in range(least, max(least, most) + 1):
            for spot in range(min(most_spot, total) + 1):
                chosen = (total - spot, spot)
                started = (max(0, chosen[0] - before[0]), max(0, spot - before[1]))
                slots = supply.start_seconds / SLOT if slot else 0.0
                cost = prices.on_demand * (chosen[0] + slots * started[0])
                cost += prices.spot * (spot + slots * started[1])
                choices.append((chosen if supply.start_seconds else (0, 0), cost))
        return choices

    def _attains_uncached(self, late: tuple[bool, ...]) -> bool:
        goal, arrivals = self._fleet.goal, self._fleet.trace.arrivals
        ttfts = (goal.objective * 2 if missed else 0.0 for missed in late)
        return goal.score(zip(arrivals, ttfts, strict=True)).sufficient
