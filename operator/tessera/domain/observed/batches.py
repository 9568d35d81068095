"""Batches, and what the cluster knows of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tessera.api.batch_inference import (
    TERMINAL_STATES,
    BatchInferenceSpec,
    BatchInferenceStatus,
)
from tessera.api.ref import Ref
from tessera.domain.observed.object import Observed
from tessera.domain.observed.runner_reports import RunnerProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Observed):
    """A BatchInference."""

    spec: BatchInferenceSpec | None
    status: BatchInferenceStatus = field(default_factory=BatchInferenceStatus)
    deleting: bool = False
    """It has a deletion timestamp, and a finalizer keeps it."""

    @property
    def unfinished(self) -> bool:
        """Return whether it writes its files, or will."""
        return not self.deleting and self.status.state not in TERMINAL_STATES

    def is_outdated(self, at: datetime) -> bool:
        """Return whether it ended longer ago than `spec.ttlAfterFinished`."""
        if self.spec is None or self.deleting or self.status.state not in TERMINAL_STATES:
            return False
        attempt = self.status.attempt
        known = [condition.last_transition_time for condition in self.status.conditions]
        if attempt is not None and attempt.finished_at is not None:
            known.append(attempt.finished_at)
        return bool(known) and at - max(known) >= self.spec.ttl_after_finished

    def has_ended(self, at: datetime) -> bool:
        """Return whether no attempt may start; a later deadline lets an expired batch go on."""
        if self.status.state == "expired" and self.spec is not None:
            return at - self.created >= self.spec.deadline
        return self.status.state in TERMINAL_STATES


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """The Job of a check or of an attempt."""

    ref: Ref
    batch: Ref
    batch_uid: str = ""
    attempt: int | None
    """None is the check."""
    uid: str = ""
    created: datetime | None = None
    failed: bool = False
    """Its controller makes no more pods: the condition Failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHealth:
    """A node as far as its pods have to fear for it."""

    ready: bool = True
    """The condition Ready alone; being cordoned is a taint."""
    taints: frozenset[str] = frozenset()
    """Keys of its taints."""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeClaim:
    """A PersistentVolumeClaim."""

    access_modes: tuple[str, ...]
    storage_class: str | None = None
    uid: str = ""
    terminating: bool = False
    """It has a deletion timestamp, so no further pod can mount it."""
    gib: int = 0
    """The size that it asks for, rounded up."""
    owners: tuple[str, ...] = ()
    """The UIDs of its owners; it is deleted with the last of them."""


# The Job controller creates a pod at once; a refusal it tries again.
POD_CREATION_TIME = timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class PodRefusal:
    """What the events of a Job without a pod said at a moment; None: nothing."""

    at: datetime
    message: str | None


@dataclass(frozen=True, slots=True)
class ProgressSample:
    """What a runner answered at a moment."""

    at: datetime
    progress: RunnerProgress
