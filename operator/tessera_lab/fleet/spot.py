"""The market for spot nodes: how many can be had, and when they are taken back."""

import csv
import gzip
import json
import random
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

# AWS gives notice of two minutes; Google Cloud and Azure of half a minute.
AWS_NOTICE, SHORT_NOTICE = 120.0, 30.0

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
        capacity = [(at, 0 if _within(at, spans) else self.available(at)) for at in sorted(times)]
        hazards = [
            preemption
            for preemption in self.preemptions
            if self.available(preemption.at) > preemption.first
            and not _within(preemption.at, spans)
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


def combined(zones: Iterable[Capacity]) -> list[tuple[float, int]]:
    """Return the capacity of several zones together."""
    changes: dict[float, int] = {}
    for zone in zones:
        before = 0
        for at, nodes in zone:
            changes[at] = changes.get(at, 0) + nodes - before
            before = nodes
    total, capacity = 0, []
    for at, change in sorted(changes.items()):
        total += change
        capacity.append((at, total))
    return capacity


def from_time(capacity: Capacity, begin: float) -> list[tuple[float, int]]:
    """Return the capacity from `begin` on, which becomes time 0."""
    later = [(at - begin, nodes) for at, nodes in capacity if at > begin]
    before = [nodes for at, nodes in capacity if at <= begin]
    return [(0.0, before[-1] if before else 0), *later]


def read_skypilot(path: str) -> Mapping[str, Capacity]:
    """Return the zones of run-length encoded probes, one JSON object per line.

    A zone is named by its date, its zone and accelerators, and the nodes that were asked for.
    """
    zones: dict[str, Capacity] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            zone = json.loads(line)
            tick, capacity = 0, list[tuple[float, int]]()
            for nodes, ticks in zone["rle"]:
                capacity.append((tick * zone["metadata"]["gap_seconds"], nodes))
                tick += ticks
            zones[f"{zone['collected']}/{zone['zone_type']}/{zone['nodes']}"] = capacity
    return zones


def read_bamboo_group(path: str) -> Capacity:
    """Return the living nodes of a group, of lines with day, time and count."""
    rows = [
        (datetime.fromisoformat(f"{day}T{time}"), int(nodes)) for day, time, nodes in _cells(path)
    ]
    return [((at - rows[0][0]).total_seconds(), nodes) for at, nodes in rows]


def read_bamboo_events(path: str) -> Capacity:
    """Return the living nodes of a group, of lines with milliseconds, add or remove, and node."""
    nodes, capacity = 0, dict[float, int]()
    for milliseconds, event, _ in _cells(path):
        nodes += 1 if event == "add" else -1
        capacity[int(milliseconds) / 1000] = nodes
    return [(0.0, 0), *capacity.items()] if 0.0 not in capacity else list(capacity.items())


def _cells(path: str) -> list[list[str]]:
    text = gzip.decompress(Path(path).read_bytes()).decode()
    return [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]


def _within(at: float, spans: Iterable[tuple[float, float]]) -> bool:
    return any(begin <= at < end for begin, end in spans)
