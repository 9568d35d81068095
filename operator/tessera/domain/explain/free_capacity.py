"""The pools of a plan, and the capacity that a service requires."""

from tessera.domain.hardware.pools import PoolView
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan


def pool_view(plan: Plan, name: str) -> PoolView:
    """Return the view of a pool that the plan has."""
    return next(view for view in plan.pools if view.pool.name == name)


def required_replicas(service_plan: ServicePlan) -> int:
    """Return the number of replicas for which a service is placed."""
    spec = service_plan.service.spec
    if spec is None or spec.fixed_replicas is not None:
        return max(1, service_plan.scale.replicas)
    return spec.scaling.floor
