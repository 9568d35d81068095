"""The rights of an agent as the chart grants them, and its token on a node."""

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tessera.adapters.kube.client import KubeCluster
from world import binaries

ROOT = Path(__file__).parents[2]
NAMESPACE = "tessera-system"
_ADMISSION = "/apis/admissionregistration.k8s.io/v1"
_PATHS = {
    "ServiceAccount": f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "ValidatingAdmissionPolicy": f"{_ADMISSION}/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": f"{_ADMISSION}/validatingadmissionpolicybindings",
}
_APPLY = "application/apply-patch+yaml"


async def apply(cluster: KubeCluster, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Apply an object, and return it."""
    name = f"{path}/{body['metadata']['name']}"
    query = {"fieldManager": "helm", "force": "true"}
    code, response = await cluster.request("PATCH", name, query, body, _APPLY)
    assert code < 300, response
    applied: dict[str, Any] = response
    return applied


async def grant(cluster: KubeCluster) -> None:
    """Create the chart's objects for agents, without the DaemonSet."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    await apply(cluster, "/api/v1/namespaces", namespace)
    helm = binaries.ensure(print, ["helm"]) / "helm"
    command = [
        *(str(helm), "template", "tessera", str(ROOT / "charts" / "tessera")),
        *("--namespace", NAMESPACE, "--set", "node.enabled=true", "-s", "templates/node.yaml"),
    ]
    done = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    for body in yaml.safe_load_all(done.stdout):
        if body["kind"] in _PATHS:
            await apply(cluster, _PATHS[body["kind"]], body)


async def token(cluster: KubeCluster, node: str) -> str:
    """Create an agent's pod on the node, and return a token that is bound to it."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"tessera-node-{node}", "namespace": NAMESPACE},
        "spec": {
            "nodeName": node,
            "serviceAccountName": "tessera-node",
            "containers": [{"name": "agent", "image": "tessera/node"}],
        },
    }
    created_pod = await apply(cluster, f"/api/v1/namespaces/{NAMESPACE}/pods", pod)
    bound = {"apiVersion": "v1", "kind": "Pod"} | {
        key: created_pod["metadata"][key] for key in ("name", "uid")
    }
    _, answer = await cluster.request(
        "POST",
        f"{_PATHS['ServiceAccount']}/tessera-node/token",
        body={
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600, "boundObjectRef": bound},
        },
    )
    agent_token: str = answer["status"]["token"]
    return agent_token


def kubeconfig(admin: Path, token: str, folder: Path) -> Path:
    """Write the administrator's kubeconfig, with a token as the only credential."""
    body = yaml.safe_load(admin.read_text(encoding="utf-8"))
    for user in body["users"]:
        user["user"] = {"token": token}
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(body), encoding="utf-8")
    return path
