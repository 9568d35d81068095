"""The work of a cycle for one service, and when there is none."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from tessera.api.api_resource import ApiResource
from tessera.api.budget_reasons import WithinBudget
from tessera.api.reasons import Accepted
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.health.readiness import was_ready
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.observed.snapshot import Pod, ProbeResult, Ref, Snapshot
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.rollout.drain import DRAINED_DELETION_COST, DrainPlan
from tessera.ports import ClusterObject
from tessera.reconcile.writing.write_order import Stage, WorkKey, work_key
from tessera.resources import pod_patches as marks
from tessera.resources.api_resources import AUTOSCALING, CHILDREN, DEPLOYMENTS
from tessera.resources.manifest import ObjectKey, ObjectManifest

CHILD_KINDS = {kind.plural: kind for kind in (*CHILDREN, *AUTOSCALING)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prerequisites:
    """What the services and batches of a namespace rely on: its budget and its shared objects."""

    view: BudgetView | None = None
    of_budget: Sequence[str] = ()
    """What was refused when the budget was written last."""
    of_shared: Sequence[str] = ()
    """What was refused when the shared objects were written last."""
    keys: tuple[WorkKey, ...] = ()
    """The work before anything that costs money or needs shared objects."""

    @property
    def refusals(self) -> list[str]:
        return [*self.of_shared, *self.of_budget]

    @property
    def may_add(self) -> bool:
        """Return whether what was granted may start: with a record of the spend or an override."""
        return not self.of_budget or (self.view is not None and self.view.override is not None)


# Returns those of a namespace, as of when it is called.
FindPrerequisites: TypeAlias = Callable[[str], Prerequisites]
# All inputs of the objects and the status of a service.
ServiceInputs: TypeAlias = tuple[
    ServicePlan, tuple[ClusterObject, ...], ProbeResult | None, tuple[str, WithinBudget] | None
]


@dataclass(slots=True, kw_only=True)
class ServiceWork:
    """The work of a cycle for one service, and its results."""

    snapshot: Snapshot
    service_plan: ServicePlan
    inputs: ServiceInputs
    prerequisites: Prerequisites = Prerequisites()
    problems: list[str] = field(default_factory=list)
    in_place: bool = True

    @property
    def may_change_deployments(self) -> bool:
        """Whether more than their replicas may change."""
        return self.prerequisites.may_add and not self.service_plan.holds_rollout

    @property
    def ref(self) -> Ref:
        return self.service_plan.service.ref

    @property
    def status_key(self) -> WorkKey:
        return work_key(INFERENCE_SERVICES, self.ref, Stage.STATUS)


def outdated_marks(
    at: datetime, pods: Iterable[Pod], drain: DrainPlan
) -> Iterable[tuple[ObjectManifest, str | None]]:
    """Yield manifests for readiness gates and marks that differ from the decision."""
    for pod in pods:
        leaving, drained = pod.ref in drain.draining, pod.ref in drain.drained
        serving = not leaving
        if not pod.terminating and pod.serving is not serving:
            yield marks.serving_gate(pod, at, serving=serving), "status"
        current = pod.leaving, pod.deletion_cost == DRAINED_DELETION_COST
        if not pod.terminating and current != (leaving, drained):
            yield marks.leaving_marks(pod, leaving=leaving, drained=drained), None


def resizes(work: ServiceWork) -> Iterable[tuple[Ref, int]]:
    """Return the Deployments whose replicas alone are set; without a record only reductions."""
    variants, planned = work.service_plan.variants, dict(work.service_plan.previous_deployments)
    for variant in variants:
        if variant.workload is not None and not work.may_change_deployments:
            planned[variant.workload.ref] = variant.replicas
    running = {current.ref: current.replicas for current in work.service_plan.workloads}
    if work.may_change_deployments:
        return [(ref, count) for ref, count in planned.items() if count != running.get(ref)]
    return [
        (ref, count)
        for ref, count in planned.items()
        if count < running.get(ref, 0) or (work.prerequisites.may_add and count != running.get(ref))
    ]


def obsolete_objects(
    service_plan: ServicePlan,
    manifests: Iterable[ObjectManifest],
    existing: Iterable[ClusterObject],
) -> list[tuple[ApiResource, ObjectKey]]:
    """Return the objects of the service that are no longer needed; none while undecided."""
    unservable = service_plan.accepted.reason is Accepted.INVALID_NAME
    if service_plan.choice is None and not unservable:
        return []
    keys = {manifest.key for manifest in manifests}
    return [
        (CHILD_KINDS[observed.key.plural], observed.key)
        for observed in existing
        if observed.key not in keys
        # The children of a namesake that was deleted go with it.
        and observed.controller in (None, service_plan.service.uid)
        and (
            unservable
            or observed.key.plural != DEPLOYMENTS.plural
            or Ref(observed.key.namespace, observed.key.name) in service_plan.removable_deployments
        )
    ]


def inputs_unchanged(inputs: ServiceInputs, previous: ServiceInputs | None) -> bool:
    if previous is None:
        return False
    service_plan, existing, probe_result, funding = previous
    return (
        inputs[0] is service_plan
        and inputs[1] is existing
        and (inputs[2] is probe_result or _repeats_success(service_plan, probe_result, inputs[2]))
        and inputs[3] == funding
    )


def _repeats_success(
    service_plan: ServicePlan, previous: ProbeResult | None, result: ProbeResult | None
) -> bool:
    """Return whether one more completion of a ready service succeeded."""
    return (
        previous is not None
        and result is not None
        and previous.problem is None
        and result.problem is None
        and was_ready(service_plan.service)
    )
