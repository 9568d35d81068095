"""The cheapest replicas of one service when every instance type has a price.

This is a small covering problem with few instance types, solved by depth-first branch and bound.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

from tessera.domain.mig.demand import DEMAND_TOLERANCE, InstanceType, ServiceDemand, replicas_needed

# Instance types by name with their counts; together they serve the service.
ReplicaPattern: TypeAlias = tuple[tuple[InstanceType, int], ...]

# Parts of a unit of demand; throughputs with more digits have no common measure.
_DEMAND_SCALE = 1_000_000
# Search nodes; when they are used up, the fractional bound of the root still holds.
_MAX_NODES = 4000


@dataclass(frozen=True, slots=True)
class PricedPattern:
    """The cheapest pattern of a search, and the lower bound of all patterns."""

    bound: float
    cost: float
    pattern: ReplicaPattern


def cheapest_pattern(service: ServiceDemand, prices: Mapping[InstanceType, float]) -> PricedPattern:
    """Return the cheapest pattern at these prices of single slices.

    The service fits on at least one of the instance types.
    """
    if service.max_types is not None:
        options = (
            (sum(prices[instance_type] * count for instance_type, count in pattern), pattern)
            for pattern in all_patterns(service)
        )
        cost, pattern = min(options)
        return PricedPattern(cost, cost, pattern)
    search = _PatternSearch(service, prices)
    search.descend(0, search.demand, service.required_replicas, 0.0)
    bound = search.cost if search.nodes < _MAX_NODES else min(search.cost, search.root_bound)
    return PricedPattern(bound, search.cost, search.pattern)


def all_patterns(service: ServiceDemand) -> list[ReplicaPattern]:
    """Return all patterns of a service whose instance types are limited in number.

    The first ones have an instance type each, which serves the service alone.
    """
    speeds = [row for row in sorted(service.throughput.items()) if row[1] > 0]
    patterns: list[ReplicaPattern] = [
        ((instance_type, replicas_needed(service, speed)),) for instance_type, speed in speeds
    ]
    if service.max_types != 1:
        kept_types = service.throughput.keys() & service.kept_types
        for first, second in combinations(speeds, 2):
            if kept_types <= {first[0], second[0]}:
                patterns.extend(_pair_patterns(service, first, second))
    return patterns


def _pair_patterns(
    service: ServiceDemand, first: tuple[InstanceType, float], second: tuple[InstanceType, float]
) -> Iterator[ReplicaPattern]:
    """Yield the patterns of two instance types in which no replica is needless."""
    fewest = math.inf
    demand = service.demand * (1 - DEMAND_TOLERANCE)
    for count in range(1, replicas_needed(service, first[1])):
        missing = math.ceil((demand - count * first[1]) / second[1])
        others = max(missing, service.required_replicas - count)
        if 0 < others < fewest:
            fewest = others
            yield (first[0], count), (second[0], others)


class _PatternSearch:
    """A search over instance types by price per unit of throughput, with its best pattern."""

    def __init__(self, service: ServiceDemand, prices: Mapping[InstanceType, float]) -> None:
        self.type_rows = sorted(
            (
                (prices[instance_type], speed, instance_type)
                for instance_type, speed in service.throughput.items()
                if speed > 0
            ),
            key=lambda row: (row[0] / row[1], row[2]),
        )
        self.min_price_from = [
            min(price for price, _, _ in self.type_rows[index:])
            for index in range(len(self.type_rows))
        ] + [math.inf]
        self.counts = [0] * len(self.type_rows)
        self.cost, self.nodes = math.inf, 0
        self.pattern: ReplicaPattern = ()
        self.demand = _round_up_demand(service.demand, [speed for _, speed, _ in self.type_rows])
        price, speed, _ = self.type_rows[0]
        self.root_bound = max(
            self.demand * price / speed, service.required_replicas * self.min_price_from[0]
        )

    def descend(self, index: int, demand: float, replicas: int, cost: float) -> None:
        """Try all counts of one instance type, the largest first, for the remaining demand."""
        self.nodes += 1
        if demand <= 0 and replicas <= 0:
            if cost < self.cost:
                self.cost = cost
                chosen = zip(self.type_rows, self.counts, strict=True)
                self.pattern = tuple(sorted((row[2], count) for row, count in chosen if count))
            return
        if index == len(self.type_rows):
            return
        price, speed, _ = self.type_rows[index]
        for count in range(max(math.ceil(demand / speed), replicas, 0), -1, -1):
            remaining, missing, total_cost = (
                demand - count * speed,
                replicas - count,
                cost + count * price,
            )
            self.counts[index] = count
            if self._exceeds_best(index + 1, remaining, total_cost):
                break  # Fewer of this type mean more of types with a worse price.
            if (
                total_cost + (missing * self.min_price_from[index + 1] if missing > 0 else 0)
                < self.cost
            ):
                self.descend(index + 1, remaining, missing, total_cost)
            if self.nodes >= _MAX_NODES:
                break
        self.counts[index] = 0

    def _exceeds_best(self, index: int, demand: float, cost: float) -> bool:
        """Return whether the remaining demand costs more than the best pattern allows."""
        if demand <= 0:
            return False
        if index == len(self.type_rows):
            return True
        price, speed, _ = self.type_rows[index]
        return cost + demand * price / speed >= self.cost * (1 - DEMAND_TOLERANCE)


def _round_up_demand(demand: float, speeds: Sequence[float]) -> float:
    """Return the demand rounded up to the next sum of these speeds, if they have a common measure.

    Where speed is proportional to the slice's size, this makes the fractional bound exact.
    """
    parts = [round(speed * _DEMAND_SCALE) for speed in speeds]
    pairs = zip(parts, speeds, strict=True)
    if any(abs(part - speed * _DEMAND_SCALE) > DEMAND_TOLERANCE * part for part, speed in pairs):
        return demand * (1 - DEMAND_TOLERANCE)
    measure = math.gcd(*parts)
    sums = math.ceil(demand * (1 - DEMAND_TOLERANCE) * _DEMAND_SCALE / measure)
    return sums * measure / _DEMAND_SCALE * (1 - DEMAND_TOLERANCE)
