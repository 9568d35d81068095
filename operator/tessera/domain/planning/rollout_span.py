"""How long the plan of a service in a rollout holds, while no object of it changes.

Most cycles of a rollout wait for a replica to start or to drain. Such a service is planned again
when one of its inputs changes, when something that its rollout reads beside them does, or when a
time limit of one of its replicas is reached; everything else that moves, in each cycle.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from tessera.domain.incremental import FOREVER, Until
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.planning.inputs import ServicePlanInputs
from tessera.domain.planning.rollout_steps import waiting_pod
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.rollout.devices import ready_nodes, usable_nodes
from tessera.domain.rollout.drain import NO_DISPLACEMENT
from tessera.domain.rollout.strategy import SURGE_TIMEOUT
from tessera.domain.rollout.template_rollout import START_TOLERANCE
from tessera.domain.scaling.starts import expected_lead


def until_it_moves(
    service_plan: ServicePlan, inputs: ServicePlanInputs, at: datetime
) -> Until[ServicePlan]:
    """Return the plan of a service, with how long it holds."""
    if not service_plan.is_moving:
        return Until(service_plan)
    if not _only_rolls_out(service_plan, inputs):
        return Until(service_plan, at)
    later = (moment for moment in _time_limits(service_plan) if moment > at)
    return Until(service_plan, min(later, default=FOREVER), None, _reader(service_plan, inputs))


def _only_rolls_out(service_plan: ServicePlan, inputs: ServicePlanInputs) -> bool:
    """Return whether nothing moves but replicas of new templates, and those that they replace."""
    variants = {variant.choice.variant for variant in service_plan.variants}
    grant, preparation = inputs.grant, service_plan.preparation
    return (
        (grant is None or grant.shortage is None)
        and inputs.displacement == NO_DISPLACEMENT
        and (preparation is None or not preparation.pending)
        and service_plan.pinned_revision.query is None
        and not service_plan.contested
        and not service_plan.withheld
        and all(workload.variant in variants for workload in service_plan.workloads)
        and _keeps_its_floor(service_plan)
    )


def _keeps_its_floor(service_plan: ServicePlan) -> bool:
    """Return whether only its own replicas decide what the rollout of a service keeps.

    That is not so while its status does not say it yet, nor where a replica had no device when the
    rollout began: each device that is free counts then.
    """
    floor, service = service_plan.rollout_floor, service_plan.service
    if floor is None:
        return True
    is_written = service.ref != service.ref.base or floor.status == service.status.rollout_floor
    if not is_written or floor.missing or floor.replicas < service_plan.desired_pods:
        return False
    return floor.status.step is None or any(pod.is_stopping for pod in service_plan.pods)


def _time_limits(service_plan: ServicePlan) -> Sequence[datetime]:
    """Return when the time alone may end what a rollout waits for."""
    spec, pods = service_plan.service.spec, service_plan.pods
    assert spec is not None  # noqa: S101 - it rolls out
    recorded = service_plan.service.status.start
    return [
        *(pod.created + SURGE_TIMEOUT for pod in pods if pod.unschedulable),
        *(
            pod.bound + expected_lead(pods, recorded, pod.variant) + START_TOLERANCE
            for pod in pods
            if pod.bound is not None and not pod.takes_requests
        ),
        *(
            pod.draining_since + spec.drain.timeout
            for pod in pods
            if pod.draining_since is not None
        ),
    ]


def _reader(service_plan: ServicePlan, inputs: ServicePlanInputs) -> Callable[..., object]:
    """Return the function that reads what the rollout of a service depends on of the snapshot."""
    service, pods = service_plan.service.ref, service_plan.pods
    offers = [count.choice.offer for count in inputs.proposal.counts]
    draining = [pod.ref for pod in pods if pod.draining_since is not None]
    # Replicas with the fewest requests are drained.
    ranked = [pod.ref for pod in pods] if service_plan.drain.draining else []

    def read(*, snapshot: Snapshot, **_: object) -> object:
        readings = snapshot.readings.pods if snapshot.readings is not None else {}
        return (
            [usable_nodes(snapshot.nodes, offer) for offer in offers],
            ready_nodes("", snapshot.nodes),
            [waiting_pod(service, offer, snapshot) for offer in offers],
            [snapshot.in_flight.get(ref) for ref in draining],
            [readings.get(ref) for ref in ranked],
        )

    return read
