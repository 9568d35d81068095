"""What the services of one namespace share; it goes when the last of them goes."""

from collections.abc import Sequence

from kubernetes.client import (
    V1LabelSelector,
    V1NetworkPolicy,
    V1NetworkPolicyIngressRule,
    V1NetworkPolicyPeer,
    V1NetworkPolicyPort,
    V1NetworkPolicySpec,
    V1ObjectMeta,
    V1ServiceAccount,
)

from tessera.domain.names import COMPONENT, ENGINE, PORT, SERVICE_LABEL, VARIANT_LABEL
from tessera.domain.snapshot import Service
from tessera.resources.deployment import ACCOUNT
from tessera.resources.kinds import NETWORK_POLICIES, POD_MONITORS, SERVICE_ACCOUNTS
from tessera.resources.manifest import Manifest, labels, manifest, owner

_NAMESPACE_LABEL = "kubernetes.io/metadata.name"


def account(services: Sequence[Service]) -> Manifest:
    """The engines' ServiceAccount: it may do nothing, and no token is mounted."""
    model = V1ServiceAccount(metadata=_metadata(services), automount_service_account_token=False)
    return manifest(SERVICE_ACCOUNTS, services[0].ref.namespace, ACCOUNT, model)


def isolation(services: Sequence[Service], visitors: Sequence[str]) -> Manifest:
    """Engines answer pods of their own namespace and of the `visitors`, nobody else."""
    peers = [
        V1NetworkPolicyPeer(pod_selector=V1LabelSelector()),
        *(
            V1NetworkPolicyPeer(
                namespace_selector=V1LabelSelector(match_labels={_NAMESPACE_LABEL: visitor})
            )
            for visitor in visitors
        ),
    ]
    model = V1NetworkPolicy(
        metadata=_metadata(services),
        spec=V1NetworkPolicySpec(
            pod_selector=V1LabelSelector(match_labels={COMPONENT: ENGINE}),
            policy_types=["Ingress"],
            ingress=[
                V1NetworkPolicyIngressRule(
                    var_from=peers, ports=[V1NetworkPolicyPort(port=PORT, protocol="TCP")]
                )
            ],
        ),
    )
    return manifest(NETWORK_POLICIES, services[0].ref.namespace, ACCOUNT, model)


def monitor(services: Sequence[Service]) -> Manifest:
    """The PodMonitor that makes Prometheus read the engines."""
    namespace = services[0].ref.namespace
    metadata = _metadata(services).model_dump(by_alias=True, exclude_none=True, mode="json")
    body = {
        "apiVersion": POD_MONITORS.api_version,
        "kind": POD_MONITORS.kind,
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": {COMPONENT: ENGINE}},
            "podTargetLabels": [SERVICE_LABEL, VARIANT_LABEL],
            "podMetricsEndpoints": [{"port": "http", "path": "/metrics", "interval": "15s"}],
        },
    }
    return Manifest(kind=POD_MONITORS, namespace=namespace, name=ACCOUNT, body=body)


def _metadata(services: Sequence[Service]) -> V1ObjectMeta:
    """Owned by every service of the namespace, so that the last one to go takes it along."""
    return V1ObjectMeta(
        name=ACCOUNT,
        namespace=services[0].ref.namespace,
        labels=labels(),
        owner_references=[
            owner(service, controller=False)
            for service in sorted(services, key=lambda service: service.ref)
        ],
    )
