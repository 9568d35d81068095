"""What a namespace refuses that is being deleted, or is gone, is as good as gone."""

import pytest

from tessera.adapters.kube import KubeCluster
from tessera.ports import NotFoundError
from tessera.resources.api_resources import SERVICE_ACCOUNTS
from tessera.resources.manifest import ObjectManifest
from world.testing import eventually

NAMESPACE = "held-by-a-finalizer"


def an_account(namespace: str) -> ObjectManifest:
    metadata = {"name": "engine", "namespace": namespace}
    body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}
    return ObjectManifest(kind=SERVICE_ACCOUNTS, namespace=namespace, name="engine", body=body)


async def test_nothing_can_be_applied_in_a_namespace_that_is_being_deleted(
    cluster: KubeCluster,
) -> None:
    spaces = "/api/v1/namespaces"
    maps = f"{spaces}/{NAMESPACE}/configmaps"
    held = {"metadata": {"name": "held", "finalizers": ["tests.tessera.dev/hold"]}}
    await cluster.request("POST", spaces, body={"metadata": {"name": NAMESPACE}})
    assert (await cluster.request("POST", maps, body=held))[0] == 201
    await cluster.request("DELETE", f"{spaces}/{NAMESPACE}")
    try:
        with pytest.raises(NotFoundError, match="namespace terminating or not found"):
            await cluster.apply(an_account(NAMESPACE))
    finally:
        let_go = {"metadata": {"finalizers": None}}
        kind = "application/merge-patch+json"
        await cluster.request("PATCH", f"{maps}/held", body=let_go, content_type=kind)

    async def left() -> int:
        return (await cluster.request("GET", f"{spaces}/{NAMESPACE}"))[0]

    await eventually(left, lambda status: status == 404, within=30)
    with pytest.raises(NotFoundError, match="namespace terminating or not found"):
        await cluster.apply(an_account(NAMESPACE))
