"""The Service, PodDisruptionBudget and HorizontalPodAutoscaler of one InferenceService."""

from kubernetes import client

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.names import LEAVING_LABEL, PORT, RECOMMENDED_REPLICAS, SERVICE_LABEL
from tessera.domain.observed.snapshot import ObservedService
from tessera.resources.api_resources import DISRUPTION_BUDGETS, HORIZONTAL_POD_AUTOSCALERS, SERVICES
from tessera.resources.manifest import ObjectManifest, owned_manifest, service_labels


def service_manifest(service: ObservedService, spec: InferenceServiceSpec) -> ObjectManifest:
    """Return the Service that selects the replicas of all variants."""
    name = service.ref.name
    ports = [client.V1ServicePort(name="http", port=PORT, target_port="http", protocol="TCP")]
    wanted = client.V1ServiceSpec(type="ClusterIP", selector={SERVICE_LABEL: name}, ports=ports)
    return owned_manifest(SERVICES, service, name, service_labels(service, spec), wanted)


def disruption_budget_manifest(
    service: ObservedService, spec: InferenceServiceSpec
) -> ObjectManifest:
    """Return a PodDisruptionBudget of one unavailable replica; unready pods never block a drain.

    The API server evicts no pod with two budgets, so those that leave have only that of others.
    """
    name = service.ref.name
    staying = client.V1LabelSelectorRequirement(key=LEAVING_LABEL, operator="DoesNotExist")
    wanted = client.V1PodDisruptionBudgetSpec(
        max_unavailable=1,
        unhealthy_pod_eviction_policy="AlwaysAllow",
        selector=client.V1LabelSelector(
            match_labels={SERVICE_LABEL: name}, match_expressions=[staying]
        ),
    )
    return owned_manifest(DISRUPTION_BUDGETS, service, name, service_labels(service, spec), wanted)


def autoscaler_manifest(service: ObservedService, spec: InferenceServiceSpec) -> ObjectManifest:
    """Return a HorizontalPodAutoscaler that sets the number which Tessera recommends.

    The recommendation has been stabilized already, so no window applies to it again.
    """
    name, scaling = service.ref.name, spec.scaling
    recommended = client.V2ExternalMetricSource(
        metric=client.V2MetricIdentifier(
            name=RECOMMENDED_REPLICAS,
            selector=client.V1LabelSelector(match_labels={"service": name}),
        ),
        target=client.V2MetricTarget(type="AverageValue", average_value="1"),
    )
    wanted = client.V2HorizontalPodAutoscalerSpec(
        scale_target_ref=client.V2CrossVersionObjectReference(
            api_version=INFERENCE_SERVICES.api_version, kind=INFERENCE_SERVICES.kind, name=name
        ),
        min_replicas=scaling.floor,
        max_replicas=scaling.max_replicas,
        metrics=[client.V2MetricSpec(type="External", external=recommended)],
        behavior=client.V2HorizontalPodAutoscalerBehavior(
            scale_down=client.V2HPAScalingRules(stabilization_window_seconds=0)
        ),
    )
    object_labels = service_labels(service, spec)
    return owned_manifest(HORIZONTAL_POD_AUTOSCALERS, service, name, object_labels, wanted)
