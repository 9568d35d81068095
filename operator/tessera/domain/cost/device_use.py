"""Who uses the devices of a node at which time, by billing weight.

Slices in use count for the services of their pods, free slices as idle, and the rest of a GPU that
its slices do not cover as stranded. Integers make every sum exact.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple, Self

from tessera.api.accelerator_pool import COUNT_LABEL
from tessera.api.node_layout import MAX_GPUS
from tessera.api.text import parse_decimal
from tessera.domain.batch.names import billing_ref
from tessera.domain.hardware import pools
from tessera.domain.hardware.device import GPU
from tessera.domain.hardware.gpu_catalog import COMPUTE_SLICES, MEMORY_SLICES
from tessera.domain.observed.snapshot import Node, Pod, Ref, Snapshot
from tessera.domain.scaling.load import MAX_READING_AGE, usable_readings

# The profile of a GPU that is not partitioned.
WHOLE = "whole"
# The billing weight of a GPU as an integer, for which that of every slice is an integer too.
GPU_WEIGHT = 2 * COMPUTE_SLICES * MEMORY_SLICES
MICROSECOND = timedelta(microseconds=1)
_NO_OWNER = Ref("", "")


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


def pods_by_node(snapshot: Snapshot) -> Mapping[str, Sequence[Pod]]:
    """Return the bound pods of each node, those bound first in front."""
    # On an overcommitted node the first pod gets the device. A pod that ends later than now ended
    # by a clock ahead of this one, and is not charged on until then.
    bound_pods: dict[str, list[Pod]] = defaultdict(list)
    for pod in sorted(snapshot.pods, key=lambda pod: (pod.bound or pod.created, pod.ref)):
        ends_later = pod.ended is not None and pod.ended > snapshot.at
        if pod.node is not None and pod.bound is not None and not ends_later:
            bound_pods[pod.node].append(pod)
    return bound_pods


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
class DeviceUse:
    """Devices of one product, with the pods that occupy them."""

    pool: str
    product: str
    currency: str
    gpus: int
    allocatable: Mapping[str, int]
    """Devices by resource."""
    pods: Sequence[Pod]
    """Those bound to the node, the first in front."""
    busy_since: Mapping[Ref, datetime]

    def spans(
        self, begin: datetime, end: datetime, changes: Iterable[datetime] = ()
    ) -> Iterator[tuple[datetime, int, list[tuple[CostLine, int]]]]:
        """Yield the start of each span without changes, its microseconds, and its split."""
        moments = set(changes)
        for pod in self.pods:
            of_pod = (pod.bound, pod.ready_since, pod.ended, self.busy_since.get(pod.ref))
            moments.update(moment for moment in of_pod if moment is not None)
        times = [begin, *sorted(moment for moment in moments if begin < moment < end), end]
        for first, last in pairwise(times):
            lines = [(line, weight) for line, weight in self.at(first) if weight]
            yield first, (last - first) // MICROSECOND, lines

    def at(self, at: datetime) -> Iterator[tuple[CostLine, int]]:
        """Yield how the weight of all GPUs is split at a moment; the sum is exact."""
        remaining = self.gpus * GPU_WEIGHT
        free = Counter(self.allocatable)
        for pod in self.pods:
            if (pod.bound or at) <= at and (pod.ended is None or at < pod.ended):
                for resource, count in sorted(pod.devices.items()):
                    weight = min(remaining, self.weight(resource) * count)
                    remaining, free[resource] = remaining - weight, free[resource] - count
                    yield self.pod_line(pod, resource, at), weight
        for resource, count in sorted(free.items()):
            weight = min(remaining, self.weight(resource) * max(0, count))
            remaining -= weight
            yield self.line(self.profile(resource), CostState.COLD_IDLE), weight
        yield self.line("", CostState.STRANDED), remaining

    def line(self, profile: str, state: CostState, owner: Ref = _NO_OWNER) -> CostLine:
        """Return a line of the pool."""
        return CostLine(
            currency=self.currency,
            pool=self.pool,
            profile=profile,
            namespace=owner.namespace,
            service=owner.name,
            state=state,
        )

    def pod_line(self, pod: Pod, resource: str, at: datetime) -> CostLine:
        """Return the line of a device that a pod occupies at a moment."""
        payer = pod.service if pod.batch_run is None else billing_ref(pod.batch_run.batch)
        return self.line(self.profile(resource), self._state(pod, at), payer)

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

    def weight(self, resource: str) -> int:
        """Return the billing weight of a device."""
        return _weight(self.product, resource)

    def profile(self, resource: str) -> str:
        """Return the profile of a device, as lines of the bill say it."""
        return WHOLE if resource == GPU else pools.profile_of(self.product, resource)


def node_use(
    node: Node, view: pools.PoolView, pods: Sequence[Pod], busy: Mapping[Ref, datetime]
) -> DeviceUse:
    """Return the use of all devices of a node of a pool."""
    product, prices = view.product or "", view.pool.spec.prices if view.pool.spec else ()
    return DeviceUse(
        pool=view.pool.name,
        product=product,
        currency=prices[0].currency if prices else "",
        gpus=gpu_count(node, product),
        allocatable=node.allocatable,
        pods=pods,
        busy_since=busy,
    )


def gpu_count(node: Node, product: str) -> int:
    """Return the number of GPUs of a node by its label, else by its allocatable devices."""
    labeled = parse_decimal(node.labels.get(COUNT_LABEL, ""), MAX_GPUS)
    if labeled is not None:
        return labeled
    # Without the label: the fewest GPUs that could have these devices.
    allocatable = sum(
        _weight(product, resource) * count for resource, count in node.allocatable.items()
    )
    return min(MAX_GPUS, -(-allocatable // GPU_WEIGHT))


def _weight(product: str, resource: str) -> int:
    return round(pools.weight_of(product, resource) * GPU_WEIGHT)
