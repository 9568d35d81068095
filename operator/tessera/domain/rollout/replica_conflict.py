"""Somebody else writes the replicas of a Deployment: how long that stands, and what is said.

Tessera decides the number, so each other one is set back: the first ones at once, later ones ever
later, since every answer starts or stops engines that the next write stops or starts again. One
that leaves a service less than it needs never stands.

What leaves a Deployment of an older template for its successor would be started again, so a rollout
waits. Silence of a writer that has its number proves nothing: the number is taken back only after
no HorizontalPodAutoscaler was listed that scales the Deployment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.api.reasons import Progressing, StatusVerdict
from tessera.api.service_status import ReplicaConflict
from tessera.api.text import counted
from tessera.domain.observed.snapshot import ListedAutoscalers, Workload
from tessera.domain.placement.cover import Need, sum_of

# A conflict is over when no other manager wrote for so long after the number was set back, and a
# number that nobody wrote for so long is taken back. Autoscalers write every 15 to 60 s.
CONFLICT_MEMORY = timedelta(minutes=2)
# Each number that was taken back and then set again doubles that time, up to 32 minutes. For those
# 32 minutes it is remembered.
_MAX_DOUBLINGS = 4
# So many writes are set back at once; the wait for the next ones doubles.
PROMPT_CORRECTIONS = 3
_WAITS = tuple(timedelta(minutes=minutes) for minutes in (1, 2, 4, 8, 10))
_REPLICAS = "spec.replicas"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContestedReplicas:
    """A Deployment whose replicas somebody else writes as well."""

    workload: Workload
    desired: int
    conflict: ReplicaConflict
    is_older: bool = False
    """It has an older template, whose replicas no newer ones replace meanwhile."""
    listed: ListedAutoscalers | None = None
    """The HorizontalPodAutoscalers of the namespace, once they were listed."""

    def verdict(self, at: datetime) -> StatusVerdict[Progressing] | None:
        """Return who writes the replicas, what becomes of the number, and who should be asked.

        Return None of a number that was taken back.
        """
        if self.conflict.is_taken:
            return None
        message = f"Deployment/{self.workload.ref.name}: {self._outcome(at)}"
        if self.is_older:
            message += f"; the newest template waits until {self._end(at)}"
        return StatusVerdict(Progressing.FIELD_MANAGER_CONFLICT, f"{message}. {self._way_out()}")

    @property
    def _autoscaler(self) -> str | None:
        return self.listed.scaling(self.workload) if self.listed is not None else None

    def _outcome(self, at: datetime) -> str:
        conflict = self.conflict
        written = f"{conflict.manager} set {_REPLICAS} to {conflict.replicas}"
        if self.is_older and self._autoscaler is not None:
            return f"HorizontalPodAutoscaler/{self._autoscaler} scales it, and {written} last"
        if stands(conflict, at):
            outcome = f"sets it back to {self.desired} at {_time(conflict.correction_at)}"
        elif self.is_older and self.workload.replicas == self.desired == conflict.replicas:
            return f"{written} last"
        else:
            outcome = f"set it back to {self.desired} ({counted(conflict.writes, 'time')})"
        return f"{written}, and Tessera, which decides this number, {outcome}"

    def _end(self, at: datetime) -> str:
        """Return what ends the wait of a rollout."""
        conflict, listed = self.conflict, self.listed
        if self._autoscaler is not None:
            return f"HorizontalPodAutoscaler/{self._autoscaler} is gone or scales something else"
        if listed is None or listed.problem is not None:
            namespace = self.workload.ref.namespace
            return f"the HorizontalPodAutoscalers of namespace {namespace} are listed"
        end = _time(max(_quiet_at(conflict), at))
        return f"{end}, and goes on then unless somebody writes {_REPLICAS}"

    def _way_out(self) -> str:
        """Return whose act ends the conflict."""
        service, namespace = self.workload.service, self.workload.ref.namespace
        if self._autoscaler is not None:
            return (
                f"Delete it (or the ScaledObject that owns it): kubectl -n {namespace} delete hpa "
                f"{self._autoscaler}, or set spec.scaling.mode of InferenceService/{service.name} "
                "to External and name that object in its scaleTargetRef."
            )
        if self.is_older and self.listed is not None and self.listed.problem is not None:
            return (
                f"Listing them failed: {self.listed.problem}. Grant the operator the verb list on "
                "horizontalpodautoscalers of API group autoscaling, as its chart does."
            )
        return (
            f"Scale InferenceService/{service.name} instead: kubectl -n {service.namespace} scale "
            f"tsvc/{service.name} --replicas={self.conflict.replicas}, or for a "
            "HorizontalPodAutoscaler spec.scaling.mode External and this object as its "
            "scaleTargetRef."
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


def stands(conflict: ReplicaConflict, at: datetime) -> bool:
    """Return whether the number of somebody else is left for now."""
    # A clock that was set back would leave it for longer than any wait.
    return at < conflict.correction_at <= at + _WAITS[-1]


def is_written_by_others(workload: Workload, last: ReplicaConflict | None, at: datetime) -> bool:
    """Return whether the replicas of a Deployment are a number of somebody else.

    Tessera applies one that stands, so that both own the field.
    """
    return _writer(workload) is not None or (last is not None and stands(last, at))


def remembered_conflict(
    last: ReplicaConflict | None,
    workload: Workload,
    listed: ListedAutoscalers | None,
    at: datetime,
    *,
    is_older: bool,
) -> ReplicaConflict | None:
    """Return what the last cycle knew, while the conflict is not over.

    It lasts while an autoscaler scales the Deployment, and while somebody else owns the replicas of
    an older template, where nothing that Tessera writes takes them back by itself.
    """
    if last is not None and last.correction_at > at + _WAITS[-1]:
        # The clock was set back.
        last = last.model_copy(update={"correction_at": at})
    if last is None or at < _over_at(last):
        return last
    if listed is not None and listed.scaling(workload) is not None:
        return last
    return last if is_older and _writer(workload) is not None else None


def holds_rollout(
    last: ReplicaConflict | None,
    workload: Workload,
    listed: ListedAutoscalers | None,
    at: datetime,
) -> bool:
    """Return whether what leaves an older template's Deployment would be started again."""
    if last is not None and listed is not None and listed.scaling(workload) is not None:
        return True
    if _writer(workload) is not None and (last is None or last.generation != workload.generation):
        return True
    return last is not None and not last.is_taken and not _is_quiet(last, listed, at)


