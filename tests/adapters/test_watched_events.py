"""Events of a watch that come at once; a small server takes the API server's place."""

import asyncio
import json

from aiohttp import web

from tessera.resources.api_resources import NODES
from tests.adapters.small_server import connected_cluster

EVENTS = 200


async def test_many_events_at_once_leave_turns_to_others() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse()
        await stream.prepare(request)
        bookmarks = (
            {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}}
            for version in range(1, EVENTS + 1)
        )
        await stream.write("".join(f"{json.dumps(each)}\n" for each in bookmarks).encode())
        return stream

    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with connected_cluster(answer) as cluster, asyncio.timeout(60):
        others = asyncio.create_task(take_turns())
        turns_at = [turns async for _ in cluster.watch(NODES, 0)]
        others.cancel()
    assert len(turns_at) == len(set(turns_at)) == EVENTS
