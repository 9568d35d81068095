"""The instances of one service that cost least when every kind of slice has a price.

A small covering problem with few kinds, searched depth first with the fractional bound.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tessera.domain.mig.demand import NEARLY, Kind, Service, needed

Pattern: TypeAlias = tuple[tuple[Kind, int], ...]
"""Kinds with their counts, by name; together they serve the service."""

_PARTS = 1_000_000
"""Of the unit of demand: speeds with more digits have no common measure."""
_NODES = 4000
"""More are not searched; the bound holds all the same."""


@dataclass(frozen=True, slots=True)
class Priced:
    """The cheapest pattern found, and what none can be below."""

    bound: float
    cost: float
    pattern: Pattern


def cheapest(service: Service, prices: Mapping[Kind, float]) -> Priced:
    """The service has a kind that can hold it; prices are of single instances."""
    if service.alike:
        options = ((_price(pattern, prices), pattern) for pattern in single(service))
        cost, pattern = min(options)
        return Priced(cost, cost, pattern)
    search = _Search(service, prices)
    search.descend(0, search.demand, service.instances, 0.0)
    pattern = tuple(sorted((kind, count) for kind, count in search.best.items() if count))
    bound = search.cost if search.nodes < _NODES else min(search.cost, search.root)
    return Priced(bound, search.cost, pattern)


def single(service: Service) -> list[Pattern]:
    """For every kind, as many instances of it as serve the service alone."""
    speeds = sorted(service.throughput.items())
    return [((kind, needed(service, speed)),) for kind, speed in speeds if speed > 0]


def _price(pattern: Pattern, prices: Mapping[Kind, float]) -> float:
    return sum(prices[kind] * count for kind, count in pattern)


class _Search:
    """Kinds by price of a unit of throughput; the best so far."""

    def __init__(self, service: Service, prices: Mapping[Kind, float]) -> None:
        usable = (kind for kind, speed in service.throughput.items() if speed > 0)
        rows = sorted((prices[kind] / service.throughput[kind], kind) for kind in usable)
        self.kinds = [(prices[kind], service.throughput[kind], kind) for _, kind in rows]
        self.least = [
            min(price for price, _, _ in self.kinds[at:]) for at in range(len(self.kinds))
        ] + [math.inf]
        self.counts = [0] * len(self.kinds)
        self.cost, self.best, self.nodes = math.inf, dict[Kind, int](), 0
        self.demand = _whole(service.demand, [speed for _, speed, _ in self.kinds])
        price, speed, _ = self.kinds[0]
        self.root = max(self.demand * price / speed, service.instances * self.least[0])

    def descend(self, at: int, demand: float, instances: int, cost: float) -> None:
        """Try all counts of one kind, many first, for what is left to serve."""
        self.nodes += 1
        if demand <= 0 and instances <= 0:
            if cost < self.cost:
                self.cost = cost
                self.best = {
                    kind: count for (_, _, kind), count in zip(self.kinds, self.counts, strict=True)
                }
            return
        if at == len(self.kinds):
            return
        price, speed, _ = self.kinds[at]
        for count in range(max(math.ceil(demand / speed), instances, 0), -1, -1):
            left, due, spent = demand - count * speed, instances - count, cost + count * price
            self.counts[at] = count
            if self._dear(at + 1, left, spent):
                break  # fewer of this kind mean more of dearer ones
            if spent + (due * self.least[at + 1] if due > 0 else 0) < self.cost:
                self.descend(at + 1, left, due, spent)
            if self.nodes >= _NODES:
                break
        self.counts[at] = 0

    def _dear(self, at: int, demand: float, cost: float) -> bool:
        """Whether the demand that is left brings it above the best so far."""
        if demand <= 0:
            return False
        if at == len(self.kinds):
            return True
        price, speed, _ = self.kinds[at]
        return cost + demand * price / speed >= self.cost * (1 - NEARLY)


def _whole(demand: float, speeds: Sequence[float]) -> float:
    """Demand up to the next sum that these speeds can have, if they have a common measure.

    Where speed is in proportion to the slice, this makes the fractional bound the true one.
    """
    parts = [round(speed * _PARTS) for speed in speeds]
    pairs = zip(parts, speeds, strict=True)
    if any(abs(part - speed * _PARTS) > NEARLY * part for part, speed in pairs):
        return demand * (1 - NEARLY)
    measure = math.gcd(*parts)
    sums = math.ceil(demand * (1 - NEARLY) * _PARTS / measure)
    return sums * measure / _PARTS * (1 - NEARLY)
