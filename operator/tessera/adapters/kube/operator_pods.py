"""Finds the operator's pods, of which one leads."""

from collections.abc import Sequence

from tessera.adapters.kube.client import KubeCluster, raise_for_status
from tessera.resources.api_resources import PODS

_SELECTOR = "app.kubernetes.io/name=tessera-operator"


async def operator_addresses(cluster: KubeCluster, namespace: str) -> Sequence[str]:
    """Return the addresses of the operator's pods that run; raises ClusterError."""
    status, body = await cluster.request(
        "GET", PODS.path(namespace), {"labelSelector": _SELECTOR, "limit": "20"}
    )
    raise_for_status(status, body, f"list pods in {namespace}")
    return [
        pod["status"]["podIP"]
        for pod in body["items"]
        if pod.get("status", {}).get("phase") == "Running" and "podIP" in pod["status"]
    ]
