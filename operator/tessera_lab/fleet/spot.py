"""The market for spot nodes: how many can be had, and when they are taken back."""

import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tessera_lab.fleet.disturbance import within

# AWS gives notice of two minutes; Google Cloud and Azure of half a minute.
AWS_NOTICE = 120.0

# The nodes that can be had from a time on, in seconds.
Capacity = Sequence[tuple[float, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preemption:
    """Nodes that the market takes back at once.

    The nodes of a holder are numbered from 0 on without a gap, so that one who holds fewer of them
    loses fewer.
    """

    at: float
    """Seconds since the start; the notice comes before."""
    first: int
    """The lowest number that is taken."""
    nodes: int

    def lost(self, nodes_held: int) -> int:
        """Return how many of the nodes are taken."""
        return max(0, min(nodes_held, self.first + self.nodes) - self.first)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotMarket:
    """A market whose supply is known from the start to the end of a run."""

    capacity: tuple[tuple[float, int], ...]
    """Nodes that can be had from each time on, in seconds since the start, the first at 0."""
    preemptions: tuple[Preemption, ...]
    """In the order of time."""
    notice: float = AWS_NOTICE
    """Time from the notice to the end of a node, seconds."""

    def available(self, at: float) -> int:
        """Return how many nodes a single holder can have in all at this time."""
        return self.capacity[bisect_right(self.capacity, at, key=lambda change: change[0]) - 1][1]

    def without(self, blackouts: Iterable[tuple[float, float]]) -> "SpotMarket":
        """Return the market without any node from the begin to the end of each blackout."""
        spans = sorted(blackouts)
        times = {at for at, _ in self.capacity} | {at for span in spans for at in span}
        capacity = [(at, 0 if within(at, spans) else self.available(at)) for at in sorted(times)]
        hazards = [
            preemption
            for preemption in self.preemptions
            if self.available(preemption.at) > preemption.first and not within(preemption.at, spans)
        ]
        return spot_market(capacity, notice=self.notice, preemptions=hazards)


def spot_market(
    capacity: Capacity, *, notice: float = AWS_NOTICE, preemptions: Iterable[Preemption] = ()
) -> SpotMarket:
    """Return a market that takes nodes back where its capacity falls.

    `preemptions` are taken back without a lasting fall.
    """
    changes = [capacity[0]]
    falls = list(preemptions)
    for at, nodes in capacity[1:]:
        before = changes[-1][1]
        if nodes < before:
            falls.append(Preemption(at=at, first=nodes, nodes=before - nodes))
        if nodes != before:
            changes.append((at, nodes))
    falls.sort(key=lambda fall: (fall.at, fall.first))
    return SpotMarket(capacity=tuple(changes), preemptions=tuple(falls), notice=notice)


def hazard_market(
    nodes: int, per_hour: float, seconds: float, seed: int, *, notice: float = AWS_NOTICE
) -> SpotMarket:
    """Return a market that always has `nodes`, each of which is lost at a rate per hour."""
    rng = random.Random(seed)  # noqa: S311 - not a secret
    losses = []
    at = 0.0
    while per_hour > 0 and (at := at + rng.expovariate(nodes * per_hour / 3600)) < seconds:
        losses.append(Preemption(at=at, first=rng.randrange(nodes), nodes=1))
    return spot_market([(0.0, nodes)], notice=notice, preemptions=losses)
