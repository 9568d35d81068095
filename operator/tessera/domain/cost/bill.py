"""The bill: the cost of the pools' nodes, allocated without remainder.

Every span of time costs price x GPUs x time on every node, ready or not. It is allocated by billing
weight: slices in use to the services of their pods, free slices as idle, and the rest of a GPU that
its slices do not cover as stranded. Integers of a fraction of a nano-unit make the sum exact.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta
from heapq import nlargest
from typing import Any

from tessera.domain.cost.device_use import (
    GPU_WEIGHT,
    MICROSECOND,
    CostLine,
    CostState,
    busy_since,
    node_use,
    pods_by_node,
)
from tessera.domain.hardware import pools
from tessera.domain.money import money, price_on
from tessera.domain.observed.snapshot import Node, Pod, Ref, Snapshot
from tessera.domain.steps import Step

# Services of one namespace with lines of their own.
MAX_SERVICES = 500
# A line without a charge for so long ends; Prometheus has scraped it long before.
LINE_LIFETIME = timedelta(days=1)
# Price per hour in nano-units x weight x microseconds counts parts: so many are a nano-unit.
_PARTS_PER_NANO = GPU_WEIGHT * (timedelta(hours=1) // MICROSECOND)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """The cost that one process has charged since its start.

    The lines of a pool sum exactly to the cost of its nodes, rounded down to a nano-unit once in
    total. No line ever shrinks, and each differs from its exact value by fewer nano-units than its
    pool has lines, after any number of cycles. A line ends a day after its last charge.
    """

    as_of: datetime | None = None
    """End of the charged time; a preset value is where the first cycle starts to charge."""
    since: datetime | None = None
    """Start of the charged time."""
    lines: Mapping[CostLine, int] = field(default_factory=dict)
    """Nano-units by line."""
    remainders: Mapping[CostLine, int] = field(default_factory=dict)
    """Parts of a nano-unit that are due to a line; negative where it was rounded up."""
    charged_at: Mapping[CostLine, datetime] = field(default_factory=dict)
    """When a line was charged last."""


def accrue(bill: Bill, snapshot: Snapshot, views: Sequence[pools.PoolView]) -> Bill:
    """Return the bill with the time since the last cycle charged.

    The present state counts for the whole time, except where pods say when they were bound, became
    ready or ended. A pod or node that vanished in between is not charged after the last cycle.
    """
    begin, end = bill.as_of, snapshot.at
    if begin is None:
        return replace(bill, as_of=end, since=end)
    # A clock that was set back charges nothing until it has caught up.
    if end <= begin:
        return bill
    busy, bound_pods = busy_since(snapshot), pods_by_node(snapshot)
    views_by_node = pools.pools_by_node(views)
    parts: Counter[CostLine] = Counter()
    for node in snapshot.nodes:
        view = views_by_node.get(node.name)
        if view is not None and view.pool.spec is not None:
            node_pods = bound_pods.get(node.name, ())
            for line, charged in charges_of(node, view, node_pods, busy, begin, end):
                parts[line] += charged
    current = _without_ended(bill, begin - LINE_LIFETIME, parts)
    return _credit(replace(current, since=bill.since or begin), parts, end)


def _charges(
    node: Node,
    view: pools.PoolView,
    node_pods: Sequence[Pod],
    busy: Mapping[Ref, datetime],
    begin: datetime,
    end: datetime,
) -> list[tuple[CostLine, int]]:
    """Return each line's parts of a nano-unit; days before the first price have none."""
    prices = view.pool.spec.prices if view.pool.spec is not None else ()
    days = [datetime.combine(price.from_, time(), UTC) for price in prices]
    charges: list[tuple[CostLine, int]] = []
    for first, microseconds, lines in node_use(node, view, node_pods, busy).spans(begin, end, days):
        price = price_on(prices, first.astimezone(UTC).date())
        if price is not None:
            cost = money(price.per_gpu_hour, price.currency).nanos * microseconds
            charges += ((line, cost * weight) for line, weight in lines)
    return charges


def _idle_charges(
    node: Node, view: pools.PoolView, _pods: Sequence[Pod], *when: Any
) -> list[tuple[CostLine, int]]:
    return _charges(node, view, (), *when)


