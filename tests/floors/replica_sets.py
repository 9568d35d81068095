"""ReplicaSets of a Deployment, sized as the Deployment controller of Kubernetes 1.36 does it.

What is here follows `pkg/controller/deployment/sync.go`, `rolling.go` and `util/deployment_util.go`
function by function; only the numbers are here, and pods are made and deleted in `kube.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(slots=True, kw_only=True)
class ReplicaSet:
    """A ReplicaSet with the annotations that its Deployment leaves on it."""

    uid: str
    template_hash: str
    template: str
    """As JSON, of the pods that it creates."""
    created: int
    """Counts up with each one."""
    replicas: int = 0
    desired: int = 0
    """`deployment.kubernetes.io/desired-replicas`."""
    maximum: int = 0
    """`deployment.kubernetes.io/max-replicas`."""
    available: int = 0
    """Pods that take requests, by its status."""
    refusal: str = ""
    """Why its last pod was not created."""
    failing_since: datetime | None = None
    retry_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RollingUpdate:
    """What a Deployment asks of its ReplicaSets."""

    replicas: int
    surge: int
    unavailable: int

    @property
    def maximum(self) -> int:
        return self.replicas + self.surge if self.replicas else 0

    @property
    def least(self) -> int:
        """The pods that stay available."""
        unavailable = self.unavailable or (0 if self.surge else 1)
        return self.replicas - min(unavailable, self.replicas)


def sync_sizes(
    wanted: RollingUpdate, newest: ReplicaSet | None, older: Sequence[ReplicaSet]
) -> None:
    """Take one step of a Deployment's controller.

    A change of its replicas is shared out first; the rollout goes on in the next step.
    """
    existing = [*older, *([newest] if newest is not None else [])]
    if any(each.replicas and each.desired != wanted.replicas for each in existing):
        _scale(wanted, newest, older)
    elif newest is not None and not _scale_up_newest(wanted, newest, older):
        _scale_down_older(wanted, newest, older)


def annotate(wanted: RollingUpdate, replica_set: ReplicaSet) -> None:
    """Note what the Deployment wanted when the ReplicaSet was created or got its size."""
    replica_set.desired, replica_set.maximum = wanted.replicas, wanted.replicas + wanted.surge


def _resize(wanted: RollingUpdate, replica_set: ReplicaSet, replicas: int) -> None:
    """Set another size; with the same one the annotations stay too, whatever is wanted now."""
    if replica_set.replicas != replicas:
        replica_set.replicas = replicas
        annotate(wanted, replica_set)


def _scale(wanted: RollingUpdate, newest: ReplicaSet | None, older: Sequence[ReplicaSet]) -> None:
    """Share a change of replicas out among the ReplicaSets, in proportion to their sizes."""
    existing = [*older, *([newest] if newest is not None else [])]
    active = [each for each in existing if each.replicas]
    if len(active) <= 1:
        sole = active[0] if active else newest
        if sole is not None:
            sole.replicas = wanted.replicas
            annotate(wanted, sole)
        return
    if newest is not None and _is_saturated(wanted, newest):
        for each in older:
            _resize(wanted, each, 0)
        return
    missing = wanted.maximum - sum(each.replicas for each in active)
    # By size; of equal ones the newer grow first, and the older shrink first.
    active.sort(key=lambda each: (-each.replicas, -each.created if missing > 0 else each.created))
    sizes, shared = dict[str, int](), 0
    for each in active:
        share = _proportion(wanted, each, missing, shared)
        sizes[each.uid] = each.replicas + share
        shared += share
    sizes[active[0].uid] += missing - shared
    for each in active:
        each.replicas = max(0, sizes[each.uid])
        annotate(wanted, each)


def _is_saturated(wanted: RollingUpdate, newest: ReplicaSet) -> bool:
    return newest.replicas == newest.desired == newest.available == wanted.replicas


def _proportion(wanted: RollingUpdate, replica_set: ReplicaSet, missing: int, shared: int) -> int:
    if missing in (0, shared):
        return 0
    fraction = -replica_set.replicas
    if wanted.replicas and replica_set.maximum:
        scaled = replica_set.replicas * wanted.maximum / replica_set.maximum
        fraction = math.floor(scaled + 0.5) - replica_set.replicas
    elif wanted.replicas:
        fraction = 0
    allowed = missing - shared
    return min(fraction, allowed) if missing > 0 else max(fraction, allowed)


def _scale_up_newest(
    wanted: RollingUpdate, newest: ReplicaSet, older: Sequence[ReplicaSet]
) -> bool:
    """Give the newest one what surge allows; return whether its size changed."""
    before, size = newest.replicas, wanted.replicas
    if before < wanted.replicas:
        total = before + sum(each.replicas for each in older)
        room = wanted.replicas + wanted.surge - total
        size = before + max(0, min(room, wanted.replicas - before))
    _resize(wanted, newest, size)
    return size != before


def _scale_down_older(
    wanted: RollingUpdate, newest: ReplicaSet, older: Sequence[ReplicaSet]
) -> None:
    """Take pods of older templates away: first what does not serve, then what may be missing."""
    in_order = sorted(older, key=lambda each: each.created)
    total = newest.replicas + sum(each.replicas for each in older)
    removable = total - wanted.least - (newest.replicas - newest.available)
    if removable <= 0:
        return
    for each in in_order:
        unhealthy = min(removable, max(0, each.replicas - each.available))
        if unhealthy:
            _resize(wanted, each, each.replicas - unhealthy)
            removable -= unhealthy
    removable = newest.available + sum(each.available for each in older) - wanted.least
    for each in in_order:
        removed = min(max(0, removable), each.replicas)
        if removed:
            _resize(wanted, each, each.replicas - removed)
            removable -= removed
