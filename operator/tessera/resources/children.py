"""Every object that a plan wants to exist."""

from collections import defaultdict
from collections.abc import Iterator

from tessera.domain.batch.facts import Batch
from tessera.domain.plan import Allotment, Plan
from tessera.domain.snapshot import Service
from tessera.resources.deployment import deployment
from tessera.resources.errand import claim
from tessera.resources.manifest import Manifest
from tessera.resources.namespace import (
    account,
    batch_account,
    batch_fence,
    batch_isolation,
    isolation,
    monitor,
)
from tessera.resources.service import disruption_budget, front

_BUDGETED = 2
"""From so many replicas on a disruption budget helps; with one it would block every node drain."""


def of_service(allotment: Allotment) -> tuple[Manifest, ...]:
    """The objects of one service; none while there is nothing decided for it."""
    choice, spec = allotment.choice, allotment.service.spec
    if choice is None or spec is None:
        return ()
    told = [front(allotment.service)]
    if spec.model.cache.type == "pvc":
        told.append(claim(allotment.service, spec))
    if allotment.preparation is None or allotment.preparation.unfetched is None:
        told.append(deployment(allotment, spec, choice))
    if allotment.scale.replicas >= _BUDGETED:
        told.append(disruption_budget(allotment.service))
    return tuple(told)


def made_of(allotment: Allotment) -> tuple[object, ...]:
    """All that the objects of a service depend on: equal parts make equal objects."""
    service = allotment.service
    return (
        service.uid,
        service.spec,
        allotment.platform,
        allotment.choice,
        allotment.preparation is not None and allotment.preparation.unfetched is not None,
        allotment.drain.keep,
        allotment.surge,
        allotment.scale.replicas >= _BUDGETED,
    )


def of_namespaces(
    plan: Plan, *, visitors: tuple[str, ...], monitored: bool
) -> Iterator[tuple[str, tuple[Manifest, ...]]]:
    """The shared objects of every namespace in which something is placed; the first visitor is the
    operator."""
    owners: dict[str, list[Service | Batch]] = defaultdict(list)
    for ref in sorted(plan.allotments):
        owners[ref.namespace].append(plan.allotments[ref].service)
    placed = {
        ref.namespace
        for ref, one in plan.allotments.items()
        if one.choice is not None or (one.preparation and one.preparation.errand)
    }
    batches: dict[str, list[Batch]] = defaultdict(list)
    for ref in sorted(plan.living):
        batches[ref.namespace].append(plan.batches[ref].batch)
    for namespace in sorted(placed | batches.keys()):
        found = (*owners[namespace], *batches[namespace])
        told = [account(found), isolation(found, visitors)]
        if monitored:
            told.append(monitor(found))
        if mine := batches[namespace]:
            told += [batch_account(mine), batch_fence(mine), batch_isolation(mine, visitors[0])]
        yield namespace, tuple(told)
