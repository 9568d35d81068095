"""The replicas of each variant of a service, and how much they serve together."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.api.ref import Ref
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.observed.snapshot import Pod
from tessera.domain.placement.candidates import HardwareChoice, free_replicas
from tessera.domain.placement.split import split_replicas
from tessera.domain.placement.split_state import (
    ReplicaSplit,
    VariantChange,
    VariantMemory,
    VariantPods,
)
from tessera.domain.scaling.starts import expected_lead
from tessera.domain.scaling.state import ScalingHistory
from tessera.domain.service.current_objects import CurrentObjects, pods_of_variant

# Devices by pool and resource.
Devices = Counter[tuple[str, str]]
# Sums of shares are inexact.
_ROUNDING = 1e-9


class VariantCount(NamedTuple):
    """How many replicas of a service are of one variant."""

    choice: HardwareChoice
    replicas: int
    """Those that are desired."""
    existing: int
    """Those that hold devices or should get some; others merely wait for them."""
    bridging: int = 0
    """Those of the desired ones that stay only until others are ready."""


def share_of(choice: HardwareChoice, reference: HardwareChoice) -> float:
    """Return how much a replica serves, in replicas of the reference variant."""
    return choice.fit.limits.tokens_per_second / reference.fit.limits.tokens_per_second


def shares_of(choices: Sequence[HardwareChoice]) -> Mapping[str, float]:
    """Return how much a replica of each variant serves in one of the first, the reference."""
    return {choice.variant: share_of(choice, choices[0]) for choice in choices}


def whole_replicas(shares: Iterable[float]) -> int:
    """Return how many whole replicas of the reference variant serve as much as these shares."""
    return math.floor(sum(shares) + _ROUNDING)


def served_replicas(counts: Sequence[VariantCount]) -> int:
    """Return how many whole replicas of the reference variant serve as much as all together."""
    reference = counts[0].choice
    return whole_replicas(count.replicas * share_of(count.choice, reference) for count in counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The devices that a service finds, as far as its variants' counts depend on them."""

    used: Devices
    """Devices of others."""
    held: Devices
    """Its own."""


def split_counts(  # noqa: PLR0913 - what is wanted, and what is there
    choices: Sequence[HardwareChoice],
    wanted: int,
    objects: CurrentObjects,
    status: InferenceServiceStatus,
    room: Room,
    *,
    floor: int,
    memory: Sequence[VariantMemory],
    assigned: Mapping[str, int],
    at: datetime,
) -> tuple[tuple[VariantCount, ...], ReplicaSplit]:
    """Return the replicas of each variant that serve as much as those `wanted` of the first.

    `assigned` are those of each that layout plans assign.
    """
    lost = reclaimed_pods(choices, objects)
    by_variant = {choice.variant: pods_of_variant(objects.pods, choice) for choice in choices}
    split = split_replicas(
        wanted,
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
        floor=floor,
        memory=memory,
    )
    # Those of previous variants count for the reference variant, which replaces them.
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
