"""What a turn does for one service, and when there is nothing to do."""

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from tessera.api.inference_service import InferenceServiceStatus
from tessera.domain.allotment import ServicePlan
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.drain import DRAINED_DELETION_COST
from tessera.domain.reasons import WithinBudget
from tessera.domain.snapshot import ProbeResult, Ref, Snapshot
from tessera.ports import ClusterObject
from tessera.resources import marks
from tessera.resources.kinds import CHILDREN, DEPLOYMENTS, Kind
from tessera.resources.manifest import Key, Manifest

KINDS = {kind.plural: kind for kind in CHILDREN}
AT_ONCE = 16
"""Services that are worked on at a time, and writing requests."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who pays for a service, how he stands, and what was refused to write of it."""

    view: BudgetView
    state: WithinBudget
    refused: list[str]


MadeOf: TypeAlias = tuple[
    ServicePlan, tuple[ClusterObject, ...], ProbeResult | None, tuple[str, WithinBudget] | None
]
"""All that the objects and the status of a service follow from."""


@dataclass(slots=True, kw_only=True)
class Work:
    """What a turn does for one service, and what became of it."""

    allotment: ServicePlan
    tenant: Tenant | None
    made_of: MadeOf
    problems: list[str]
    status: InferenceServiceStatus
    """As it is known to be written."""
    in_place: bool = True

    @property
    def ref(self) -> Ref:
        return self.allotment.service.ref


def comes_first(allotment: ServicePlan) -> bool:
    """The status says by which commit replicas are made before the first is: a successor could not
    tell it from one that nobody asked for."""
    pinned, told = allotment.pinned_revision.status, allotment.service.status.model
    return (
        allotment.workload is None
        and pinned is not None
        and (told is None or told.reason != pinned.reason)
    )


def unmarked(snapshot: Snapshot, allotment: ServicePlan) -> Iterable[tuple[Manifest, str | None]]:
    """Gates and deletion costs that are not yet as decided."""
    drain = allotment.drain
    for pod in allotment.pods:
        serving = pod.ref not in drain.draining
        if not pod.terminating and pod.serving is not serving:
            yield marks.gate(pod, snapshot.at, serving=serving), "status"
        done = pod.ref in drain.drained
        if not pod.terminating and done is not (pod.deletion_cost == DRAINED_DELETION_COST):
            yield marks.deletion_cost(pod, done=done), None


def superfluous(
    allotment: ServicePlan, wanted: Iterable[Manifest], existing: Iterable[ClusterObject]
) -> list[tuple[Kind, Key]]:
    """Objects of the service that are not wanted any more; none while nothing is decided."""
    if allotment.choice is None:
        return []
    keys = {manifest.key for manifest in wanted}
    return [
        (KINDS[seen.key.plural], seen.key)
        for seen in existing
        if seen.key not in keys
        and (
            seen.key.plural != DEPLOYMENTS.plural
            or Ref(seen.key.namespace, seen.key.name) in allotment.removable_deployments
        )
    ]


def same(made_of: MadeOf, before: MadeOf | None) -> bool:
    if before is None:
        return False
    allotment, existing, answer, paid = before
    return (
        made_of[0] is allotment
        and made_of[1] is existing
        and made_of[2] is answer
        and made_of[3] == paid
    )


async def all_of(steps: Iterable[Awaitable[None]]) -> None:
    """As many at once as there is room for; if one raises, the others are ended first.

    The steps are made one by one, so that none is left when the others end, and between two of
    them the loop serves whoever else waits: a large fleet is no reason for a late probe.
    """
    left = iter(steps)

    async def work() -> None:
        for step in left:
            await step
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
