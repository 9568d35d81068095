"""Every object that a plan wants to exist."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from tessera.domain.allotment import ServicePlan
from tessera.domain.batch.allotment import BatchAllotment
from tessera.domain.batch.names import BATCH_ROLE
from tessera.domain.ref import Ref
from tessera.resources.deployment import deployment
from tessera.resources.errand import claim
from tessera.resources.manifest import Manifest, Owner, owner_of
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


def of_service(allotment: ServicePlan) -> tuple[Manifest, ...]:
    """The objects of one service; none while there is nothing decided for it."""
    choice, spec = allotment.choice, allotment.effective_spec
    if choice is None or spec is None:
        return ()
    told = [front(allotment.service)]
    if spec.model.cache.type == "pvc":
        told.append(claim(allotment.service, spec))
    if not _awaited(allotment):
        told.append(deployment(allotment, spec, choice))
    if allotment.scale.replicas >= _BUDGETED:
        told.append(disruption_budget(allotment.service))
    return tuple(told)


def _awaited(allotment: ServicePlan) -> bool:
    """The Deployment stays as it is until the hub answered, and the files are there."""
    preparation = allotment.preparation
    unfetched = preparation is not None and preparation.missing_files is not None
    return unfetched or allotment.pinned_revision.query is not None


def made_of(allotment: ServicePlan) -> tuple[object, ...]:
    """All that the objects of a service depend on: equal parts make equal objects."""
    service = allotment.service
    return (
        service.uid,
        service.spec,
        allotment.choice,
        _awaited(allotment),
        allotment.pinned_revision,
        allotment.template,
        allotment.drain.replicas,
        allotment.surge,
        allotment.scale.replicas >= _BUDGETED,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """Who shares the objects of a namespace in which something is placed, in the order of names."""

    namespace: str
    services: tuple[Owner, ...]
    batches: tuple[Owner, ...]

    def manifests(
        self, *, visitors: tuple[str, ...], monitored: bool, batch_role: str = BATCH_ROLE
    ) -> tuple[Manifest, ...]:
        """The shared objects; the first visitor is the operator."""
        found = (*self.services, *self.batches)
        told = [account(found), isolation(found, visitors)]
        if monitored:
            told.append(monitor(found))
        if mine := self.batches:
            told += [
                batch_account(mine),
                batch_fence(mine, batch_role),
                batch_isolation(mine, visitors[0]),
            ]
        return tuple(told)


def sharing(
    allotments: Mapping[Ref, ServicePlan], batches: Mapping[Ref, BatchAllotment]
) -> tuple[Sharing, ...]:
    """The namespaces with what lives in them."""
    services: dict[str, list[Owner]] = defaultdict(list)
    for ref in sorted(allotments):
        services[ref.namespace].append(owner_of(allotments[ref].service))
    placed = {
        ref.namespace
        for ref, one in allotments.items()
        if one.choice is not None or (one.preparation and one.preparation.job_to_create)
    }
    living: dict[str, list[Owner]] = defaultdict(list)
    for ref in sorted(batches):
        living[ref.namespace].append(owner_of(batches[ref].batch))
    return tuple(
        Sharing(
            namespace=name,
            services=tuple(services.get(name, ())),
            batches=tuple(living.get(name, ())),
        )
        for name in sorted(placed | living.keys())
    )
