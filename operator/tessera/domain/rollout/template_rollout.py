"""How a new pod template takes over: its Deployment grows as the replicas that it replaces leave.

Each template has a Deployment of its own, which is never edited, so counts are all that moves. With
a free device a new replica starts before an old one leaves; without one an old replica leaves
first. Until the new template was ready once, the oldest one is restored to what it has to serve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tessera.api.ref import Ref
from tessera.domain.observed.snapshot import Pod, Workload
from tessera.domain.rollout.strategy import surge_timed_out

# A template whose replicas are not ready for so long after their expected start is withdrawn.
START_TOLERANCE = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class OlderTemplate:
    """A Deployment of an older template of a variant, and its replicas."""

    workload: Workload
    pods: Sequence[Pod]
    usable_nodes: frozenset[str] = frozenset()
    """Where a successor may be bound."""

    @property
    def ready(self) -> int:
        return sum(pod.takes_requests for pod in self.pods)

    @property
    def healthy(self) -> int:
        """Return those that take requests and do not drain."""
        return sum(pod.takes_requests and pod.draining_since is None for pod in self.pods)

    @property
    def yielding(self) -> frozenset[Ref]:
        """Return the replicas whose devices a successor can take."""
        return frozenset(pod.ref for pod in self.pods if pod.node in self.usable_nodes)

    @property
    def yields(self) -> bool:
        """Return whether one that leaves gives its device to a successor, or none serves."""
        return not self.ready or bool(self.yielding)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutCounts:
    """The replicas of the Deployments of one variant."""

    newest: int
    older: Mapping[Ref, int] = field(default_factory=dict)
    removable: tuple[Ref, ...] = ()
    """Deployments without a replica that nothing falls back to."""
    is_withdrawn: bool = False
    """The newest template gives back what it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateRollout:
    """A variant whose replicas are of several templates, or will be."""

    workload: Workload | None
    """The Deployment of the newest template, if it exists."""
    pods: Sequence[Pod]
    """Its replicas."""
    older: Sequence[OlderTemplate]
    """The oldest first."""
    desired: int
    """Replicas of all templates together."""
    at: datetime
    has_capacity: bool
    """A device is free for one more replica."""
    is_paid: bool = True
    """The budget grants one more replica."""
    has_fallback: bool = True
    """The oldest one came before the newest template, and all replicas had it once."""
    shortage: int = 0
    """Desired replicas that had no device when the rollout began."""
    free: int = 0
    """Devices that are free for further replicas."""

    @property
    def ready(self) -> int:
        return sum(pod.takes_requests for pod in self.pods)

    @property
    def unplaced(self) -> int:
        """Return the desired replicas that have no device, and find none."""
        if not self.older:
            bound = sum(pod.node is not None and not pod.terminating for pod in self.pods)
            return max(0, self.desired - bound - (self.has_capacity and not self.is_refused))
        pods = [*self.pods, *(pod for each in self.older for pod in each.pods)]
        usable = frozenset[str]().union(*(each.usable_nodes for each in self.older))
        free = 0 if self.is_refused else self.free
        return max(0, self.desired - sum(pod.node in usable for pod in pods) - free)

    @property
    def target(self) -> int:
        """Return the replicas of all templates while there are older ones.

        A replica that had no device when the rollout began waits until its end, or its pod would
        take the device of a successor.
        """
        return self.desired - min(self.shortage, self.unplaced)

    @property
    def in_step(self) -> bool:
        """Return whether a replica of it starts or leaves for the rollout."""
        started = self.workload is not None and self.workload.replicas > self.ready
        leaving = (pod for each in self.older for pod in each.pods)
        return started or any(pod.is_stopping for pod in leaving)

    @property
    def is_in_place(self) -> bool:
        """Return whether an old replica leaves before a new one starts; a step ends as it began."""
        existing = sum(each.workload.replicas for each in self.older)
        if self.workload is not None and self.workload.replicas > self.ready:
            existing += self.workload.replicas
            if existing <= self.target:
                return True
            if any(pod.node is not None and not pod.takes_requests for pod in self.pods):
                return False
        pods = [*self.pods, *(pod for each in self.older for pod in each.pods)]
        has_room = self.has_capacity and self.is_paid
        return not has_room or self.is_refused or surge_timed_out(pods, self.at)

    @property
    def is_refused(self) -> bool:
        """Return whether a quota or admission refuses the pod of the newest template."""
        return self.workload is not None and self.workload.is_refused(len(self.pods))

    @property
    def is_stuck(self) -> bool:
        """Return whether a successor waits, and no replica has a device that it could take."""
        return (
            bool(self.older)
            and any(pod.unschedulable for pod in self.pods)
            and not self.has_capacity
            and not any(each.yields for each in self.older)
        )

    def is_overdue(self, expected_start: timedelta, last_started: str | None) -> bool:
        """Return whether the newest template did not become ready in time, and another one can.

        `last_started` is the pod that became ready last, by the status.
        """
        if any(pod.ref.name == last_started for pod in self.pods):
            return False
        bound = [pod.bound for pod in self.pods if pod.bound is not None and not pod.terminating]
        return (
            bool(self.older)
            and self.has_fallback
            and not self.ready
            and bool(bound)
            and self.at - min(bound) >= expected_start + START_TOLERANCE
        )

    def counts(
        self, *, may_step: bool, may_take: bool, may_leave: int, is_withdrawn: bool
    ) -> RolloutCounts:
        """Return the replicas of each Deployment.

        One more of the newest template starts if it `may_step`. At most `may_leave` healthy ones
        of older templates leave. In place one of the oldest does so for its successor if none of
        the service is away (`may_take`), and once the successor's Deployment counts it; one that
        no budget pays beside it is counted once the other has left. A withdrawn template gives
        back what it has.
        """
        if not self.older:
            return RolloutCounts(newest=self.desired)
        ready = 0 if is_withdrawn else self.ready
        last, *others = self.older
        missing = max(0, self.desired - ready)
        older = dict[Ref, int]()
        for each in reversed(others):
            older[each.workload.ref] = min(each.ready, missing)
            missing -= older[each.workload.ref]
        is_restored = not ready and (self.has_fallback or self.workload is None)
        placed = self.target - ready - sum(older.values())
        restored = max(min(last.ready, missing), min(missing, placed))
        if is_withdrawn:
            restored = missing
        older[last.workload.ref] = restored if is_restored else min(last.ready, missing)
        for each in self.older:
            count = max(each.healthy - may_leave, older[each.workload.ref])
            may_leave -= max(0, each.healthy - count)
            older[each.workload.ref] = count
        if may_step and not is_withdrawn and self.is_in_place:
            self._give_way(older, ready, may_take=may_take and may_leave > 0)
        alive = sum(not pod.terminating for pod in self.pods)
        wanted = self.target if any(older.values()) else self.desired
        newest = max(ready + 1, wanted - sum(older.values())) if may_step else alive
        newest = 0 if is_withdrawn else min(self.desired, newest, max(ready, self._room()))
        return RolloutCounts(
            newest=newest,
            older=older,
            removable=self._removable(older),
            is_withdrawn=is_withdrawn,
        )

    def _room(self) -> int:
        """Return the replicas of the newest template that exceed the desired number by one at most.

        One that drains still has its device, and costs money. What an older Deployment has beyond
        its count is the surge of its own controller, which may never get ready.
        """
        active = sum(
            min(sum(not pod.terminating for pod in each.pods), each.workload.replicas)
            for each in self.older
        )
        return self.desired + self.is_paid - active

    def _give_way(self, counts: dict[Ref, int], ready: int, *, may_take: bool) -> None:
        """Lower the count of the oldest template that has any, for a replica in its place."""
        if ready + sum(counts.values()) < self.target:
            return  # what is there leaves room for it
        leaving = (each for each in self.older if counts[each.workload.ref])
        oldest = next((each for each in leaving if self.has_capacity or each.yields), None)
        if oldest is None:
            return
        ref = oldest.workload.ref
        lower, retained = counts[ref] - 1, counts[ref]
        is_counted = self.workload is not None and self.workload.replicas > self.ready
        takes_none = oldest.ready <= lower or oldest.workload.replicas <= lower
        if (is_counted or not self.is_paid) and (may_take or takes_none):
            counts[ref] = lower
        else:
            counts[ref] = max(lower, min(oldest.workload.replicas, retained))

    def _removable(self, counts: Mapping[Ref, int]) -> tuple[Ref, ...]:
        last = self.older[0].workload.ref
        # Until the newest template was ready once, there is a way back.
        is_kept = not self.ready and (self.has_fallback or self.workload is None)
        return tuple(
            each.workload.ref
            for each in self.older
            if not each.pods
            and not counts[each.workload.ref]
            and (each.workload.ref != last or not is_kept or not self.desired)
        )
