"""The Service and the PodDisruptionBudget of one InferenceService."""

from kubernetes import client

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.names import LEAVING_LABEL, PORT, SERVICE_LABEL
from tessera.domain.observed.snapshot import ObservedService
from tessera.resources.api_resources import DISRUPTION_BUDGETS, SERVICES
from tessera.resources.manifest import ObjectManifest, manifest, owned_metadata, service_labels


def service_manifest(service: ObservedService, spec: InferenceServiceSpec) -> ObjectManifest:
    """Return the Service that selects the replicas of all variants."""
    name = service.ref.name
    ports = [client.V1ServicePort(name="http", port=PORT, target_port="http", protocol="TCP")]
    service_object = client.V1Service(
        metadata=owned_metadata(service, name, service_labels(service, spec)),
        spec=client.V1ServiceSpec(type="ClusterIP", selector={SERVICE_LABEL: name}, ports=ports),
    )
    return manifest(SERVICES, service.ref.namespace, name, service_object)


def disruption_budget_manifest(
    service: ObservedService, spec: InferenceServiceSpec
) -> ObjectManifest:
    """Return a PodDisruptionBudget of one unavailable replica; unready pods never block a drain.

    The API server evicts no pod with two budgets, so those that leave have only that of others.
    """
    name = service.ref.name
    disruption_budget = client.V1PodDisruptionBudget(
        metadata=owned_metadata(service, name, service_labels(service, spec)),
        spec=client.V1PodDisruptionBudgetSpec(
            max_unavailable=1,
            unhealthy_pod_eviction_policy="AlwaysAllow",
            selector=client.V1LabelSelector(
                match_labels={SERVICE_LABEL: name},
                match_expressions=[
                    client.V1LabelSelectorRequirement(key=LEAVING_LABEL, operator="DoesNotExist")
                ],
            ),
        ),
    )
    return manifest(DISRUPTION_BUDGETS, service.ref.namespace, name, disruption_budget)
