"""What came of a simulated run."""

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tessera_lab.fleet.model import Purchase, Tier
from tessera_lab.fleet.prices import GpuPrices

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Lifetime:
    """One replica, or a node that is held for none: seconds for which it is paid."""

    tier: Tier
    begin: float
    end: float
    ready_at: float = math.inf
    """When it served, if it did before its end."""
    activity: tuple[tuple[float, float], ...] = ()
    """Moments with the seconds in which its engine had stepped until then, once a minute and at its
    end; empty of a node without a replica."""
    size: int = 1
    """Its GPUs, in those of a replica of the fleet's own hardware."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CourseSample:
    """The fleet at one moment."""

    at: float
    arrived: int
    """Requests since the start."""
    in_flight: int
    desired: int
    ready: int
    nodes: int
    """Replicas that are paid: they start, serve or drain."""


@dataclass(slots=True, kw_only=True)
class Course:
    """The outcome of a run up to `seconds`."""

    seconds: float = 0.0
    """Time that was simulated."""
    paid_seconds: float = 0.0
    """End of the last request, or of the trace if that is later: until then nodes are paid."""
    ttft: "array[float]" = field(default_factory=lambda: array("d"))
    """Seconds until the first token of each request of the trace; infinite where none came."""
    lifetimes: list[Lifetime] = field(default_factory=list)
    samples: list[CourseSample] = field(default_factory=list)
    changes: int = 0
    """Decisions for another number than before."""
    broken_streams: int = 0
    """Requests that a removed or preempted replica did not finish."""
    lost_streams: int = 0
    """Requests on nodes that died."""
    longest_wait: float = 0.0
    """Seconds for which a replica waited for a node while another pool had one for it."""
    refused: int = 0
    """Requests that no engine can hold."""
    prompt_tokens: int = 0
    """Of requests that an engine began."""
    cached_tokens: int = 0
    """Those of them that its prefix cache had."""
    output_tokens: int = 0
    """That engines gave out."""
    promised_tokens: int = 0
    """Those that the router's record of prefixes promised."""
    requests: Counter[int] = field(default_factory=Counter[int])
    """Those that each replica got, by its number."""
    interrupted: bool = False

    @property
    def replica_seconds(self) -> float:
        return sum(lifetime.end - lifetime.begin for lifetime in self.lifetimes)


def cost(course: Course, prices: GpuPrices, purchase: Purchase, gpus: int = 1) -> float:
    """Return the USD of a run: nodes from boot to gone, and reserved ones for all of the time."""
    seconds = {tier: 0.0 for tier in Tier}
    for lifetime in course.lifetimes:
        seconds[lifetime.tier] += (lifetime.end - lifetime.begin) * lifetime.size
    seconds[Tier.RESERVED] = purchase.reserved * course.paid_seconds
    return (
        gpus
        * (
            seconds[Tier.RESERVED] * prices.reserved
            + seconds[Tier.ON_DEMAND] * prices.on_demand
            + seconds[Tier.SPOT] * prices.spot
        )
        / HOUR
    )


def node_counts(lifetimes: Sequence[Lifetime]) -> list[tuple[float, float, int]]:
    """Return how many nodes are paid, as spans (begin, end, nodes); larger ones count as many."""
    events: list[tuple[float, int]] = []
    for lifetime in lifetimes:
        events += [(lifetime.begin, lifetime.size), (lifetime.end, -lifetime.size)]
    spans, nodes, last = list[tuple[float, float, int]](), 0, -math.inf
    for at, change in sorted(events):
        if at > last and nodes:
            spans.append((last, at, nodes))
        last, nodes = at, nodes + change
    return spans


def best_reservation(course: Course, prices: GpuPrices, gpus: int = 1) -> tuple[int, float]:
    """Return the reserved nodes at which a run that has none is cheapest, and its USD.

    That needs no other run where all tiers start alike: a node is a node.
    """
    counts = node_counts(course.lifetimes)
    best = (0, cost(course, prices, Purchase(), gpus))
    for reserved in range(1, max((nodes for *_, nodes in counts), default=0) + 1):
        burst = sum((end - begin) * max(0, nodes - reserved) for begin, end, nodes in counts)
        usd = reserved * course.paid_seconds * prices.reserved + burst * prices.on_demand
        best = min(best, (reserved, gpus * usd / HOUR), key=lambda choice: choice[1])
    return best
