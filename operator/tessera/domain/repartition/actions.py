"""What a reconcile cycle does about the layouts of one pool, and the services that it looks at."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.api.mig import MigStatus
from tessera.api.pool_reasons import LayoutReady
from tessera.api.reasons import StatusVerdict
from tessera.api.ref import Ref
from tessera.domain.mig_backends.backend import BackendRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A pod of a service, with what matters to repartitioning."""

    pod: Ref
    uid: str
    node: str | None
    profile: str | None
    """MIG profile of the slice that it holds or requests; None for whole GPUs."""
    ready: bool
    """It takes requests."""
    draining: bool
    """It is terminating or takes no new requests."""
    drained: bool
    """It takes no new requests, and its last request ended or the drain timeout passed."""
    can_return: bool = False
    """It drains, and its containers are ready."""
    terminating: bool = False
    """It has a deletion timestamp, so its Deployment no longer counts it."""
    drain_expired: bool = False
    """It has taken no new requests for as long as `spec.mig.drainDeadline` lets it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolService:
    """A service with replicas on the slices of a pool, or with slices planned there."""

    ref: Ref
    replicas: tuple[Replica, ...] = ()
    min_capacity: float
    """Capacity that has to stay Ready and not draining at every moment: minReplicas replicas, or
    all that there are while there are fewer."""
    capacity: Mapping[str, float] = field(default_factory=dict)
    """Capacity of one replica by profile, in the unit of `min_capacity`."""
    planned: Mapping[str, int] = field(default_factory=dict)
    """Replicas that it should have by planned profile in this pool; empty when it has none here."""
    previous_profile: str | None = None
    """Another profile that it still runs on, where replicas are added while no slice of a planned
    profile is free."""
    is_rolling_out: bool = False
    """A Deployment of it takes replicas away once others are Ready, or sees a new template."""
    allows_downtime: bool = False
    """It may fall below `min_capacity` where no slice is free for a replacement; never while it
    `keeps_slices`, since none would come."""
    keeps_slices: bool = False
    """The layout of the pool has no slice of its profile, and it fits nowhere else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolActions:
    """What a cycle does for one pool; `status` is written before anything else is done."""

    verdict: StatusVerdict[LayoutReady]
    status: MigStatus | None = None
    tainted_nodes: frozenset[str] = frozenset()
    """Nodes of the pool that carry the taint; it is removed from all others."""
    displaced: frozenset[Ref] = frozenset()
    """Pods whose slices go or are planned for another service. Each is replaced before it drains:
    its Deployment gets one replica more than desired."""
    surge_replicas: Mapping[Ref, int] = field(default_factory=dict)
    """Extra replicas of services on their previous profiles while no slice of the planned profile
    is free."""
    draining: frozenset[Ref] = frozenset()
    """Displaced pods that take no new requests from now on."""
    evictions: Mapping[Ref, str] = field(default_factory=dict)
    """Draining pods to evict now, with their uids."""
    deletions: Mapping[Ref, str] = field(default_factory=dict)
    """Draining pods that hold a unit for too long, with their uids: they are deleted, whatever
    their PodDisruptionBudget allows."""
    requests: Mapping[str, BackendRequest] = field(default_factory=dict)
    """Requests to the backend by node; nodes without one stay as they are."""
