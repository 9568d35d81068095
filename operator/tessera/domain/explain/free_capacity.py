"""Free capacity of a pool, and the capacity that a service requires."""

from tessera.domain.hardware.pools import HardwareOffer, PoolView
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.plan import Plan
from tessera.domain.service_plan import ServicePlan


def free_replicas(snapshot: Snapshot, view: PoolView, offer: HardwareOffer) -> int:
    """Return for how many replicas on an offer the ready nodes have free devices."""
    hardware = offer.hardware
    used_devices = sum(
        pod.devices.get(hardware.resource, 0)
        for pod in snapshot.pods
        if pod.node in view.node_names and pod.ended is None
    )
    return max(0, offer.replicas - -(-used_devices // hardware.devices))


def pool_view(plan: Plan, name: str) -> PoolView:
    """Return the view of a pool that the plan has."""
    return next(view for view in plan.pools if view.pool.name == name)


def required_replicas(service_plan: ServicePlan) -> int:
    """Return the number of replicas for which a service is placed."""
    spec = service_plan.service.spec
    if spec is None or spec.fixed_replicas is not None:
        return max(1, service_plan.scale.replicas)
    return spec.scaling.floor
