"""A refused write is an error with the API server's words; only an absent object needs nothing."""

from contextlib import suppress

import pytest
from aiohttp import web

from tessera.adapters.kube.client import KubeCluster
from tessera.api.api_resource import ApiResource
from tessera.api.node_layout import NodeLayoutSpec
from tessera.ports import ClusterError, NotFoundError
from tessera.resources.api_resources import JOBS, SERVICES
from tessera.resources.manifest import ObjectManifest
from tessera.resources.mig_objects import node_layout
from tests.adapters.small_server import RequestHandler, connected_cluster


def a_manifest(kind: ApiResource, **metadata: str) -> ObjectManifest:
    metadata = {"name": "a.b.c", "namespace": "default", **metadata}
    body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}
    return ObjectManifest(kind=kind, namespace="default", name="a.b.c", body=body)


def refusing(status: int, message: str) -> RequestHandler:
    async def answer(request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.json_response({"code": 404, "details": {"kind": "services"}}, status=404)
        return web.json_response({"code": status, "message": message}, status=status)

    return answer


async def refusal(cluster: KubeCluster, kind: ApiResource) -> ClusterError:
    with pytest.raises(ClusterError) as caught:
        await cluster.apply(a_manifest(kind))
    return caught.value


@pytest.mark.parametrize("kind", [SERVICES, JOBS], ids=lambda kind: kind.plural)
@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 422])
async def test_the_first_apply_of_an_object_that_is_refused_says_why(
    status: int, kind: ApiResource
) -> None:
    async with connected_cluster(refusing(status, "must not contain dots")) as cluster:
        error = await refusal(cluster, kind)
    assert not isinstance(error, NotFoundError)
    assert f"{status} must not contain dots" in str(error)


async def test_a_change_of_one_object_that_is_gone_needs_nothing_more() -> None:
    async with connected_cluster(refusing(409, "no existing object was found")) as cluster:
        with pytest.raises(NotFoundError):
            await cluster.apply(a_manifest(SERVICES, uid="gone"))


async def test_the_spec_of_a_node_layout_that_somebody_else_wrote_is_taken_over() -> None:
    writes = []

    async def answer(request: web.Request) -> web.Response:
        managed = [{"manager": "kubectl-patch"}, {"manager": "tessera-node"}]
        metadata = {"name": "gpu-1", "uid": "1", "resourceVersion": "7", "managedFields": managed}
        if request.method == "PATCH":
            writes.append(request.query["force"])
            if writes != ["true"]:
                return web.json_response({"code": 409, "message": "conflict"}, status=409)
        return web.json_response({"metadata": metadata, "spec": {"gpus": []}})

    async with connected_cluster(answer) as cluster:
        with suppress(ClusterError):
            await cluster.apply(node_layout("gpu-1", NodeLayoutSpec()))
    assert writes == ["true"]
