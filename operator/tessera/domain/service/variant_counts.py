"""The replicas of each variant of a service, and how much they serve together."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.api.ref import Ref
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.incremental import FOREVER
from tessera.domain.observed.snapshot import Pod
from tessera.domain.placement.candidates import HardwareChoice, free_replicas
from tessera.domain.placement.cover import Need
from tessera.domain.placement.split import split_replicas
from tessera.domain.placement.split_state import (
    ReplicaSplit,
    VariantChange,
    VariantMemory,
    VariantPods,
)
from tessera.domain.placement.variant_cost import capacity_of
from tessera.domain.rollout.strategy import SURGE_TIMEOUT
from tessera.domain.scaling.starts import expected_lead
from tessera.domain.scaling.state import ScalingHistory, ScalingUnit
from tessera.domain.service.current_objects import CurrentObjects, pods_of_variant

# Devices by pool and resource.
Devices = Counter[tuple[str, str]]


class VariantCount(NamedTuple):
    """How many replicas of a service are of one variant."""

    choice: HardwareChoice
    replicas: int
    """Those that are desired."""
    existing: int
    """Those that hold devices or should get some; others merely wait for them."""
    bridging: int = 0
    """Those of the desired ones that stay only until others are ready."""

    @property
    def lasting(self) -> int:
        """The desired ones that stay once others are ready."""
        return self.replicas - self.bridging


def unit_choice(choices: Sequence[HardwareChoice]) -> HardwareChoice:
    """Return the variant in whose replicas scaling counts: the first of the least capacity."""
    return min(choices, key=capacity_of)


def unit_of(choices: Sequence[HardwareChoice]) -> ScalingUnit:
    """Return what scaling counts on these variants."""
    choice = unit_choice(choices)
    return ScalingUnit(choice.variant, capacity_of(choice))


def shares_of(choices: Sequence[HardwareChoice]) -> Mapping[str, float]:
    """Return how much a replica of each variant serves, in replicas of the unit."""
    unit = unit_of(choices).capacity
    return {choice.variant: capacity_of(choice) / unit for choice in choices}


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The devices that a service finds, as far as its variants' counts depend on them."""

    used: Devices
    """Devices of others."""
    held: Devices
    """Its own."""
    pools: Mapping[str, str]
    """The pool of each node."""


def split_counts(  # noqa: PLR0913 - what is wanted, and what is there
    choices: Sequence[HardwareChoice],
    need: Need,
    objects: CurrentObjects,
    status: InferenceServiceStatus,
    room: Room,
    *,
    memory: Sequence[VariantMemory],
    decided: Mapping[str, int],
    assigned: Mapping[str, int],
    at: datetime,
) -> tuple[tuple[VariantCount, ...], ReplicaSplit]:
    """Return the replicas of each variant that cover what is needed.

    `decided` are those of each that the last split had, `assigned` those that layout plans assign.
    """
    lost = reclaimed_pods(choices, objects)
    # What a rollout starts beside the others is an extra, and no capacity.
    is_rolling = any(objects.replaces_template(choice.variant) for choice in choices)
    by_variant = {choice.variant: pods_of_variant(objects.pods, choice) for choice in choices}
    others = [pod for pod in objects.pods if pod.variant not in by_variant]
    yielded = _devices_by_pool(others, room.pools)
    split = split_replicas(
        need,
        [
            _variant_pods(
                choice,
                [pod for pod in pods if not pod.terminating and pod.ref not in lost],
                expected_lead(objects.pods, status.start, variant),
                room,
                assigned.get(variant),
                min(decided.get(variant, 0), _in_rollout(objects, variant, at)),
                yielded[choice.offer.pool, choice.offer.hardware.resource]
                // choice.offer.hardware.devices,
                most=decided.get(variant) if is_rolling else None,
            )
            for choice, (variant, pods) in zip(choices, by_variant.items(), strict=True)
        ],
        at=at,
        memory=memory,
    )
    split = replace(split, until=min(split.until, _next_loss(objects, at)))
    # Those of previous variants count for the first one, which replaces them.
    counts = []
    for choice, (variant, own) in zip(choices, by_variant.items(), strict=True):
        pods, others = [*own, *others], []
        replicas = split.replicas[variant]
        bound = sum(pod.node is not None for pod in pods)
        existing = max(bound, min(len(pods), replicas))
        counts.append(VariantCount(choice, replicas, existing, split.bridging.get(variant, 0)))
    return tuple(counts), split


