"""The log of a container is read from its beginning, and no further than asked."""

import pytest
from aiohttp import web

from tessera.domain.observed.snapshot import Ref
from tessera.ports import ClusterError
from tests.adapters.small_server import connected_cluster

CHAT_0 = Ref("team-a", "chat-0")


@pytest.mark.parametrize(("status", "log"), [(200, "took 3 s\n\ufffd"), (403, None), (404, None)])
async def test_a_log_is_its_text_and_nothing_where_it_is_refused(
    status: int, log: str | None
) -> None:
    asked = []

    async def respond(request: web.Request) -> web.Response:
        asked.append(request.path_qs)
        return web.Response(status=status, body=b"took 3 s\n\xff", content_type="text/plain")

    async with connected_cluster(respond) as cluster:
        assert await cluster.pod_log(CHAT_0, "engine", 1024) == log
    path = "/api/v1/namespaces/team-a/pods/chat-0/log"
    assert asked == [f"{path}?container=engine&limitBytes=1024"]


async def test_a_log_without_an_answer_is_an_error() -> None:
    async def respond(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with connected_cluster(respond) as cluster:
        with pytest.raises(ClusterError, match="no response from the API server"):
            await cluster.pod_log(CHAT_0, "engine", 1024)
