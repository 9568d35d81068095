"""What a plan may take of the healthy replicas of a service, all of its Deployments together.

Split, grants, rollouts, repartitions and pools that go each leave the floor alone; here their sum
does. What would take more is withheld, and counted, since it is a defect of the planner.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.api.ref import Ref
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.service.current_objects import pods_of_workload


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taking:
    """What a plan takes of the healthy replicas of one Deployment."""

    ref: Ref
    healthy: int
    planned: int
    """Its replicas by the plan."""
    draining: Sequence[Ref]
    """Healthy ones that start to drain."""

    @property
    def replicas(self) -> int:
        # Its controller deletes those first that are not ready, or that are marked.
        return max(len(self.draining), self.healthy - self.planned, 0)

    def after(self, withheld: int) -> tuple[int, frozenset[Ref]]:
        """Return the planned replicas, and those that stay, if so many fewer are taken."""
        taken = self.replicas - withheld
        planned = max(self.planned, self.healthy - taken) if withheld else self.planned
        return planned, frozenset(self.draining[taken:])


def within_disruptions(
    service_plan: ServicePlan, *, replaces_one: bool, excused: frozenset[Ref]
) -> ServicePlan:
    """Return the plan without what it takes beyond the disruptions that are allowed.

    One more is allowed where it `replaces_one` and no replica of the floor is away. The `excused`
    ones go whatever the floor is, since the service allows downtime.
    """
    if not service_plan.disruptions.healthy:
        return service_plan
    takings = _takings(service_plan, excused)
    disruptions = service_plan.disruptions
    allowed = disruptions.allowed + (replaces_one and disruptions.allows_replacement())
    excess = sum(taking.replicas for taking in takings) - allowed
    if excess <= 0:
        return service_plan
    planned, stay, missing = dict[Ref, int](), set[Ref](), excess
    for taking in _cheapest_first(service_plan, takings):
        withheld = min(missing, taking.replicas)
        missing -= withheld
        planned[taking.ref], staying = taking.after(withheld)
        stay |= staying
    return _with_counts(service_plan, planned, stay, excess)


def _takings(service_plan: ServicePlan, excused: frozenset[Ref]) -> Sequence[_Taking]:
    planned = {
        variant.workload.ref: variant.drain.replicas
        for variant in service_plan.variants
        if variant.workload is not None
    }
    planned |= service_plan.previous_deployments
    planned |= dict.fromkeys(service_plan.removable_deployments, 0)
    healthy = service_plan.disruptions.healthy - excused
    draining = healthy.intersection(service_plan.drain.draining)
    takings = []
    for workload in service_plan.workloads:
        pods = pods_of_workload(service_plan.pods, workload)
        takings.append(
            _Taking(
                ref=workload.ref,
                healthy=sum(pod.ref in healthy for pod in pods),
                planned=planned.get(workload.ref, workload.replicas),
                draining=[pod.ref for pod in pods if pod.ref in draining],
            )
        )
    return takings


def _cheapest_first(service_plan: ServicePlan, takings: Sequence[_Taking]) -> Sequence[_Taking]:
    prices = {each.variant: each.hourly.nanos for each in service_plan.placement.choices}
    variants = {each.ref: each.variant for each in service_plan.workloads}
    return sorted(takings, key=lambda taking: (prices.get(variants[taking.ref], 0), taking.ref))


def _with_counts(
    service_plan: ServicePlan, planned: Mapping[Ref, int], stay: set[Ref], withheld: int
) -> ServicePlan:
    """Return a plan with other replicas of Deployments, of which some do not drain."""
    drain = service_plan.drain
    newest = {each.workload.ref for each in service_plan.variants if each.workload is not None}
    return replace(
        service_plan,
        withheld=withheld,
        is_moving=True,
        variants=tuple(
            replace(each, drain=replace(each.drain, replicas=planned[each.workload.ref]))
            if each.workload is not None
            else each
            for each in service_plan.variants
        ),
        drain=replace(
            drain,
            draining=tuple(ref for ref in drain.draining if ref not in stay),
            drained=tuple(ref for ref in drain.drained if ref not in stay),
        ),
        removable_deployments=tuple(
            ref for ref in service_plan.removable_deployments if not planned[ref]
        ),
        previous_deployments={
            workload.ref: planned[workload.ref]
            for workload in service_plan.workloads
            if workload.ref not in newest
            and planned[workload.ref] != workload.replicas
            and (planned[workload.ref] or workload.ref not in service_plan.removable_deployments)
        },
    )
