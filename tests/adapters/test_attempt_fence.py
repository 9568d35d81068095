"""What the API server says of a batch, as its runner understands it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from tessera.adapters.kube.attempt_fence import KubeFence
from tessera.ports import NotFoundError
from tests.adapters.small_server import connected_cluster

NIGHT = {"metadata": {"uid": "uid-night"}, "status": {"attempt": {"number": 2}}}


class _ScriptedServer:
    def __init__(self) -> None:
        self.status = 200
        self.body: dict[str, Any] = NIGHT
        self.seconds = 0.0

    async def answer(self, _: web.Request) -> web.Response:
        return web.json_response(self.body, status=self.status)

    @asynccontextmanager
    async def fence(self) -> AsyncIterator[KubeFence]:
        async with connected_cluster(self.answer) as cluster:
            yield KubeFence(cluster, "team-a", "night", "uid-night", lambda: self.seconds)


async def test_a_token_that_stays_refused_means_that_its_account_and_batch_are_gone() -> None:
    server = _ScriptedServer()
    async with server.fence() as fence:
        assert await fence.current() == 2
        server.status = 401
        assert await fence.current() is None
        server.seconds = 29
        assert await fence.current() is None
        server.seconds = 30
        with pytest.raises(NotFoundError, match="ServiceAccount of this pod was deleted"):
            await fence.current()


async def test_a_token_that_was_refused_for_a_moment_or_was_never_valid_says_nothing() -> None:
    server = _ScriptedServer()
    server.status = 401
    async with server.fence() as fence:
        for server.seconds in (0, 60):
            assert await fence.current() is None
        for server.seconds, server.status in ((61, 200), (62, 401), (91, 503), (92, 401)):
            assert await fence.current() == (2 if server.status == 200 else None)


async def test_a_batch_that_a_finalizer_keeps_has_no_current_attempt() -> None:
    server = _ScriptedServer()
    metadata = {"uid": "uid-night", "deletionTimestamp": "2026-11-20T12:00:00Z"}
    server.body = {**NIGHT, "metadata": metadata}
    async with server.fence() as fence:
        with pytest.raises(NotFoundError, match="team-a/night is being deleted"):
            await fence.current()