def next_conflict(  # noqa: PLR0913 - what was known, what is seen, and what is decided
    last: ReplicaConflict | None,
    workload: Workload,
    desired: int,
    at: datetime,
    *,
    may_stand: bool,
    is_older: bool = False,
    listed: ListedAutoscalers | None = None,
) -> ReplicaConflict | None:
    """Return who writes other replicas than `desired`; None without anybody.

    A number that may not stand is set back at once, however many there were before; see
    `leaves_enough`. The wanted number of somebody else counts on an older template alone.
    """
    last = remembered_conflict(last, workload, listed, at, is_older=is_older)
    is_wanted, manager = workload.replicas == desired, _writer(workload)
    is_known = last is not None and last.generation == workload.generation
    if manager is not None and not is_known and (is_older or not is_wanted):
        writes, correction_at = (last.writes if last is not None else 0) + 1, at
        if last is not None and stands(last, at):
            writes, correction_at = last.writes, last.correction_at
        elif not is_wanted:
            correction_at = at + _wait(writes)
        last = ReplicaConflict(
            deployment=workload.ref.name,
            manager=manager,
            replicas=workload.replicas,
            generation=workload.generation,
            writes=writes,
            correction_at=correction_at,
            since=at,
            takes=last.takes if last is not None else 0,
        )
    if last is None:
        return None
    if is_older and holds_rollout(last, workload, listed, at):
        last = last.model_copy(update={"is_taken": False}) if last.is_taken else last
    elif is_older and not last.is_taken:
        last = last.model_copy(update={"is_taken": True, "takes": last.takes + 1, "since": at})
    if stands(last, at) and (is_wanted or not may_stand):
        return last.model_copy(update={"correction_at": at})
    return last


def _writer(workload: Workload) -> str | None:
    """Return who wrote the replicas last, if not Tessera."""
    return next(
        (field.manager for field in workload.foreign_fields if field.path == _REPLICAS), None
    )


def _silence(takes: int) -> timedelta:
    return CONFLICT_MEMORY * (1 << min(takes, _MAX_DOUBLINGS))


def _quiet_at(conflict: ReplicaConflict) -> datetime:
    """Return until when nobody may write, so that a rollout goes on."""
    return max(conflict.correction_at, conflict.since) + _silence(conflict.takes)


def _over_at(conflict: ReplicaConflict) -> datetime:
    """Return until when a conflict is remembered after the number was set or taken back."""
    memory = _silence(_MAX_DOUBLINGS) if conflict.takes else CONFLICT_MEMORY
    return max(conflict.correction_at, conflict.since) + memory


def _is_quiet(conflict: ReplicaConflict, listed: ListedAutoscalers | None, at: datetime) -> bool:
    """Return whether nobody is there who would set the number of a Deployment again."""
    return (
        listed is not None
        and listed.problem is None
        and listed.at >= conflict.since
        and at >= _quiet_at(conflict)
    )


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def _wait(writes: int) -> timedelta:
    repeated = writes - PROMPT_CORRECTIONS
    return timedelta() if repeated <= 0 else _WAITS[min(repeated, len(_WAITS)) - 1]
