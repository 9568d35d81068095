"""Which of the doomed pods may stop taking requests now."""

from collections.abc import Collection, Mapping, Sequence

from tessera.domain.ref import Ref
from tessera.domain.repartition.orders import Replica, Tenant
from tessera.domain.repartition.room import Room, has, keeps, serves, slack, speed


def outgrown(tenants: Sequence[Tenant]) -> frozenset[Ref]:
    """Pods on slices of another profile than the planned one."""
    return frozenset(
        one.pod
        for tenant in tenants
        for one in tenant.replicas
        if tenant.profile is not None
        and one.node is not None
        and one.profile is not None
        and one.profile != tenant.profile
    )


def stands(replica: Replica) -> bool:
    """Its Deployment has to have a replica more for it: it serves, or ends its last requests."""
    return not replica.deleted and (replica.leaving or serves(replica))


def kept_up(tenants: Sequence[Tenant]) -> tuple[frozenset[Ref], frozenset[Ref]]:
    """Outgrown pods for which their Deployments have to stand while nobody is told to leave, and
    those of them that were told before."""
    outgrew = outgrown(tenants)
    found = [one for tenant in tenants for one in tenant.replicas if one.pod in outgrew]
    return (
        frozenset(one.pod for one in found if stands(one)),
        frozenset(one.pod for one in found if stands(one) and one.leaving),
    )


def told(
    room: Room,
    doomed: Collection[Ref],
    supply: Mapping[str, int],
    *,
    may: Collection[Ref],
    going: Collection[Ref],
    hurried: Collection[Ref],
) -> frozenset[Ref]:
    """Pods that were told to leave, and those that may be told now.

    Of the doomed ones, `may` are those whose turn it is. As long as a replacement is on its way
    the service keeps all that it should have; else, and for `hurried` pods, its floor is enough.
    Pods whose slices stay leave last, when what is left without those of `going` is all that it
    should have.
    """
    found: set[Ref] = set()
    for tenant in room.concerned(doomed):
        hoped = room.hoped(tenant, doomed, supply)
        left, floor = has(tenant), keeps(tenant)
        full = max(floor, tenant.wanted * tenant.capacity.get(tenant.profile or "", 0.0))
        ahead = sum(
            speed(tenant, one) for one in tenant.replicas if one.pod in going and serves(one)
        )
        last = [one for one in tenant.replicas if one.pod not in going]
        for one in sorted(tenant.replicas, key=lambda one: (one in last, one.pod)):
            if one.pod not in doomed or not (one.leaving or one.pod in may):
                continue
            if not serves(one):
                found.add(one.pod)
                continue
            loss = speed(tenant, one)
            if one.pod not in going:
                enough = left - ahead - loss >= full - slack(tenant)
            else:
                least = full if hoped and one.pod not in hurried else floor
                enough = left - loss >= least - slack(tenant)
            if enough:
                left -= loss
                ahead -= loss if one.pod in going else 0.0
                found.add(one.pod)
    return frozenset(found)
