"""A variant of a service before its rollout is decided: its Deployments, and what they have."""

from collections.abc import Sequence
from typing import NamedTuple

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.observed.snapshot import ObservedService, Pod, Snapshot
from tessera.domain.planning.inputs import ServicePlanInputs
from tessera.domain.rollout.devices import free_replicas, usable_nodes
from tessera.domain.rollout.template_rollout import OlderTemplate, TemplateRollout
from tessera.domain.scaling.starts import expected_lead
from tessera.domain.service.current_objects import pods_of_variant, pods_of_workload
from tessera.domain.service.proposal import guaranteed_replicas
from tessera.domain.service.template_version import (
    TemplateDecision,
    decide_template,
    template_digest,
)
from tessera.domain.service.variant_counts import VariantCount


class RolloutDraft(NamedTuple):
    """A variant before its rollout is decided."""

    variant_count: VariantCount
    template: TemplateDecision
    rollout: TemplateRollout

    @property
    def lasting(self) -> int:
        """Return the desired replicas that stay once others are ready."""
        return self.rollout.desired - min(self.variant_count.bridging, self.rollout.desired)

    @property
    def has_surplus(self) -> bool:
        """Return whether it serves with a replica beyond those that last."""
        return self.rollout.ready > self.variant_count.lasting

    @property
    def replaces_none(self) -> bool:
        """Return whether no replica of an older template serves."""
        older = self.rollout.older
        return bool(older) and not any(each.ready for each in older)

    @property
    def ready_that_stay(self) -> int:
        ready = self.rollout.ready + sum(each.ready for each in self.rollout.older)
        return min(ready, self.rollout.desired)


def draft_variant(
    inputs: ServicePlanInputs,
    spec: InferenceServiceSpec,
    count: VariantCount,
    snapshot: Snapshot,
) -> RolloutDraft:
    objects, choice = inputs.proposal.objects, count.choice
    pods = pods_of_variant(objects.pods, choice)
    workloads = objects.workloads_of(choice.variant)
    first = [
        each
        for each in workloads
        if not each.replicas and not each.template_digest and not pods_of_workload(pods, each)
    ]
    template = decide_template(
        inputs.newest_template,
        inputs.proposal.service,
        spec,
        choice,
        workloads,
        unused=next(iter(first), None),
    )
    workload, usable, free = template.workload, frozenset[str](), 0
    if any(each is not workload for each in workloads):
        usable = usable_nodes(snapshot.nodes, choice.offer)
        free = sum(free_replicas(snapshot.nodes, snapshot.pods, choice.offer).values())
    older = [
        OlderTemplate(workload=each, pods=pods_of_workload(pods, each), usable_nodes=usable)
        for each in workloads
        if each is not workload
    ]
    others = {pod.ref for each in older for pod in each.pods}
    rollout = TemplateRollout(
        workload=workload,
        pods=[pod for pod in pods if pod.ref not in others],
        older=older,
        desired=_remaining_replicas(inputs, count, pods),
        at=snapshot.at,
        free=free,
        has_capacity=choice.variant in inputs.with_surge_capacity,
        # Those within the minimum would need a new grant if they left first.
        is_paid=choice.variant not in inputs.unpaid_surges or _are_all_guaranteed(inputs, spec),
        has_fallback=bool(older)
        and older[0].workload is workloads[0]
        and _was_complete(inputs.proposal.service, older[0]),
    )
    return RolloutDraft(count, template, rollout)


def _are_all_guaranteed(inputs: ServicePlanInputs, spec: InferenceServiceSpec) -> bool:
    """Return whether all desired replicas are within the minimum that no budget takes."""
    grant = inputs.grant
    desired = (
        [count.replicas for count in inputs.proposal.counts] if grant is None else grant.counts
    )
    return sum(desired) <= guaranteed_replicas(spec)


def _was_complete(service: ObservedService, older: OlderTemplate) -> bool:
    """Return whether all replicas of a variant were of a Deployment's template at a time.

    Where no status says so, as one that was lost, what serves counts.
    """
    workload, digest = older.workload, older.workload.template_digest
    templates = service.status.templates
    if not any(each.complete for each in templates if each.variant == workload.variant):
        return older.ready > 0
    if workload.record is not None:
        digest = template_digest(workload.record)
    return digest in {each.complete for each in templates}


def _remaining_replicas(inputs: ServicePlanInputs, count: VariantCount, pods: Sequence[Pod]) -> int:
    """Return the replicas of a variant that it has beside those whose slices are removed.

    Those that stay until others are ready need no replacement there. While such replicas drain, no
    other variant gives up any, since capacity was judged with them.
    """
    displacement = inputs.displacement
    displaced = sum(pod.ref in displacement.displaced for pod in pods)
    replicas = count.replicas - min(count.bridging, count.replicas, displaced)
    if len(inputs.proposal.counts) > 1 and displacement.draining:
        serving = sum(
            pod.takes_requests and pod.ref not in displacement.displaced and not pod.terminating
            for pod in pods
        )
        replicas = max(replicas, serving)
    return replicas


def is_withdrawn(inputs: ServicePlanInputs, draft: RolloutDraft) -> bool:
    """Return whether the newest template of a variant did not become ready in time."""
    if not draft.rollout.older:
        return False
    objects, status = inputs.proposal.objects, inputs.proposal.service.status
    variant, digest = draft.variant_count.choice.variant, draft.template.digest
    reported = [each.withdrawn for each in status.templates if each.variant == variant]
    if digest in inputs.withdrawn or digest in reported:
        return True
    if any(each.complete == digest for each in status.templates):
        return False
    last_started = status.start.pod if status.start is not None else None
    lead = expected_lead(objects.pods, status.start, variant)
    return draft.rollout.is_overdue(lead, last_started)
