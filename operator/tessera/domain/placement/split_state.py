"""What a split of wanted capacity over variants reads, remembers and decides."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tessera.api.reasons import VariantReason
from tessera.domain.incremental import FOREVER
from tessera.domain.placement.candidates import HardwareChoice

# A scheduler that finds a free device binds a pod within it.
BINDING_TIME = timedelta(seconds=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantPods:
    """The pods of one variant of a service, and the room for more."""

    variant: str
    choice: HardwareChoice
    ready: int = 0
    starting: int = 0
    """Pods on a node that are not ready."""
    replaced: int = 0
    """Those of them that a rollout replaces: one that was ready left its device for it."""
    pending: int = 0
    """Pods without a node."""
    pending_since: datetime | None = None
    """When the oldest of these was created."""
    free: int = 0
    """Further replicas that the free devices of existing nodes hold; pending pods take none."""
    growth: int = 0
    """Further replicas on nodes that may come."""
    yielded: int = 0
    """Further replicas for which replicas of previous variants have the devices."""
    assigned: int | None = None
    """Replicas that a layout plan assigns, which has slices for as many once it is carried out."""
    start: timedelta
    """Expected time from a pod's binding until it is ready."""
    node_start: timedelta = timedelta()
    """Expected time until a node comes."""

    @property
    def bound(self) -> int:
        """Return the pods on nodes."""
        return self.ready + self.starting


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantMemory:
    """What the next split needs of earlier ones for a variant."""

    variant: str
    room_since: datetime | None = None
    """Since when a move to it would have saved cost."""
    backoff_from: datetime | None = None
    """When a pod of it was withdrawn that found no node in time."""
    backoff_until: datetime | None = None
    """No pods are tried until then, unless devices become free."""
    backoff_devices: int = 0
    """Replicas for which existing nodes had devices at that time, used or free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantChange:
    """Why a variant gets another number of replicas."""

    variant: str
    added: int
    """Replicas more; below 0 fewer."""
    reason: VariantReason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSplit:
    """Replicas by variant; the caller keeps the memory."""

    replicas: Mapping[str, int]
    bridging: Mapping[str, int] = field(default_factory=dict)
    """Those of them that stay only until others are ready."""
    memory: tuple[VariantMemory, ...] = ()
    changes: tuple[VariantChange, ...] = ()
    until: datetime = FOREVER
    """When the time alone may change it."""

    @property
    def lasting(self) -> int:
        """Return the replicas that stay once others are ready."""
        return sum(self.replicas.values()) - sum(self.bridging.values())
