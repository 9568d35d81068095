"""Events as requests; a small server takes the place of the API server."""

import pytest
from aiohttp import web

from tessera.ports import ClusterError
from tessera.resources.api_resources import RECORDED_EVENTS
from tessera.resources.manifest import partial_manifest
from tests.adapters.small_server import connected_cluster

METADATA = {"name": "chat.1", "namespace": "team-a"}
EVENT = partial_manifest(RECORDED_EVENTS, METADATA, reason="Placed")
REPEATED = partial_manifest(RECORDED_EVENTS, METADATA, reason="Placed", series={"count": 2})


async def test_an_event_is_one_request_also_where_it_is_refused() -> None:
    """No right to read Events is granted, so nothing is asked afterwards."""
    requests: list[tuple[str, str]] = []
    statuses = iter([201, 403, 409, 422, 200])

    async def answer(request: web.Request) -> web.Response:
        requests.append((request.method, request.path))
        status = next(statuses)
        body = {"message": f"status {status}"} if status > 201 else await request.json()
        return web.json_response(body, status=status)

    async with connected_cluster(answer) as cluster:
        await cluster.record_event(EVENT)
        for status in (403, 409, 422):
            with pytest.raises(ClusterError, match=f"record Placed: {status} status {status}"):
                await cluster.record_event(EVENT)
        await cluster.record_event(REPEATED)
    path = "/apis/events.k8s.io/v1/namespaces/team-a/events"
    assert requests == [*[("POST", path)] * 4, ("PATCH", f"{path}/chat.1")]
