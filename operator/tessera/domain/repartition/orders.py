"""What a turn does about the layouts of one pool."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.api.mig import MigStatus
from tessera.api.reasons import LayoutReady, StatusVerdict
from tessera.api.ref import Ref
from tessera.domain.mig_backends.backend import BackendRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A pod of a service, as far as repartitioning looks at it."""

    pod: Ref
    uid: str
    node: str | None
    profile: str | None
    """Of the slice that it holds or asks for; None for whole GPUs."""
    ready: bool
    """It takes requests and is not told to stop."""
    draining: bool
    """It was told to stop."""
    drained: bool
    """It takes nothing new, and its last request has ended or its time is over."""
    terminating: bool = False
    """It ends; its Deployment no longer counts it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolService:
    """A service with replicas on the slices of a pool, or with slices planned for it."""

    ref: Ref
    replicas: tuple[Replica, ...] = ()
    min_capacity: float
    """So much capacity is Ready and not leaving at every moment, as far as it is there at all."""
    capacity: Mapping[str, float] = field(default_factory=dict)
    """Of one replica, by profile, in the unit of the floor."""
    desired_replicas: int = 0
    """Replicas that it should have, of its planned profile."""
    profile: str | None = None
    """Its planned profile in this pool; None when it has none here."""
    previous_profile: str | None = None
    """Another profile that it still runs on: where nothing planned is free it is replaced there."""
    allows_downtime: bool = False
    """It may fall below its floor where there is no room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolActions:
    """For one pool."""

    verdict: StatusVerdict[LayoutReady]
    status: MigStatus | None = None
    tainted_nodes: frozenset[str] = frozenset()
    """Nodes of the pool that carry the taint; the others do not."""
    displaced: frozenset[Ref] = frozenset()
    """Pods whose slices go or are another service's: each is replaced first, by one replica more of
    its Deployment than are wanted."""
    surge_replicas: Mapping[Ref, int] = field(default_factory=dict)
    """Replicas that services need besides on their former profiles, so long as nothing planned is
    free for them."""
    draining: frozenset[Ref] = frozenset()
    """Of them, those that take no more requests from now on."""
    evictions: Mapping[Ref, str] = field(default_factory=dict)
    """Of them, those to be evicted now, with their uids."""
    requests: Mapping[str, BackendRequest] = field(default_factory=dict)
    """By node; nodes without one are left as they are."""
