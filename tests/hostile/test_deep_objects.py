"""Objects that nest deeper than readers of JSON go, and names of users like those of the system."""

import json
from typing import Any

import pytest
from aiohttp import web

from tessera.adapters.kube.nested_json import MAX_DEPTH, read_json
from tessera.api.model_route import MAX_SCHEMA_DEPTH
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, MODEL_ROUTES
from tessera.domain.observed.routes import ObservedRoute
from tessera.resources.manifest import ObjectManifest
from tests.adapters.small_server import connected_cluster
from tests.builders import SMALL

# The API server takes 10,000 levels.
DEEPEST = 9000


def a_route(name: str, depth: int) -> bytes:
    schema = b'{"a":' * depth + b"1" + b"}" * depth
    meta = {
        "name": name,
        "namespace": "team-a",
        "uid": f"uid-{name}",
        "resourceVersion": "7",
        "creationTimestamp": "2026-11-01T00:00:00Z",
    }
    spec = b'{"targets":[{"service":"chat","set":{"responseSchema":%b}}]}' % schema
    return b'{"metadata":%b,"spec":%b}' % (json.dumps(meta).encode(), spec)


@pytest.mark.parametrize("depth", [MAX_SCHEMA_DEPTH + 1, 250, 1500, DEEPEST])
async def test_a_route_that_nests_deeply_hides_no_other_from_lists_and_watches(depth: int) -> None:
    deep, plain = a_route("deep", depth), a_route("plain", MAX_SCHEMA_DEPTH - 1)

    async def handler(request: web.Request) -> web.StreamResponse:
        events = (b'{"type":"ADDED","object":%b}\n' % each for each in (deep, plain))
        page = b'{"metadata":{"resourceVersion":"7"},"items":[%b,%b]}' % (deep, plain)
        return web.Response(body=b"".join(events) if "watch" in request.query else page)

    async with connected_cluster(handler) as cluster:
        listing = await cluster.list(MODEL_ROUTES)
        assert listing is not None
        changes = [change async for change in cluster.watch(MODEL_ROUTES, 1)]
        for objects in (listing.items, [change.cluster_object for change in changes]):
            deep_route, plain_route = (each.plan_input for each in objects if each is not None)
            assert isinstance(deep_route, ObservedRoute)
            assert isinstance(plain_route, ObservedRoute)
            assert "nests deeper than 64 levels" in str(deep_route.problem)
            assert plain_route.spec is not None


async def test_only_what_nests_too_deeply_is_left_out() -> None:
    level = '{"]":"[\\"[","x":[1,{}],"y":%s}'
    text = "2"
    for _ in range(MAX_DEPTH):
        text = level % text
    assert await read_json(text.encode()) == json.loads(text)
    value: Any = await read_json(
        (level % (level % text)).replace("2", "[" * 99 + "]" * 99).encode()
    )
    for _ in range(MAX_DEPTH):
        assert value["]"] == '["['
        assert value["x"] in ([1, {}], [1, None], None)
        value = value["y"]
    assert value is None


async def test_an_annotation_makes_no_event_of_a_user_pass_for_an_own_write() -> None:
    def a_service(version: str, **annotations: str) -> dict[str, Any]:
        # The API server sorts the fields of such objects.
        meta = {
            "annotations": annotations,
            "creationTimestamp": "2026-11-01T00:00:00Z",
            "name": "chat",
            "namespace": "team-a",
            "resourceVersion": version,
            "uid": "uid-chat",
        }
        return {"metadata": meta, "spec": {"model": {"uri": SMALL}}}

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.method == "PATCH":
            return web.json_response(a_service("5"))
        event = {"type": "MODIFIED", "object": a_service("6", resourceVersion="5")}
        return web.Response(body=json.dumps(event, separators=(",", ":")).encode() + b"\n")

    async with connected_cluster(handler) as cluster:
        body = a_service("5")
        await cluster.apply(
            ObjectManifest(kind=INFERENCE_SERVICES, namespace="team-a", name="chat", body=body)
        )
        (change,) = [change async for change in cluster.watch(INFERENCE_SERVICES, 1)]
        assert (change.version, change.cluster_object is None) == (6, False)
