"""Which of the doomed pods may stop taking requests now."""

from collections.abc import Collection, Mapping, Sequence

from tessera.api.ref import Ref
from tessera.domain.repartition.capacity import (
    PoolCapacity,
    is_serving,
    replica_capacity,
    required_capacity,
    serving_capacity,
    tolerance,
)
from tessera.domain.repartition.orders import PoolService, Replica


def wrong_profile_pods(services: Sequence[PoolService]) -> frozenset[Ref]:
    """Pods on slices of another profile than the planned one."""
    return frozenset(
        replica.pod
        for service in services
        for replica in service.replicas
        if service.profile is not None
        and replica.node is not None
        and replica.profile is not None
        and replica.profile != service.profile
    )


def needs_extra_replica(replica: Replica) -> bool:
    """Its Deployment has to have a replica more for it: it serves, or ends its last requests."""
    return not replica.terminating and (replica.draining or is_serving(replica))


def displaced_by_profile(services: Sequence[PoolService]) -> tuple[frozenset[Ref], frozenset[Ref]]:
    """Outgrown pods for which their Deployments have to stand while nobody is told to leave, and
    those of them that were told before."""
    wrong_profile = wrong_profile_pods(services)
    replicas = [
        replica
        for service in services
        for replica in service.replicas
        if replica.pod in wrong_profile
    ]
    return (
        frozenset(replica.pod for replica in replicas if needs_extra_replica(replica)),
        frozenset(
            replica.pod for replica in replicas if needs_extra_replica(replica) and replica.draining
        ),
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
    """Pods that were told to leave, and those that may be told now.

    Of the doomed ones, `may` are those whose turn it is. As long as a replacement is on its way
    the service keeps all that it should have; else, and for `hurried` pods, its floor is enough.
    Pods whose slices stay leave last, when what is left without those of `going` is all that it
    should have.
    """
    pods: set[Ref] = set()
    for service in capacity.affected_services(displaced):
        replacement_expected = capacity.replacement_expected(service, displaced, supply)
        remaining, required = serving_capacity(service), required_capacity(service)
        desired = max(
            required, service.desired_replicas * service.capacity.get(service.profile or "", 0.0)
        )
        pending_loss = sum(
            replica_capacity(service, candidate)
            for candidate in service.replicas
            if candidate.pod in on_removed_slices and is_serving(candidate)
        )
        on_kept_slices = [
            candidate for candidate in service.replicas if candidate.pod not in on_removed_slices
        ]
        for replica in sorted(
            service.replicas, key=lambda candidate: (candidate in on_kept_slices, candidate.pod)
        ):
            if replica.pod not in displaced or not (replica.draining or replica.pod in ready):
                continue
            if not is_serving(replica):
                pods.add(replica.pod)
                continue
            loss = replica_capacity(service, replica)
            if replica.pod not in on_removed_slices:
                enough = remaining - pending_loss - loss >= desired - tolerance(service)
            else:
                minimum = (
                    desired if replacement_expected and replica.pod not in overdue else required
                )
                enough = remaining - loss >= minimum - tolerance(service)
            if enough:
                remaining -= loss
                pending_loss -= loss if replica.pod in on_removed_slices else 0.0
                pods.add(replica.pod)
    return frozenset(pods)
