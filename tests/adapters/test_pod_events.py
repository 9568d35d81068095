"""What is said of pods that wait for nodes: which Events are read, and how they are bounded."""

from typing import Any

from aiohttp import web

from tessera.adapters.kube.object_parsing import parse_pod_events
from tessera.api.accelerator_pool import MAX_WORDS
from tessera.api.ref import Ref
from tests.adapters.small_server import connected_cluster

POD = Ref("team-a", "chat-0")
NOMINATED = {
    "reason": "Nominated",
    "lastTimestamp": "2026-11-20T12:00:01Z",
    "message": "Pod should schedule on: nodeclaim/burst-x7k2q",
}


async def test_events_of_the_pod_and_of_its_node_claim_are_read_latest_first() -> None:
    queries: list[tuple[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        queries.append((request.path, request.query["fieldSelector"]))
        # An Event of events.k8s.io has its time elsewhere.
        waits = {
            "reason": "FailedScheduling",
            "eventTime": "2026-11-20T12:00:00.5Z",
            "message": "w",
        }
        claim = {
            "reason": "InsufficientCapacityError",
            "lastTimestamp": "2026-11-20T12:00:03Z",
            "message": "no capacity",
        }
        return web.json_response({"items": [waits, NOMINATED] if len(queries) == 1 else [claim]})

    async with connected_cluster(answer) as cluster:
        events = await cluster.pod_events(POD, "uid-1")
    assert [event.reason for event in events] == [
        "InsufficientCapacityError", "Nominated", "FailedScheduling",
    ]  # fmt: skip
    assert queries == [
        ("/api/v1/namespaces/team-a/events", "involvedObject.uid=uid-1"),
        (
            "/api/v1/namespaces/default/events",
            "involvedObject.kind=NodeClaim,involvedObject.name=burst-x7k2q,type=Warning",
        ),
    ]


async def test_events_of_a_node_claim_that_may_not_be_read_are_left_out() -> None:
    async def answer(request: web.Request) -> web.Response:
        if "/default/" in request.path:
            return web.json_response({"message": "forbidden"}, status=403)
        return web.json_response({"items": [NOMINATED]})

    async with connected_cluster(answer) as cluster:
        assert [event.reason for event in await cluster.pod_events(POD, "uid-1")] == ["Nominated"]


def test_hostile_events_are_cleaned_and_bounded() -> None:
    hostile: list[dict[str, Any]] = [
        {"reason": "x" * 5000, "message": "a\x1b[31m\nquota\u202e " + "y" * 10**6},
        {"reason": None, "message": None},
        {},
    ]
    events = parse_pod_events(hostile * 1000)
    assert len(events) == 16
    assert all(len(event.reason) <= 64 and len(event.message) <= MAX_WORDS for event in events)
    assert all(event.reason.isprintable() and event.message.isprintable() for event in events)
    assert events[0].message.startswith("a [31m quota y")
