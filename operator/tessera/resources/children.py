"""Every object that a plan wants to exist."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from tessera.api.engine_egress import EngineEgress
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.ref import Ref
from tessera.api.template_version import Platform
from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.batch.names import BATCH_ACCOUNT, BATCH_ROLE
from tessera.domain.incremental import reused
from tessera.domain.names import ENGINE_ACCOUNT
from tessera.domain.planning.service_plan import ServicePlan, VariantPlan
from tessera.resources import namespace_objects
from tessera.resources.deployment import deployment_identity, deployment_manifest
from tessera.resources.manifest import ObjectManifest, Owner, owner_of
from tessera.resources.model_job import model_claim_manifest
from tessera.resources.service import (
    autoscaler_manifest,
    disruption_budget_manifest,
    service_manifest,
)

# A disruption budget needs this many replicas; with a single one it would block node drains.
_MIN_REPLICAS_FOR_BUDGET = 2
_EGRESS, _PLATFORM = EngineEgress(), Platform()


def service_manifests(service_plan: ServicePlan) -> tuple[ObjectManifest, ...]:
    """Return the objects of one service; none while nothing is decided for it."""
    specs = _located_specs(service_plan)
    if not specs:
        return ()
    spec = specs[0][1]
    manifests = [service_manifest(service_plan.service, spec), *_engine_manifests(service_plan)]
    if (candidate := service_plan.candidate) is not None:
        keys = {manifest.key for manifest in manifests}
        manifests += [each for each in _engine_manifests(candidate) if each.key not in keys]
    if service_plan.desired_pods >= _MIN_REPLICAS_FOR_BUDGET:
        manifests.append(disruption_budget_manifest(service_plan.service, spec))
    if service_plan.has_autoscaler:
        manifests.append(autoscaler_manifest(service_plan.service, spec))
    return tuple(manifests)


def _located_specs(
    service_plan: ServicePlan,
) -> list[tuple[VariantPlan, InferenceServiceSpec]]:
    located = [(variant, service_plan.located_spec(variant)) for variant in service_plan.variants]
    return [(variant, spec) for variant, spec in located if spec is not None]


def _engine_manifests(service_plan: ServicePlan) -> list[ObjectManifest]:
    """Return the claims of model files, and the Deployments that need them."""
    manifests = [model_claim_manifest(claim) for claim in service_plan.claims]
    if _is_waiting(service_plan):
        return manifests
    return manifests + [
        deployment_manifest(service_plan, variant, spec)
        for variant, spec in _located_specs(service_plan)
        if not variant.waits
    ]


def _is_waiting(service_plan: ServicePlan) -> bool:
    """Return whether the Deployment stays as it is until revision and model files are available."""
    preparation = service_plan.preparation
    unfetched = preparation is not None and preparation.missing_files is not None
    return unfetched or service_plan.pinned_revision.query is not None


def service_inputs(service_plan: ServicePlan) -> tuple[object, ...]:
    """Return all inputs of a service's objects: equal inputs make equal objects."""
    service = service_plan.service
    return (
        service.uid,
        service.spec,
        _is_waiting(service_plan),
        service_plan.pinned_revision,
        service_plan.claims,
        tuple(
            [
                (
                    *(each.template.record, each.template.choice, each.replicas, each.waits),
                    each.rolls_in_place,
                    *deployment_identity(service_plan, each),
                )
                for each in service_plan.variants
            ]
        ),
        service_plan.desired_pods >= _MIN_REPLICAS_FOR_BUDGET,
        service_plan.has_autoscaler,
        *(service_inputs(service_plan.candidate) if service_plan.candidate is not None else ()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceOwners:
    """The owners of the shared objects of a namespace, sorted by name."""

    namespace: str
    services: tuple[Owner, ...]
    batches: tuple[Owner, ...]
    closed: tuple[str, ...] = ()
    """Services that are reached through the gateway alone."""

    def adds_owners(self, others: "NamespaceOwners") -> bool:
        """Return whether the objects differ from those of others by further owners at most."""
        return (
            self.closed == others.closed
            and bool(self.batches) == bool(others.batches)
            and {*self.services, *self.batches} >= {*others.services, *others.batches}
        )

    def manifests(
        self,
        *,
        operator_namespace: str,
        ingress_namespaces: tuple[str, ...],
        monitor_labels: Mapping[str, str] | None,
        egress: EngineEgress = _EGRESS,
        platform: Platform = _PLATFORM,
        batch_role: str = BATCH_ROLE,
    ) -> tuple[ObjectManifest, ...]:
        """Return the shared objects; without labels of monitors no PodMonitor."""
        owners = (*self.services, *self.batches)
        shared = [namespace_objects.service_account(owners, ENGINE_ACCOUNT)]
        if self.closed:
            # Before the other policy leaves them out: no policy at all would admit everybody.
            policy = namespace_objects.closed_network_policy(
                owners,
                self.closed,
                operator_namespace=operator_namespace,
                ingress_namespaces=ingress_namespaces,
            )
            shared.append(policy)
        shared.append(
            namespace_objects.engine_network_policy(owners, ingress_namespaces, self.closed)
        )
        if self.services:
            shared.append(namespace_objects.engine_egress_policy(owners, egress, platform))
        if monitor_labels is not None:
            shared.append(namespace_objects.pod_monitor(owners, monitor_labels))
        if batch_owners := self.batches:
            shared += [
                namespace_objects.service_account(batch_owners, BATCH_ACCOUNT),
                namespace_objects.batch_role_binding(batch_owners, batch_role),
                namespace_objects.batch_network_policy(batch_owners, operator_namespace),
            ]
        return tuple(shared)


@reused
def namespace_owners(
    service_plans: Mapping[Ref, ServicePlan], batches: Mapping[Ref, BatchPlan]
) -> tuple[NamespaceOwners, ...]:
    """Return the namespaces that need shared objects, with the owners of these."""
    services: dict[str, list[Owner]] = defaultdict(list)
    closed: dict[str, list[str]] = defaultdict(list)
    for ref in sorted(service_plans):
        service = service_plans[ref].service
        services[ref.namespace].append(owner_of(service))
        if service.spec is not None and not service.spec.access.direct:
            closed[ref.namespace].append(ref.name)
    active_namespaces = {
        ref.namespace
        for ref, service_plan in service_plans.items()
        if service_plan.choice is not None
        or (service_plan.preparation and service_plan.preparation.job_to_create)
    }
    batch_owners: dict[str, list[Owner]] = defaultdict(list)
    for ref in sorted(batches):
        batch_owners[ref.namespace].append(owner_of(batches[ref].batch))
    return tuple(
        NamespaceOwners(
            namespace=name,
            services=tuple(services.get(name, ())),
            batches=tuple(batch_owners.get(name, ())),
            closed=tuple(closed.get(name, ())),
        )
        for name in sorted(active_namespaces | batch_owners.keys())
    )
