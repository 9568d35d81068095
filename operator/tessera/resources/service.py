"""The Service and the PodDisruptionBudget of one InferenceService."""

from kubernetes.client import (
    V1LabelSelector,
    V1ObjectMeta,
    V1PodDisruptionBudget,
    V1PodDisruptionBudgetSpec,
    V1Service,
    V1ServicePort,
    V1ServiceSpec,
)

from tessera.domain.names import PORT, SERVICE_LABEL
from tessera.domain.observed.snapshot import ObservedService
from tessera.resources.api_resources import DISRUPTION_BUDGETS, SERVICES
from tessera.resources.manifest import ObjectManifest, labels, manifest, owner_of, owner_reference


def service_manifest(service: ObservedService) -> ObjectManifest:
    """Return the Service that selects the replicas of all variants."""
    name = service.ref.name
    model = V1Service(
        metadata=_metadata(service),
        spec=V1ServiceSpec(
            type="ClusterIP",
            selector={SERVICE_LABEL: name},
            ports=[V1ServicePort(name="http", port=PORT, target_port="http", protocol="TCP")],
        ),
    )
    return manifest(SERVICES, service.ref.namespace, name, model)


def disruption_budget(service: ObservedService) -> ObjectManifest:
    """Return a PodDisruptionBudget of one unavailable replica; unready pods never block a drain."""
    name = service.ref.name
    model = V1PodDisruptionBudget(
        metadata=_metadata(service),
        spec=V1PodDisruptionBudgetSpec(
            max_unavailable=1,
            unhealthy_pod_eviction_policy="AlwaysAllow",
            selector=V1LabelSelector(match_labels={SERVICE_LABEL: name}),
        ),
    )
    return manifest(DISRUPTION_BUDGETS, service.ref.namespace, name, model)


def _metadata(service: ObservedService) -> V1ObjectMeta:
    return V1ObjectMeta(
        name=service.ref.name,
        namespace=service.ref.namespace,
        labels=labels(service.ref.name),
        owner_references=[owner_reference(owner_of(service), controller=True)],
    )
