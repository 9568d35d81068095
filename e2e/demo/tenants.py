"""What a platform gives a tenant: a namespace, a budget, a key and the URL of the gateway."""

import json
from typing import Any

from demo.cluster import NAMESPACE, InstalledCluster, Json, Ref, condition, fund, until

MODEL = "hf://meta-llama/Llama-3.2-1B-Instruct"
_PATIENCE = 180.0


async def create_tenant(cluster: InstalledCluster, name: str) -> None:
    """Create a namespace, and a budget of its name."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await cluster.api.apply(f"/api/v1/namespaces/{name}", namespace, "kubectl")
    await fund(cluster, name, name)


async def apply_spec(
    cluster: InstalledCluster, kind: str, plural: str, ref: Ref, spec: Json
) -> None:
    """Apply an object of one of Tessera's kinds, as a user would."""
    group = "/apis/tessera.dev/v1alpha1"
    path = f"{group}/namespaces/{ref.namespace}" if ref.namespace else group
    metadata = {"name": ref.name} | ({"namespace": ref.namespace} if ref.namespace else {})
    body = {"apiVersion": "tessera.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
    await cluster.api.apply(f"{path}/{plural}/{ref.name}", body, "kubectl")


async def serve(cluster: InstalledCluster, ref: Ref, **spec: Any) -> Json:
    """Apply a service of a small model, and wait until it has answered; return it."""
    body = {"model": {"uri": MODEL}, **spec}
    await apply_spec(cluster, "InferenceService", "inferenceservices", ref, body)
    service: Json = await until(
        lambda: cluster.service(ref),
        lambda body: condition(body, "Ready").get("status") == "True",
        f"{ref} is Ready",
        _PATIENCE,
    )
    return service


async def create_key(cluster: InstalledCluster, tenant: str, name: str = "demo") -> str:
    """Create a key of a tenant at the command line; return it."""
    command = ("key", "create", name, "--tenant", tenant)
    key: str = json.loads(await cluster.tessera(*command, "--output", "json"))["key"]
    cluster.say(f"tessera {' '.join(command)}: {key[:8]}..., of which a hash is stored")
    return key


async def gateway_address(cluster: InstalledCluster) -> str:
    """Wait for the gateway; return the address of its pod."""
    await cluster.run(
        *("kubectl", "-n", NAMESPACE, "rollout", "status", "deployment/tessera-gateway"),
        f"--timeout={_PATIENCE:.0f}s",
    )
    pods = await cluster.api.get(
        f"/api/v1/namespaces/{NAMESPACE}/pods",
        labelSelector="app.kubernetes.io/name=tessera-gateway",
    )
    # One that an upgrade replaces may be there too.
    current = [pod for pod in pods["items"] if "deletionTimestamp" not in pod["metadata"]]
    address: str = current[0]["status"]["podIP"]
    return address
