"""The bill: what the nodes of the pools cost, split without remainder over what held them.

Every span of time costs price x GPUs x time on every node, ready or not. It is split by billing
weight: slices that pods hold go to their services, free ones are idle, and what a GPU's slices do
not cover is stranded. All of it is counted in whole parts of a nano-unit, so nothing is lost.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta
from enum import StrEnum
from heapq import nlargest
from itertools import pairwise
from typing import Self

from tessera.api.accelerator_pool import AcceleratorPoolSpec
from tessera.domain.batch.names import billing_ref
from tessera.domain.hardware.gpu_catalog import COMPUTE_SLICES, MEMORY_SLICES
from tessera.domain.hardware.pools import (
    COUNT_LABEL,
    GPU,
    PRODUCT_LABEL,
    PoolView,
    profile_of,
    weight_of,
)
from tessera.domain.money import money, price_on
from tessera.domain.observed.snapshot import Node, Pod, Ref, Snapshot
from tessera.domain.scaling.load import MAX_READING_AGE

# The profile of a GPU that is not cut.
WHOLE = "whole"

_NO_OWNER = Ref("", "")
_MICROSECOND = timedelta(microseconds=1)
# The weight of a GPU here; that of every slice is then a whole number.
_GPU_WEIGHT = 2 * COMPUTE_SLICES * MEMORY_SLICES
# Parts of a nano-unit: price per hour in nano-units x weight x microseconds is a count of them.
_PARTS_PER_NANO = _GPU_WEIGHT * (timedelta(hours=1) // _MICROSECOND)


class CostState(StrEnum):
    """What the money was spent on; with the meaning that the page on the bill prints."""

    meaning: str
    allocated: bool
    """A service pays it, not the pool."""

    def __new__(cls, word: str, meaning: str, allocated: bool = False) -> Self:
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning = meaning
        member.allocated = allocated
        return member

    SERVING = "serving", "Replicas that work on requests.", True
    WARM_IDLE = (
        "warmIdle",
        "Loaded replicas without a request, and those that cannot be read.",
        True,
    )
    LOADING = "loading", "Replicas that hold hardware and whose model is not loaded.", True
    COLD_IDLE = "coldIdle", "Slices and GPUs that are offered and that no replica holds."
    STRANDED = "stranded", "What GPUs cost beyond the slices and GPUs that they offer."


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class CostLine:
    """One line of the bill; namespace and service are empty where nobody held the hardware."""

    currency: str
    pool: str
    profile: str
    """A MIG profile, `whole`, or empty where the cost is stranded."""
    namespace: str = ""
    service: str = ""
    state: CostState


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What was spent since a process began to count.

    The lines of a pool sum exactly to what its nodes cost since then, rounded down to a nano-unit
    once for all time. No line ever shrinks, and each is off its exact value by fewer nano-units
    than its pool has lines, however many turns there were.
    """

    as_of: datetime | None = None
    """Up to when time was charged; set from outside, the first turn charges from there."""
    since: datetime | None = None
    """From when on."""
    lines: Mapping[CostLine, int] = field(default_factory=dict)
    """Nano-units."""
    remainders: Mapping[CostLine, int] = field(default_factory=dict)
    """Parts of a nano-unit that a line still lacks; below zero, it got them ahead."""


def accrue(bill: Bill, snapshot: Snapshot, views: Sequence[PoolView]) -> Bill:
    """Charge the time since the last turn; the first turn and a clock that goes back charge none.

    What is seen now held since the last turn, except where the pods say when they came, were ready
    or ended. A pod or node that vanished in between is not charged for its last moments.
    """
    begin, end = bill.as_of, snapshot.at
    if begin is None:
        return replace(bill, as_of=end, since=end)
    if end <= begin:
        return bill
    busy_pods, pods_by_node = busy_since(snapshot), _pods_by_node(snapshot.pods)
    specs = {view.pool.name: view.pool.spec for view in views if view.pool.spec is not None}
    parts: Counter[CostLine] = Counter()
    for node in snapshot.nodes:
        if (pool := _pool_of(node, specs)) is not None:
            node_pods = pods_by_node.get(node.name, ())
            node_charges = _NodeCharges(
                pool=pool, spec=specs[pool], node=node, pods=node_pods, busy_since=busy_pods
            )
            for line, charged in node_charges.charges(begin, end):
                parts[line] += charged
    return _credit(replace(bill, as_of=end, since=bill.since or begin), parts)


def _pods_by_node(pods: Sequence[Pod]) -> Mapping[str, Sequence[Pod]]:
    """Who holds devices where; on a node that is claimed twice the first to come holds."""
    pods_by_node: dict[str, list[Pod]] = defaultdict(list)
    for pod in sorted(pods, key=lambda pod: (pod.bound or pod.created, pod.ref)):
        if pod.node is not None and pod.bound is not None:
            pods_by_node[pod.node].append(pod)
    return pods_by_node


