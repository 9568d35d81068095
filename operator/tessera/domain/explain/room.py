"""How much room a pool has, and for how many replicas a service needs it."""

from tessera.domain.allotment import ServicePlan
from tessera.domain.draft import scaling_of
from tessera.domain.money import Money
from tessera.domain.plan import Plan
from tessera.domain.pools import Offer, PoolView
from tessera.domain.snapshot import Snapshot


def free(snapshot: Snapshot, view: PoolView, offer: Offer) -> int:
    """Replicas of this form for which the ready nodes have devices that no engine holds.

    Only pods of Tessera are seen; what others hold counts as free.
    """
    hardware = offer.hardware
    held = sum(
        pod.devices.get(hardware.resource, 0)
        for pod in snapshot.pods
        if pod.node in view.members and pod.ended is None
    )
    return max(0, offer.replicas - -(-held // hardware.devices))


def view_of(plan: Plan, name: str) -> PoolView:
    return next(view for view in plan.pools if view.pool.name == name)


def floor_of(allotment: ServicePlan) -> int:
    """Replicas for which hardware was sought when the service was placed."""
    spec = allotment.service.spec
    if spec is None or spec.replicas is not None:
        return max(1, allotment.scale.replicas)
    return scaling_of(spec).min_replicas


def precise(amount: Money) -> str:
    """To a hundredth of a cent."""
    return f"{amount.rounded(4)} {amount.currency}"
