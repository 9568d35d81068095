"""The Service, PodDisruptionBudget and HorizontalPodAutoscaler of one InferenceService."""

from kubernetes import client

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.names import LEAVING_LABEL, PORT, RECOMMENDED_REPLICAS, SERVICE_LABEL
from tessera.domain.observed.snapshot import ObservedService
from tessera.resources.api_resources import (
    DISRUPTION_BUDGETS,
    HORIZONTAL_POD_AUTOSCALERS,
    INFERENCE_SERVICES,
    SERVICES,
)
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


def autoscaler_manifest(service: ObservedService, spec: InferenceServiceSpec) -> ObjectManifest:
    """Return a HorizontalPodAutoscaler that sets the number which Tessera recommends.

    The recommendation has been stabilized already, so no window applies to it again.
    """
    name, scaling = service.ref.name, spec.scaling
    autoscaler = client.V2HorizontalPodAutoscaler(
        metadata=owned_metadata(service, name, service_labels(service, spec)),
        spec=client.V2HorizontalPodAutoscalerSpec(
            scale_target_ref=client.V2CrossVersionObjectReference(
                api_version=INFERENCE_SERVICES.api_version,
                kind=INFERENCE_SERVICES.kind,
                name=name,
            ),
            min_replicas=scaling.floor,
            max_replicas=scaling.max_replicas,
            metrics=[
                client.V2MetricSpec(
                    type="External",
                    external=client.V2ExternalMetricSource(
                        metric=client.V2MetricIdentifier(
                            name=RECOMMENDED_REPLICAS,
                            selector=client.V1LabelSelector(match_labels={"service": name}),
                        ),
                        target=client.V2MetricTarget(type="AverageValue", average_value="1"),
                    ),
                )
            ],
            behavior=client.V2HorizontalPodAutoscalerBehavior(
                scale_down=client.V2HPAScalingRules(stabilization_window_seconds=0)
            ),
        ),
    )
    return manifest(HORIZONTAL_POD_AUTOSCALERS, service.ref.namespace, name, autoscaler)
