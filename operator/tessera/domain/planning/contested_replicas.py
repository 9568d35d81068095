"""The Deployments of a service whose replicas somebody else writes, and whether that may stand."""

from collections.abc import Iterable
from datetime import datetime

from tessera.api.service_status import ReplicaConflict
from tessera.domain.observed.snapshot import Workload
from tessera.domain.placement.variant_cost import capacity_of
from tessera.domain.planning.inputs import ServicePlanInputs
from tessera.domain.planning.rollout_draft import RolloutDraft
from tessera.domain.rollout.replica_conflict import (
    ContestedReplicas,
    WrittenReplicas,
    holds_rollout,
    is_written_by_others,
    leaves_enough,
    next_conflict,
    remembered_conflict,
)
from tessera.domain.rollout.template_rollout import RolloutCounts


def is_contested(inputs: ServicePlanInputs, drafts: Iterable[RolloutDraft], at: datetime) -> bool:
    """Return whether somebody else writes the replicas of an older template of a service.

    Whatever leaves there is started again, on the device that was freed for its successor.
    """
    listed = inputs.known_conflicts.listed
    workloads = (each.workload for draft in drafts for each in draft.rollout.older)
    return any(
        holds_rollout(
            remembered_conflict(
                _last_conflict(inputs, workload), workload, listed, at, is_older=True
            ),
            workload,
            listed,
            at,
        )
        for workload in workloads
    )


def contested_replicas(
    inputs: ServicePlanInputs, draft: RolloutDraft, counts: RolloutCounts, at: datetime
) -> tuple[ContestedReplicas, ...]:
    """Return the Deployments of a variant whose replicas somebody else writes, the newest first."""
    workloads = [(each.workload, counts.older[each.workload.ref]) for each in draft.rollout.older]
    newest, listed = draft.template.workload, inputs.known_conflicts.listed
    if newest is not None:
        workloads.insert(0, (newest, counts.newest))
    return tuple(
        ContestedReplicas(
            workload=workload,
            desired=desired,
            conflict=conflict,
            is_older=workload is not newest,
            listed=listed,
        )
        for workload, desired in workloads
        if (
            conflict := next_conflict(
                _last_conflict(inputs, workload),
                workload,
                desired,
                at,
                may_stand=_may_stand(inputs, draft, workload, desired, at),
                is_older=workload is not newest,
                listed=listed,
            )
        )
        is not None
    )


def _last_conflict(inputs: ServicePlanInputs, workload: Workload) -> ReplicaConflict | None:
    return inputs.known_conflicts.of_workloads[inputs.proposal.objects.workloads.index(workload)]


def _may_stand(
    inputs: ServicePlanInputs,
    draft: RolloutDraft,
    workload: Workload,
    desired: int,
    at: datetime,
) -> bool:
    if workload.replicas >= desired:
        # A closed budget grants nothing, not even for a minute.
        return inputs.grant is None or not inputs.grant.is_closed
    # While a template changes, the counts of its Deployments belong together.
    return not draft.rollout.older and _may_be_fewer(inputs, at)


def _may_be_fewer(inputs: ServicePlanInputs, at: datetime) -> bool:
    """Return whether what others write on its Deployments leaves a service what it needs."""
    counts, grant = inputs.proposal.counts, inputs.grant
    # Those that stay until others are ready are beyond what is needed, and serve instead of these.
    if any(count.bridging for count in counts):
        return False
    decided = [count.replicas for count in counts]
    if grant is not None and grant.shortage is not None:
        decided = list(grant.counts)
    written: dict[str, int] = {}
    foreign = set[str]()
    workloads = inputs.proposal.objects.workloads
    for workload, last in zip(workloads, inputs.known_conflicts.of_workloads, strict=True):
        written[workload.variant] = written.get(workload.variant, 0) + workload.replicas
        if is_written_by_others(workload, last, at):
            foreign.add(workload.variant)
    return leaves_enough(
        inputs.proposal.need,
        [
            WrittenReplicas(
                capacity=capacity_of(choice),
                is_firm=choice.offer.tier != "Spot",
                decided=replicas,
                written=written[choice.variant] if choice.variant in foreign else replicas,
            )
            for choice, replicas in zip((count.choice for count in counts), decided, strict=True)
        ],
    )
