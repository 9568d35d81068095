"""Events of Jobs whose pods are refused."""

from aiohttp import web

from tessera.api.ref import Ref
from tests.adapters.small_server import connected_cluster


async def test_the_latest_event_of_just_this_job_is_read() -> None:
    queries = []

    async def answer(request: web.Request) -> web.Response:
        queries.append((request.path, request.query["fieldSelector"]))
        events = [
            {"lastTimestamp": "2026-11-20T12:00:05Z", "message": "exceeded quota: small"},
            {"lastTimestamp": "2026-11-20T12:00:01Z", "message": "violates PodSecurity"},
            {"lastTimestamp": None, "message": "older"},
        ]
        return web.json_response({"items": events if len(queries) == 1 else []})

    async with connected_cluster(answer) as cluster:
        job = Ref("team-a", "night-check")
        assert await cluster.pod_refusal(job, "uid-1") == "exceeded quota: small"
        assert await cluster.pod_refusal(job, "uid-1") is None
    expected = ("/api/v1/namespaces/team-a/events", "involvedObject.uid=uid-1,reason=FailedCreate")
    assert queries[0] == expected
