"""The replicas of each variant of a service, and how much they serve together."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.api.ref import Ref
from tessera.api.service_status import InferenceServiceStatus
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


def capacity_of_counts(counts: Sequence[VariantCount]) -> int:
    """Return what the replicas of all variants serve, in thousandths of a token per second."""
    return sum(count.replicas * capacity_of(count.choice) for count in counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The devices that a service finds, as far as its variants' counts depend on them."""

    used: Devices
    """Devices of others."""
    held: Devices
    """Its own."""


def split_counts(  # noqa: PLR0913 - what is wanted, and what is there
    choices: Sequence[HardwareChoice],
    need: Need,
    objects: CurrentObjects,
    status: InferenceServiceStatus,
    room: Room,
    *,
    memory: Sequence[VariantMemory],
    assigned: Mapping[str, int],
    at: datetime,
) -> tuple[tuple[VariantCount, ...], ReplicaSplit]:
    """Return the replicas of each variant that cover what is needed.

    `assigned` are those of each that layout plans assign.
    """
    lost = reclaimed_pods(choices, objects)
    by_variant = {choice.variant: pods_of_variant(objects.pods, choice) for choice in choices}
    split = split_replicas(
        need,
        [
            _variant_pods(
                choice,
                [pod for pod in pods if not pod.terminating and pod.ref not in lost],
                expected_lead(objects.pods, status.start, variant),
                room,
                assigned.get(variant),
            )
            for choice, (variant, pods) in zip(choices, by_variant.items(), strict=True)
        ],
        at=at,
        memory=memory,
    )
    # Those of previous variants count for the first one, which replaces them.
    others = [pod for pod in objects.pods if pod.variant not in by_variant]
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


def _variant_pods(
    choice: HardwareChoice,
    pods: Sequence[Pod],
    start: timedelta,
    room: Room,
    assigned: int | None,
) -> VariantPods:
    offer, startable = choice.offer, choice.offer.startable
    kind = offer.pool, offer.hardware.resource
    total = max(0, free_replicas(offer, {kind: room.used[kind] + room.held[kind]}))
    free = max(0, total - offer.startable_replicas)
    ready = sum(pod.takes_requests for pod in pods)
    pending = [pod for pod in pods if pod.node is None]
    return VariantPods(
        variant=choice.variant,
        choice=choice,
        ready=ready,
        starting=len(pods) - ready - len(pending),
        pending=len(pending),
        pending_since=min((pod.created for pod in pending), default=None),
        free=free,
        growth=total - free,
        assigned=assigned,
        node_start=startable.expected_start if startable is not None else timedelta(),
        start=start,
    )