# A node whose pods cannot be charged costs as idle, and one that cannot be charged nothing.
_charges_without_pods = Step(_idle_charges, lambda *_: [])
charges_of = Step(_charges, lambda _, *arguments: _charges_without_pods(*arguments))


def _credit(bill: Bill, parts: Mapping[CostLine, int], at: datetime) -> Bill:
    """Return the bill with parts added and, pool by pool, whole nano-units moved into its lines."""
    lines, remainders = dict(bill.lines), Counter(bill.remainders)
    names, bounded = within_bounds(bill.lines, parts), Counter[CostLine]()
    for line, charged in parts.items():
        bounded[names[line]] += charged
    remainders.update(bounded)
    parts_by_pool: dict[tuple[str, str], dict[CostLine, int]] = defaultdict(dict)
    for line, due in remainders.items():
        parts_by_pool[line.currency, line.pool][line] = due
    charged_at = {**bill.charged_at, **dict.fromkeys(bounded, at)}
    for due_parts in parts_by_pool.values():
        for line, nanos in _whole_nanos(due_parts).items():
            if nanos or line in charged_at:
                lines[line] = lines.get(line, 0) + nanos
                remainders[line] -= nanos * _PARTS_PER_NANO
                charged_at.setdefault(line, at)
    return replace(
        bill,
        as_of=at,
        lines=lines,
        remainders=dict(remainders),
        charged_at=charged_at,
    )


def _stranded(line: CostLine) -> CostLine:
    """Return the line of the stranded cost of the same pool."""
    return CostLine(currency=line.currency, pool=line.pool, profile="", state=CostState.STRANDED)


def _without_ended(bill: Bill, oldest: datetime, charged: Collection[CostLine]) -> Bill:
    """Return the bill without lines whose last charge is not after a moment, nor is now."""
    stale = {line for line, at in bill.charged_at.items() if at <= oldest and line not in charged}
    if not stale:
        return bill
    remaining = {_stranded(line) for line in (*bill.lines, *charged) if line not in stale}
    # The stranded cost of a pool ends with its last line: it takes what the others leave.
    ended = {line for line in stale if line not in remaining}
    if not ended:
        return bill
    remainders = {line: due for line, due in bill.remainders.items() if line not in ended}
    for line in ended:
        # What its rounding owes to the pool, or is owed, goes on with the stranded cost.
        heir = _stranded(line)
        remainders[heir] = remainders.get(heir, 0) + bill.remainders.get(line, 0)
    return replace(
        bill,
        lines={line: nanos for line, nanos in bill.lines.items() if line not in ended},
        remainders=remainders,
        charged_at={line: at for line, at in bill.charged_at.items() if line not in ended},
    )


def within_bounds(
    lines: Iterable[CostLine], charged: Iterable[CostLine]
) -> Mapping[CostLine, CostLine]:
    """Return as which line each is charged: beyond MAX_SERVICES of a namespace, without a name."""
    # A line stays as long as the process, so names that change for ever may not make new ones.
    services: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        services[line.namespace].add(line.service)
    bounded = {}
    for line in sorted(charged):
        known = services[line.namespace]
        if line.service in known or len(known) < MAX_SERVICES:
            known.add(line.service)
            bounded[line] = line
        else:
            bounded[line] = line._replace(service="")
    return bounded


def _whole_nanos(due_parts: Mapping[CostLine, int]) -> Mapping[CostLine, int]:
    """Return the nano-units for the lines of a pool, which sum to all that are due.

    Each line gets about what it is due, by largest remainder, and never less than 0. So a line may
    stay ahead by less than one nano-unit, and others lack less than one for each such line.
    """
    whole = {line: max(0, due // _PARTS_PER_NANO) for line, due in due_parts.items()}
    remaining = sum(due_parts.values()) // _PARTS_PER_NANO - sum(whole.values())

    def shortfall(line: CostLine) -> tuple[int, CostLine]:
        return due_parts[line] - whole[line] * _PARTS_PER_NANO, line

    for line in nlargest(remaining, due_parts, key=shortfall):
        whole[line] += 1
    while remaining < 0:
        whole[min((line for line in due_parts if whole[line]), key=shortfall)] -= 1
        remaining += 1
    return whole
