"""The bill: the cost of the pools' nodes, allocated without remainder.

Every span of time costs price x GPUs x time on every node, ready or not. It is allocated by billing
weight: slices in use to the services of their pods, free slices as idle, and the rest of a GPU that
its slices do not cover as stranded. Integers of a fraction of a nano-unit make the sum exact.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta
from enum import StrEnum
from heapq import nlargest
from itertools import pairwise
from typing import NamedTuple, Self

from tessera.api.accelerator_pool import COUNT_LABEL, AcceleratorPoolSpec
from tessera.api.node_layout import MAX_GPUS
from tessera.api.text import parse_decimal
from tessera.domain.batch.names import billing_ref
from tessera.domain.hardware import pools
from tessera.domain.hardware.device import GPU
from tessera.domain.hardware.gpu_catalog import COMPUTE_SLICES, MEMORY_SLICES
from tessera.domain.money import money, price_on
from tessera.domain.observed.snapshot import Node, Pod, Ref, Snapshot
from tessera.domain.scaling.load import MAX_READING_AGE, usable_readings
from tessera.domain.steps import Step

# The profile of a GPU that is not partitioned.
WHOLE = "whole"

# Services of one namespace with lines of their own.
MAX_SERVICES = 500
# A line without a charge for so long ends; Prometheus has scraped it long before.
LINE_LIFETIME = timedelta(days=1)
_NO_OWNER = Ref("", "")
_MICROSECOND = timedelta(microseconds=1)
# The billing weight of a GPU as an integer, for which that of every slice is an integer too.
_GPU_WEIGHT = 2 * COMPUTE_SLICES * MEMORY_SLICES
# Price per hour in nano-units x weight x microseconds counts parts: so many are a nano-unit.
_PARTS_PER_NANO = _GPU_WEIGHT * (timedelta(hours=1) // _MICROSECOND)


class CostState(StrEnum):
    """The use that a cost is for; the page on the bill prints the text below each."""

    allocated: bool
    """Whether a namespace pays it rather than the pool."""

    def __new__(cls, word: str, allocated: bool = False) -> Self:
        member = str.__new__(cls, word)
        member._value_ = word
        member.allocated = allocated
        return member

    SERVING = "serving", True
    """Replicas that work on requests."""
    WARM_IDLE = "warmIdle", True
    """Loaded replicas without a request, and those without metrics."""
    LOADING = "loading", True
    """Replicas that occupy hardware while their model loads."""
    UNMANAGED = "unmanaged", True
    """GPUs and slices of pods that Tessera did not create."""
    COLD_IDLE = "coldIdle"
    """Allocatable slices and GPUs that no replica occupies."""
    STRANDED = "stranded"
    """Cost of GPUs beyond their allocatable slices."""


class CostLine(NamedTuple):
    """One line of the bill; namespace and service are empty for idle and stranded cost.

    The service is empty for unmanaged pods too. A tuple, since each charge hashes and compares
    thousands of them.
    """

    currency: str
    pool: str
    profile: str
    """A MIG profile, `whole`, or empty where the cost is stranded."""
    state: CostState
    namespace: str = ""
    service: str = ""


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
    busy_pods, pods_by_node = busy_since(snapshot), _pods_by_node(snapshot)
    views_by_node = pools.pools_by_node(views)
    parts: Counter[CostLine] = Counter()
    for node in snapshot.nodes:
        view = views_by_node.get(node.name)
        if view is not None and view.pool.spec is not None:
            node_pods = pods_by_node.get(node.name, ())
            node_charges = _NodeCharges(
                pool=view.pool.name,
                product=view.product or "",
                spec=view.pool.spec,
                node=node,
                pods=node_pods,
                busy_since=busy_pods,
            )
            for line, charged in charges_of(node_charges, begin, end):
                parts[line] += charged
    current = _without_ended(bill, begin - LINE_LIFETIME, parts)
    return _credit(replace(current, since=bill.since or begin), parts, end)


def _pods_by_node(snapshot: Snapshot) -> Mapping[str, Sequence[Pod]]:
    """Return the bound pods of each node, those bound first in front."""
    # On an overcommitted node the first pod gets the device. A pod that ends later than now ended
    # by a clock ahead of this one, and is not charged on until then.
    pods_by_node: dict[str, list[Pod]] = defaultdict(list)
    for pod in sorted(snapshot.pods, key=lambda pod: (pod.bound or pod.created, pod.ref)):
        ends_later = pod.ended is not None and pod.ended > snapshot.at
        if pod.node is not None and pod.bound is not None and not ends_later:
            pods_by_node[pod.node].append(pod)
    return pods_by_node


def busy_since(snapshot: Snapshot) -> Mapping[Ref, datetime]:
    """Return the time since when replicas have been processing requests, as far as is known."""
    readings = snapshot.readings
    if readings is None:
        return {}
    # A reading says nothing about the time before its own window.
    since = readings.at - MAX_READING_AGE
    usable = usable_readings(readings, snapshot.at)
    return {ref: since for ref, reading in usable.items() if reading.running}


@dataclass(frozen=True, slots=True, kw_only=True)
class _NodeCharges:
    """One node with its pods, for charging."""

    pool: str
    product: str
    spec: AcceleratorPoolSpec
    node: Node
    pods: Sequence[Pod]
    busy_since: Mapping[Ref, datetime]

    def charges(self, begin: datetime, end: datetime) -> Iterator[tuple[CostLine, int]]:
        """Yield each line's parts of a nano-unit; days before the first price have none."""
        for first, last in pairwise(self._change_times(begin, end)):
            price = price_on(self.spec.prices, first.astimezone(UTC).date())
            if price is not None:
                hourly = money(price.per_gpu_hour, price.currency)
                cost = hourly.nanos * ((last - first) // _MICROSECOND)
                for line, weight in self._weighted_lines(first, hourly.currency):
                    if weight:
                        yield line, cost * weight

    def _change_times(self, begin: datetime, end: datetime) -> list[datetime]:
        """Return the moments between which neither prices nor the use of devices change."""
        changes = {datetime.combine(price.from_, time(), UTC) for price in self.spec.prices}
        for pod in self.pods:
            moments = (pod.bound, pod.ready_since, pod.ended, self.busy_since.get(pod.ref))
            changes.update(moment for moment in moments if moment is not None)
        return [begin, *sorted(moment for moment in changes if begin < moment < end), end]

    def _weighted_lines(self, at: datetime, currency: str) -> Iterator[tuple[CostLine, int]]:
        """Yield how the weight of all GPUs of the node is split at a moment; the sum is exact."""

        def line(profile: str, state: CostState, owner: Ref = _NO_OWNER) -> CostLine:
            return CostLine(
                currency=currency,
                pool=self.pool,
                profile=profile,
                namespace=owner.namespace,
                service=owner.name,
                state=state,
            )

        remaining = self._gpu_count() * _GPU_WEIGHT
        free = Counter(self.node.allocatable)
        for pod in self.pods:
            payer = pod.service if pod.batch_run is None else billing_ref(pod.batch_run.batch)
            if (pod.bound or at) <= at and (pod.ended is None or at < pod.ended):
                for resource, count in sorted(pod.devices.items()):
                    weight = min(remaining, self._weight(resource) * count)
                    remaining, free[resource] = remaining - weight, free[resource] - count
                    yield line(self._profile(resource), self._state(pod, at), payer), weight
        for resource, count in sorted(free.items()):
            weight = min(remaining, self._weight(resource) * max(0, count))
            remaining -= weight
            yield line(self._profile(resource), CostState.COLD_IDLE), weight
        yield line("", CostState.STRANDED), remaining

    def _state(self, pod: Pod, at: datetime) -> CostState:
        if pod.unmanaged:
            return CostState.UNMANAGED
        loaded = pod.containers_ready if pod.ready_since is None else pod.ready_since <= at
        if not loaded:
            return CostState.LOADING
        if pod.batch_run is not None:
            return CostState.SERVING
        since = self.busy_since.get(pod.ref)
        return CostState.WARM_IDLE if since is None or at < since else CostState.SERVING

    def _gpu_count(self) -> int:
        """Return the number of GPUs of the node by its label, else by its allocatable devices."""
        labeled = parse_decimal(self.node.labels.get(COUNT_LABEL, ""), MAX_GPUS)
        if labeled is not None:
            return labeled
        # Without the label: the fewest GPUs that could have these devices.
        allocatable = sum(
            self._weight(resource) * count for resource, count in self.node.allocatable.items()
        )
        return min(MAX_GPUS, -(-allocatable // _GPU_WEIGHT))

    def _weight(self, resource: str) -> int:
        return round(pools.weight_of(self.product, resource) * _GPU_WEIGHT)

    def _profile(self, resource: str) -> str:
        return WHOLE if resource == GPU else pools.profile_of(self.product, resource)


def _charges(
    node_charges: _NodeCharges, begin: datetime, end: datetime
) -> list[tuple[CostLine, int]]:
    return list(node_charges.charges(begin, end))


def _idle_charges(
    node_charges: _NodeCharges, begin: datetime, end: datetime
) -> list[tuple[CostLine, int]]:
    return _charges(replace(node_charges, pods=()), begin, end)


# A node whose pods cannot be charged costs as idle, and one that cannot be charged nothing.
_charges_without_pods = Step(_idle_charges, lambda *_: [])
charges_of = Step(_charges, lambda _, *arguments: _charges_without_pods(*arguments))


def _credit(bill: Bill, parts: Mapping[CostLine, int], at: datetime) -> Bill:
    """Return the bill with parts added and, pool by pool, whole nano-units moved into its lines."""
    lines, remainders = dict(bill.lines), Counter(bill.remainders)
    bounded = _bounded(bill, parts)
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


def _bounded(bill: Bill, parts: Mapping[CostLine, int]) -> Mapping[CostLine, int]:
    """Return the parts with at most MAX_SERVICES services of a namespace; others have no name."""
    # A line stays as long as the process, so names that change for ever may not make new ones.
    services: dict[str, set[str]] = defaultdict(set)
    for line in bill.lines:
        services[line.namespace].add(line.service)
    bounded: Counter[CostLine] = Counter()
    for line, charged in sorted(parts.items()):
        known = services[line.namespace]
        if line.service in known or len(known) < MAX_SERVICES:
            known.add(line.service)
            bounded[line] += charged
        else:
            bounded[line._replace(service="")] += charged
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