def busy_since(snapshot: Snapshot) -> Mapping[Ref, datetime]:
    """Since when replicas work on requests; a reading tells of no more than the time before it."""
    readings = snapshot.readings
    if (
        readings is None
        or readings.problem is not None
        or snapshot.at - readings.at > MAX_READING_AGE
    ):
        return {}
    since = readings.at - MAX_READING_AGE
    return {ref: since for ref, reading in readings.pods.items() if reading.running}


def _pool_of(node: Node, specs: Mapping[str, AcceleratorPoolSpec]) -> str | None:
    """The first pool by name: a node costs once, even where two pools claim it."""
    labels = node.labels.items()
    return min(
        (name for name, spec in specs.items() if spec.node_selector.items() <= labels),
        default=None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _NodeCharges:
    """One node, and who holds what of it."""

    pool: str
    spec: AcceleratorPoolSpec
    node: Node
    pods: Sequence[Pod]
    busy_since: Mapping[Ref, datetime]

    def charges(self, begin: datetime, end: datetime) -> Iterator[tuple[CostLine, int]]:
        """Every line's parts of a nano-unit; none for days before the first price."""
        for first, last in pairwise(self._change_times(begin, end)):
            price = price_on(self.spec.prices, first.astimezone(UTC).date())
            if price is not None:
                hourly = money(price.per_gpu_hour, price.currency)
                cost = hourly.nanos * ((last - first) // _MICROSECOND)
                for line, weight in self._weighted_lines(first, hourly.currency):
                    if weight:
                        yield line, cost * weight

    def _change_times(self, begin: datetime, end: datetime) -> list[datetime]:
        """Moments between which nothing changes."""
        changes = {datetime.combine(price.from_, time(), UTC) for price in self.spec.prices}
        for pod in self.pods:
            moments = (pod.bound, pod.ready_since, pod.ended, self.busy_since.get(pod.ref))
            changes.update(moment for moment in moments if moment is not None)
        return [begin, *sorted(moment for moment in changes if begin < moment < end), end]

    def _weighted_lines(self, at: datetime, currency: str) -> Iterator[tuple[CostLine, int]]:
        """How the weight of all GPUs of the node is spread at a moment; it sums exactly."""

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
            if (pod.bound or at) <= at and (pod.ended is None or at < pod.ended):
                for resource, count in sorted(pod.devices.items()):
                    weight = min(remaining, self._weight(resource) * count)
                    remaining, free[resource] = remaining - weight, free[resource] - count
                    yield line(self._profile(resource), self._state(pod, at), _payer(pod)), weight
        for resource, count in sorted(free.items()):
            weight = min(remaining, self._weight(resource) * max(0, count))
            remaining -= weight
            yield line(self._profile(resource), CostState.COLD_IDLE), weight
        yield line("", CostState.STRANDED), remaining

    def _state(self, pod: Pod, at: datetime) -> CostState:
        loaded = pod.containers_ready if pod.ready_since is None else pod.ready_since <= at
        if not loaded:
            return CostState.LOADING
        if pod.batch_run is not None:
            return CostState.SERVING
        since = self.busy_since.get(pod.ref)
        return CostState.WARM_IDLE if since is None or at < since else CostState.SERVING

    def _gpu_count(self) -> int:
        """What the label says, else the fewest that offer what the node offers."""
        label = self.node.labels.get(COUNT_LABEL, "")
        if label.isdecimal() and label.isascii():
            return int(label)
        offered = sum(
            self._weight(resource) * count for resource, count in self.node.allocatable.items()
        )
        return -(-offered // _GPU_WEIGHT)

    def _weight(self, resource: str) -> int:
        return round(weight_of(self._product, resource) * _GPU_WEIGHT)

    def _profile(self, resource: str) -> str:
        return WHOLE if resource == GPU else profile_of(self._product, resource)

    @property
    def _product(self) -> str:
        return self.node.labels.get(PRODUCT_LABEL, "")


def _payer(pod: Pod) -> Ref:
    return pod.service if pod.batch_run is None else billing_ref(pod.batch_run.batch)


def _credit(bill: Bill, parts: Mapping[CostLine, int]) -> Bill:
    """Turn parts into nano-units, pool by pool, and keep what does not fill one."""
    lines, remainders = dict(bill.lines), Counter(bill.remainders)
    remainders.update(parts)
    parts_by_pool: dict[tuple[str, str], dict[CostLine, int]] = defaultdict(dict)
    for line, due in remainders.items():
        parts_by_pool[line.currency, line.pool][line] = due
    for due_parts in parts_by_pool.values():
        for line, nanos in _whole_nanos(due_parts).items():
            lines[line] = lines.get(line, 0) + nanos
            remainders[line] -= nanos * _PARTS_PER_NANO
    return replace(bill, lines=lines, remainders=dict(remainders))


def _whole_nanos(due_parts: Mapping[CostLine, int]) -> Mapping[CostLine, int]:
    """Nano-units for the lines of a pool: together all that are due, each about what it is due.

    Most go to whom most is due. None is ever taken back, so a line may stay ahead by less than
    one; what the others then lack is less than one for each such line.
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
