"""How much room a pool has, and for how many replicas a service needs it."""

from tessera.domain.hardware.pools import HardwareOffer, PoolView
from tessera.domain.money import Money
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.plan import Plan
from tessera.domain.service.proposal import scaling_of
from tessera.domain.service_plan import ServicePlan


def free_replicas(snapshot: Snapshot, view: PoolView, offer: HardwareOffer) -> int:
    """Replicas of this form for which the ready nodes have devices that no engine holds.

    Only pods of Tessera are seen; what others hold counts as free.
    """
    hardware = offer.hardware
    used_devices = sum(
        pod.devices.get(hardware.resource, 0)
        for pod in snapshot.pods
        if pod.node in view.node_names and pod.ended is None
    )
    return max(0, offer.replicas - -(-used_devices // hardware.devices))


def pool_view(plan: Plan, name: str) -> PoolView:
    return next(view for view in plan.pools if view.pool.name == name)


def required_replicas(allotment: ServicePlan) -> int:
    """Replicas for which hardware was sought when the service was placed."""
    spec = allotment.service.spec
    if spec is None or spec.replicas is not None:
        return max(1, allotment.scale.replicas)
    return scaling_of(spec).min_replicas


def format_amount(amount: Money) -> str:
    """To a hundredth of a cent."""
    return f"{amount.rounded(4)} {amount.currency}"
