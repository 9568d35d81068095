"""Which displaced pods may drain now."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.api.ref import Ref
from tessera.domain.repartition.actions import PoolService, Replica
from tessera.domain.repartition.capacity import (
    PoolCapacity,
    capacity_of,
    is_serving,
    planned_capacity,
    replica_capacity,
    required_capacity,
    serving_capacity,
    tolerance,
)

# A replica that cannot be evicted takes no requests for this long, then serves for as long, and so
# on: what keeps it may last.
BLOCKED_PERIOD = timedelta(minutes=10)


class BlockedEviction(NamedTuple):
    """A pod that could not be evicted."""

    message: str
    """What the API server said last."""
    since: datetime
    """When it was refused first."""

    def returns(self, at: datetime) -> bool:
        """Return whether the pod serves again, until its eviction is tried again."""
        return (at - self.since) // BLOCKED_PERIOD % 2 == 1


def wrong_profile_pods(services: Sequence[PoolService]) -> frozenset[Ref]:
    """Return the scheduled pods whose slice has another profile than the planned one."""
    return frozenset(replica.pod for replica in _wrong_profile_replicas(services))


def _wrong_profile_replicas(services: Sequence[PoolService]) -> Iterator[Replica]:
    for service in services:
        for replica in service.replicas if service.planned else ():
            if replica.node is not None and replica.profile not in (None, *service.planned):
                yield replica


def needs_extra_replica(replica: Replica) -> bool:
    """Return whether the pod's Deployment needs one replica more while this pod is displaced.

    A pod that neither serves nor finishes requests is lost without harm, and a terminating pod
    has left the count of its Deployment already.
    """
    return not replica.terminating and (replica.draining or is_serving(replica))


def displaced_by_profile(services: Sequence[PoolService]) -> tuple[frozenset[Ref], frozenset[Ref]]:
    """Return the displaced pods of pools without a rollout, and those of them that drain already.

    Without a rollout no further pod begins to drain.
    """
    replicas = [
        replica for replica in _wrong_profile_replicas(services) if needs_extra_replica(replica)
    ]
    return (
        frozenset(replica.pod for replica in replicas),
        frozenset(replica.pod for replica in replicas if replica.draining),
    )


def pods_to_drain(
    capacity: PoolCapacity,
    displaced: Collection[Ref],
    supply: Mapping[str, int],
    *,
    ready: Collection[Ref],
    on_removed_slices: Collection[Ref],
    overdue: Collection[Ref],
) -> frozenset[Ref]:
    """Return the displaced pods that drain already or may begin to.

    `supply` counts the free slices by profile. `ready` pods may begin to drain as far as their
    services keep enough capacity, pods `on_removed_slices` lose their slices, and `overdue` pods
    have waited long enough for a replacement.

    While a Deployment rolls out, its controller takes replicas that count as serving here: only
    overdue pods begin to drain then.
    """
    pods: set[Ref] = set()
    for service in capacity.affected_services(displaced):
        candidates = [
            replica
            for replica in service.replicas
            if replica.pod in displaced
            and (
                replica.draining
                or (replica.pod in ready and (not service.is_rolling_out or replica.pod in overdue))
            )
        ]
        # Without a replacement in sight, waiting for one would block the rollout for good.
        patient = capacity.replacement_expected(service, displaced, supply)
        pods.update(
            _drainable(
                service,
                candidates,
                on_removed_slices=on_removed_slices,
                overdue=overdue if patient else displaced,
            )
        )
    return frozenset(pods)


def _drainable(
    service: PoolService,
    candidates: Sequence[Replica],
    *,
    on_removed_slices: Collection[Ref],
    overdue: Collection[Ref],
) -> Iterator[Ref]:
    required = required_capacity(service)
    desired = max(required, planned_capacity(service))
    remaining = serving_capacity(service)
    leaving = (replica for replica in service.replicas if replica.pod in on_removed_slices)
    pending_loss = capacity_of(service, filter(is_serving, leaving))
    # Pods whose slices go come first: a unit waits for them. For the others nothing waits.
    for replica in sorted(
        candidates, key=lambda candidate: (candidate.pod not in on_removed_slices, candidate.pod)
    ):
        loss = replica_capacity(service, replica)
        if not is_serving(replica):
            # It adds nothing to the serving capacity, so its loss takes nothing away. What others
            # lost since it began to drain it gives back, while its last requests run.
            too_little = remaining < service.min_capacity - tolerance(service)
            if replica.can_return and too_little and not service.allows_downtime:
                remaining += loss
            else:
                yield replica.pod
            continue
        if replica.pod not in on_removed_slices:
            # Its slice stays, only the profile is wrong: it drains when the full desired capacity
            # is left without it and without all pods that have to leave for a unit.
            enough = remaining - pending_loss - loss >= desired - tolerance(service)
        else:
            # While a replacement is expected nothing below the desired capacity is given up; an
            # overdue pod may take the service down to minReplicas.
            minimum = required if replica.pod in overdue else desired
            enough = remaining - loss >= minimum - tolerance(service)
        if enough:
            remaining -= loss
            pending_loss -= loss if replica.pod in on_removed_slices else 0.0
            yield replica.pod
