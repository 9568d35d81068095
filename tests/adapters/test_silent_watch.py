"""A watch that stays open and sends nothing more; a small server takes the API server's place."""

import asyncio
import json

import pytest
from aiohttp import web

from tessera.ports import ClusterError, WatchEvent
from tessera.resources.api_resources import NODES
from tests.adapters.small_server import connected_cluster

SILENCE_SECONDS = 2


async def test_a_watch_that_goes_silent_is_closed_and_its_events_stay() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse()
        await stream.prepare(request)
        bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "8"}}}
        await stream.write(json.dumps(bookmark).encode() + b"\n")
        await asyncio.Event().wait()
        return stream

    async with (
        connected_cluster(answer, idle_seconds=SILENCE_SECONDS) as cluster,
        asyncio.timeout(60),
    ):
        watch = cluster.watch(NODES, 7)
        assert await anext(watch) == WatchEvent(version=8)
        with pytest.raises(ClusterError, match="watch nodes"):
            await anext(watch)
