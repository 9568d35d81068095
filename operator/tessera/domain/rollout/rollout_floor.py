"""How many replicas a rollout keeps: those that were healthy when it began, or have become so.

The number stands in the status before a replica leaves for its successor, so that neither a restart
of the operator nor a device that somebody else takes makes it smaller. What is lost otherwise is
subtracted once it did not come back in time: a service that is short of devices takes an edit.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.api.service_status import RolloutFloorStatus, RolloutStepStatus
from tessera.domain.observed.snapshot import Pod


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacedService:
    """What is observed of a service whose replicas are replaced."""

    desired: int
    """Replicas of all variants and templates together, as money grants them."""
    guaranteed: int
    """Replicas of the floor that count although no money is granted for them now."""
    staying: int
    """Healthy ones, of each variant at most the desired ones."""
    leaving: Sequence[Pod]
    """Replicas that drain or end."""
    is_starting: bool
    """A replica of a newest template has a device and is not ready yet."""
    nodes_with_free_devices: Collection[str]
    """Nodes where one more replica can be bound."""
    others: Sequence[Pod]
    """Pods of others that hold devices, on the nodes that replicas left."""


class RolloutFloor(NamedTuple):
    """What a rollout keeps, and what it waits for."""

    status: RolloutFloorStatus
    """What the next status says."""
    is_recorded: bool
    """The last status says the same number."""
    missing: int = 0
    """Replicas that are missing although none is being replaced."""
    taker: Pod | None = None
    """Whose pod has the device that a replica gave back for its successor."""
    falls_at: datetime | None = None
    """When what is missing is subtracted; None where the taker has it."""
    guaranteed: int = 0
    """See `ReplacedService`."""

    @property
    def replicas(self) -> int:
        return self.status.replicas

    def within(self, floor: int) -> int:
        """Return how many of a service's granted floor, and of what is guaranteed, are kept."""
        return min(max(floor, self.guaranteed), self.replicas) if self.is_recorded else floor


def rollout_floor(
    record: RolloutFloorStatus | None, service: ReplacedService, wait: timedelta, at: datetime
) -> RolloutFloor:
    """Return what a rollout keeps by its last `record`; what is lost counts for so long a `wait`.

    Without a record it begins now. If a replica leaves or starts already, the record was lost.
    """
    # What is kept does not grow by a replica beyond the granted ones, which leaves again.
    granted = min(service.desired, service.staying)
    limit = max(service.desired, service.guaranteed)
    staying = min(limit, service.staying)
    is_moving = bool(service.leaving) or service.is_starting
    if record is None:
        replicas = service.desired if is_moving else granted
        return RolloutFloor(RolloutFloorStatus(replicas=replicas), is_recorded=False)
    replicas = max(min(limit, record.replicas), granted)
    if staying >= replicas:
        return _floor(record, RolloutFloorStatus(replicas=replicas))
    step = _step(record.step, service.leaving, at)
    is_open = is_moving or (step is not None and step.node in service.nodes_with_free_devices)
    taker = None
    if step is not None and not is_open:
        taker = _taker(step, service.others)
        step = step if taker is not None else None
    missing = replicas - staying
    if is_open or missing == bool(taker):
        status = RolloutFloorStatus(replicas=replicas, step=step)
        return _floor(record, status, missing=0 if is_open else missing, taker=taker)
    # A clock that was set back does not make it wait for longer.
    since = min(record.short_since or at, at)
    if at - since >= wait:
        status = RolloutFloorStatus(replicas=staying + bool(taker), step=step)
        return _floor(record, status, missing=int(bool(taker)), taker=taker)
    status = RolloutFloorStatus(replicas=replicas, step=step, short_since=since)
    return _floor(record, status, missing=missing, taker=taker, falls_at=since + wait)


def _floor(
    record: RolloutFloorStatus,
    status: RolloutFloorStatus,
    *,
    missing: int = 0,
    taker: Pod | None = None,
    falls_at: datetime | None = None,
) -> RolloutFloor:
    is_recorded = record.replicas == status.replicas
    return RolloutFloor(status, is_recorded, missing, taker, falls_at)


def _step(
    last: RolloutStepStatus | None, leaving: Sequence[Pod], at: datetime
) -> RolloutStepStatus | None:
    """Return the latest replacement: of the replica that leaves now, else the `last` one."""
    bound = [pod for pod in leaving if pod.node is not None]
    if not bound:
        return last
    pod = max(bound, key=lambda pod: (pod.draining_since or pod.created, pod.ref))
    assert pod.node is not None  # noqa: S101 - it is bound
    since = pod.draining_since or at
    if last is not None and last.node == pod.node and (pod.terminating or since <= last.since):
        return last
    return RolloutStepStatus(node=pod.node, since=since)


def _taker(step: RolloutStepStatus, others: Sequence[Pod]) -> Pod | None:
    """Return the first pod of somebody else that got a device of the node since the step."""
    takers = (
        (pod.bound, pod.ref, pod)
        for pod in others
        if pod.node == step.node and pod.bound is not None and pod.bound >= step.since
    )
    return next((pod for _, _, pod in sorted(takers, key=lambda taker: taker[:2])), None)
