"""Finds the pods of this installation: the operator's, of which one leads, and the gateways'."""

from collections.abc import Mapping, Sequence

from tessera.adapters.kube.client import KubeCluster, raise_for_status
from tessera.resources.api_resources import PODS

_MOST_PODS = "100"


async def operator_addresses(cluster: KubeCluster, namespace: str) -> Sequence[str]:
    """Return the addresses of the operator's pods that run; raises ClusterError."""
    return list((await _running_pods(cluster, namespace, "tessera-operator")).values())


async def other_gateways(cluster: KubeCluster, namespace: str, own_pod: str) -> Mapping[str, str]:
    """Return the addresses of the other gateway pods that run by name; raises ClusterError."""
    pods = await _running_pods(cluster, namespace, "tessera-gateway")
    return {name: address for name, address in pods.items() if name != own_pod}


async def _running_pods(cluster: KubeCluster, namespace: str, name: str) -> Mapping[str, str]:
    query = {"labelSelector": f"app.kubernetes.io/name={name}", "limit": _MOST_PODS}
    status, body = await cluster.request("GET", PODS.path(namespace), query)
    raise_for_status(status, body, f"list pods in {namespace}")
    return {
        pod["metadata"]["name"]: pod["status"]["podIP"]
        for pod in body["items"]
        if pod.get("status", {}).get("phase") == "Running" and "podIP" in pod["status"]
    }
