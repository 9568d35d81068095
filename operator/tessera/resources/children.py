"""Every object that a plan wants to exist."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from tessera.api.ref import Ref
from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.batch.names import BATCH_ROLE
from tessera.domain.service_plan import ServicePlan
from tessera.resources.deployment import deployment
from tessera.resources.manifest import ObjectManifest, Owner, owner_of
from tessera.resources.model_job import model_claim_manifest
from tessera.resources.namespace_objects import (
    batch_network_policy,
    batch_role_binding,
    batch_service_account,
    engine_network_policy,
    engine_service_account,
    pod_monitor,
)
from tessera.resources.service import disruption_budget, service_manifest

# From so many replicas on a disruption budget helps; with one it would block every node drain.
_MIN_REPLICAS_FOR_BUDGET = 2


def service_manifests(allotment: ServicePlan) -> tuple[ObjectManifest, ...]:
    """The objects of one service; none while there is nothing decided for it."""
    choice, spec = allotment.choice, allotment.effective_spec
    if choice is None or spec is None:
        return ()
    manifests = [service_manifest(allotment.service)]
    if spec.model.cache.type == "pvc":
        manifests.append(model_claim_manifest(allotment.service, spec))
    if not _is_waiting(allotment):
        manifests.append(deployment(allotment, spec, choice))
    if allotment.scale.replicas >= _MIN_REPLICAS_FOR_BUDGET:
        manifests.append(disruption_budget(allotment.service))
    return tuple(manifests)


def _is_waiting(allotment: ServicePlan) -> bool:
    """The Deployment stays as it is until the hub answered, and the files are there."""
    preparation = allotment.preparation
    unfetched = preparation is not None and preparation.missing_files is not None
    return unfetched or allotment.pinned_revision.query is not None


def service_inputs(allotment: ServicePlan) -> tuple[object, ...]:
    """All that the objects of a service depend on: equal parts make equal objects."""
    service = allotment.service
    return (
        service.uid,
        service.spec,
        allotment.choice,
        _is_waiting(allotment),
        allotment.pinned_revision,
        allotment.template,
        allotment.drain.replicas,
        allotment.surge,
        allotment.scale.replicas >= _MIN_REPLICAS_FOR_BUDGET,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceOwners:
    """Who shares the objects of a namespace in which something is placed, in the order of names."""

    namespace: str
    services: tuple[Owner, ...]
    batches: tuple[Owner, ...]

    def manifests(
        self, *, ingress_namespaces: tuple[str, ...], monitored: bool, batch_role: str = BATCH_ROLE
    ) -> tuple[ObjectManifest, ...]:
        """The shared objects; the first visitor is the operator."""
        owners = (*self.services, *self.batches)
        shared = [engine_service_account(owners), engine_network_policy(owners, ingress_namespaces)]
        if monitored:
            shared.append(pod_monitor(owners))
        if batch_owners := self.batches:
            shared += [
                batch_service_account(batch_owners),
                batch_role_binding(batch_owners, batch_role),
                batch_network_policy(batch_owners, ingress_namespaces[0]),
            ]
        return tuple(shared)


def namespace_owners(
    allotments: Mapping[Ref, ServicePlan], batches: Mapping[Ref, BatchPlan]
) -> tuple[NamespaceOwners, ...]:
    """The namespaces with what lives in them."""
    services: dict[str, list[Owner]] = defaultdict(list)
    for ref in sorted(allotments):
        services[ref.namespace].append(owner_of(allotments[ref].service))
    active_namespaces = {
        ref.namespace
        for ref, allotment in allotments.items()
        if allotment.choice is not None
        or (allotment.preparation and allotment.preparation.job_to_create)
    }
    batch_owners: dict[str, list[Owner]] = defaultdict(list)
    for ref in sorted(batches):
        batch_owners[ref.namespace].append(owner_of(batches[ref].batch))
    return tuple(
        NamespaceOwners(
            namespace=name,
            services=tuple(services.get(name, ())),
            batches=tuple(batch_owners.get(name, ())),
        )
        for name in sorted(active_namespaces | batch_owners.keys())
    )