def with_counts(history: ScalingHistory, counts: Sequence[VariantCount]) -> ScalingHistory:
    """Return the history with the replicas of each variant, where there are several."""
    pairs = tuple((count.choice.variant, count.replicas) for count in counts)
    return replace(history, counts=pairs if len(pairs) > 1 else ())


def last_changes(
    earlier: Sequence[VariantChange], split: ReplicaSplit
) -> tuple[VariantChange, ...]:
    """Return why the number of each variant changed last."""
    changes = {change.variant: change for change in (*earlier, *split.changes)}
    return tuple(change for variant, change in changes.items() if variant in split.replicas)


def reclaimed_pods(choices: Iterable[HardwareChoice], objects: CurrentObjects) -> frozenset[Ref]:
    """Return the pods on spot nodes that are reclaimed: others replace them at once.

    Other nodes evict their pods one by one, as disruption budgets allow.
    """
    if not objects.disrupted:
        return frozenset()
    spot = {choice.variant for choice in choices if choice.offer.tier == "Spot"}
    pods = (pod for pod in objects.pods if pod.variant in spot)
    return frozenset(pod.ref for pod in pods if pod.ref in objects.disrupted)


def _devices_by_pool(pods: Iterable[Pod], pools: Mapping[str, str]) -> Devices:
    """Return the devices that pods hold on nodes of pools."""
    devices = Devices()
    for pod in pods:
        pool = pools.get(pod.node) if pod.node is not None else None
        if pool is not None and not pod.terminating:
            for resource, count in pod.devices.items():
                devices[pool, resource] += count
    return devices


def _in_rollout(objects: CurrentObjects, variant: str, at: datetime) -> int:
    """Return the replicas of a variant of which one may be away while its template changes.

    The device of that one is kept for its successor, which may wait for as long as it takes to
    leave, unless somebody else took it. What a quota refuses is kept too, since it refuses as much
    elsewhere.
    """
    workloads = objects.workloads_of(variant)
    is_refused = any(each.replica_failure for each in workloads)
    if not is_refused and not objects.replaces_template(variant):
        return 0
    pods = [pod for pod in objects.pods if pod.variant == variant]
    waiting = sum(
        pod.unschedulable is not None and at - pod.created >= SURGE_TIMEOUT for pod in pods
    )
    leaving = sum(pod.holds_devices and pod.is_stopping for pod in pods)
    return sum(workload.replicas for workload in workloads) - max(0, waiting - leaving)


def _next_loss(objects: CurrentObjects, at: datetime) -> datetime:
    """Return when a replica counts as lost of which the device was kept for a rollout."""
    losses = (pod.created + SURGE_TIMEOUT for pod in objects.pods if pod.unschedulable is not None)
    return min((loss for loss in losses if loss > at), default=FOREVER)


def _variant_pods(  # noqa: PLR0913, PLR0917 - what there is of a variant
    choice: HardwareChoice,
    pods: Sequence[Pod],
    start: timedelta,
    room: Room,
    assigned: int | None,
    ordered: int,
    yielded: int,
    *,
    most: int | None = None,
) -> VariantPods:
    """Return the pods of a variant, of which at most so many count as there."""
    offer, startable = choice.offer, choice.offer.startable
    kind = offer.pool, offer.hardware.resource
    total = max(0, free_replicas(offer, room.used, room.held[kind]))
    free = max(0, total - offer.startable_replicas)
    ready = sum(pod.takes_requests for pod in pods)
    unready = len(pods) - ready
    pending = [pod for pod in pods if pod.node is None]
    bound = len(pods) - len(pending)
    if most is not None:
        # The device of an extra one is there for what is missing.
        free += max(0, bound - most)
        total += max(0, bound - most)
        ready, bound = min(ready, most), min(bound, most)
    starting = max(bound - ready, ordered - ready)
    pending = pending[: max(0, len(pods) - ready - starting)]
    return VariantPods(
        variant=choice.variant,
        choice=choice,
        ready=ready,
        starting=starting,
        # What a quota refuses has no pod, and replaces none.
        replaced=max(0, min(ordered - ready, unready)),
        pending=len(pending),
        pending_since=min((pod.created for pod in pending), default=None),
        free=free,
        growth=total - free,
        yielded=yielded,
        assigned=assigned,
        node_start=startable.expected_start if startable is not None else timedelta(),
        start=start,
    )
