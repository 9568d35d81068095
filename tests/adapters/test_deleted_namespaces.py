"""Writes into a namespace that is being deleted, or is deleted, report objects as not found."""

import pytest

from tessera.adapters.kube.client import KubeCluster
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
    config_map = {"metadata": {"name": "held", "finalizers": ["tests.tessera.dev/hold"]}}
    await cluster.request("POST", spaces, body={"metadata": {"name": NAMESPACE}})
    assert (await cluster.request("POST", maps, body=config_map))[0] == 201
    await cluster.request("DELETE", f"{spaces}/{NAMESPACE}")
    try:
        with pytest.raises(NotFoundError, match="namespace terminating or not found"):
            await cluster.apply(an_account(NAMESPACE))
    finally:
        release = {"metadata": {"finalizers": None}}
        kind = "application/merge-patch+json"
        await cluster.request("PATCH", f"{maps}/held", body=release, content_type=kind)

    async def namespace_is_gone() -> None:
        assert (await cluster.request("GET", f"{spaces}/{NAMESPACE}"))[0] == 404

    await eventually(namespace_is_gone, within=90)
    with pytest.raises(NotFoundError, match="namespace terminating or not found"):
        await cluster.apply(an_account(NAMESPACE))
