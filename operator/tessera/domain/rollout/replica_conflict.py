"""Somebody else writes the replicas of a Deployment: how long that stands, and what is said.

Tessera decides the number, so each other one is set back: the first ones at once, later ones ever
later, since every answer starts or stops engines that the next write stops or starts again. One
that leaves a service less than it needs never stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.api.reasons import Progressing, StatusVerdict
from tessera.api.text import counted
from tessera.domain.observed.snapshot import Workload
from tessera.domain.placement.cover import Need, sum_of

# A conflict is over when no other manager wrote for so long after the number was set back.
# Autoscalers write every 15 to 60 s.
CONFLICT_MEMORY = timedelta(minutes=2)
# So many writes are set back at once; the wait for the next ones doubles.
PROMPT_CORRECTIONS = 3
_WAITS = tuple(timedelta(minutes=minutes) for minutes in (1, 2, 4, 8, 10))
_REPLICAS = "spec.replicas"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConflict:
    """Numbers that somebody else wrote one after the other."""

    manager: str
    """Who wrote the last one."""
    replicas: int
    generation: int
    """That of the Deployment with the last one."""
    writes: int
    """How many were set back, with the last one."""
    correction_at: datetime
    """When the last one was or will be set back."""

    def stands(self, at: datetime) -> bool:
        """Return whether the number of the other is left for now."""
        return at < self.correction_at


class ContestedReplicas(NamedTuple):
    """A Deployment whose replicas somebody else writes as well."""

    workload: Workload
    desired: int
    conflict: ReplicaConflict
    is_older: bool = False
    """It has an older template, whose replicas no newer ones replace meanwhile."""

    def verdict(self, at: datetime) -> StatusVerdict[Progressing]:
        """Return who writes the replicas, what becomes of the number, and who should be asked."""
        conflict, service = self.conflict, self.workload.service
        outcome = f"set it back to {self.desired} ({counted(conflict.writes, 'time')})"
        if conflict.stands(at):
            time = f"{conflict.correction_at:%Y-%m-%dT%H:%M:%SZ}"
            outcome = f"sets it back to {self.desired} at {time}"
        if self.is_older:
            outcome += "; the newest template waits until that ends"
        return StatusVerdict(
            Progressing.FIELD_MANAGER_CONFLICT,
            f"Deployment/{self.workload.ref.name}: {conflict.manager} set {_REPLICAS} to "
            f"{conflict.replicas}, and Tessera, which decides this number, {outcome}. Scale "
            f"InferenceService/{service.name} instead: kubectl -n {service.namespace} scale "
            f"tsvc/{service.name} --replicas={conflict.replicas}, or for a HorizontalPodAutoscaler "
            "spec.scaling.mode External and this object as its scaleTargetRef.",
        )


class WrittenReplicas(NamedTuple):
    """The replicas of a variant: how many were decided, and how many others wrote."""

    capacity: int
    """Of each one."""
    is_firm: bool
    decided: int
    written: int
    """As many as were decided where nobody else wrote."""


def leaves_enough(need: Need, variants: Sequence[WrittenReplicas]) -> bool:
    """Return whether what others wrote covers what a service needs, over all of its variants.

    Where less was decided, as by a budget, that is enough. Replicas beyond what was decided for a
    variant replace none of another one.
    """
    decided = sum_of((each.capacity, each.is_firm, each.decided) for each in variants)
    rest = sum_of(
        (each.capacity, each.is_firm, min(each.decided, each.written)) for each in variants
    )
    return need.within(decided).beside(rest).is_met


def is_written_by_others(workload: Workload, last: ReplicaConflict | None, at: datetime) -> bool:
    """Return whether the replicas of a Deployment are a number of somebody else.

    Tessera applies one that stands, so that both own the field.
    """
    is_foreign = any(field.path == _REPLICAS for field in workload.foreign_fields)
    return is_foreign or (last is not None and last.stands(at))


def next_conflict(
    last: ReplicaConflict | None,
    workload: Workload,
    desired: int,
    at: datetime,
    *,
    may_stand: bool,
) -> ReplicaConflict | None:
    """Return who writes other replicas than `desired`; None without anybody.

    A number that may not stand is set back at once, however many there were before; see
    `leaves_enough`.
    """
    if last is not None and at >= last.correction_at + CONFLICT_MEMORY:
        last = None
    is_wanted = workload.replicas == desired
    manager = next(
        (field.manager for field in workload.foreign_fields if field.path == _REPLICAS), None
    )
    is_known = last is not None and last.generation == workload.generation
    if manager is not None and not is_wanted and not is_known:
        if last is not None and last.stands(at):
            writes, correction_at = last.writes, last.correction_at
        else:
            writes = last.writes + 1 if last is not None else 1
            correction_at = at + _wait(writes)
        last = ReplicaConflict(
            manager=manager,
            replicas=workload.replicas,
            generation=workload.generation,
            writes=writes,
            correction_at=correction_at,
        )
    if last is not None and last.stands(at) and (is_wanted or not may_stand):
        return replace(last, correction_at=at)
    return last


def _wait(writes: int) -> timedelta:
    repeated = writes - PROMPT_CORRECTIONS
    return timedelta() if repeated <= 0 else _WAITS[min(repeated, len(_WAITS)) - 1]
