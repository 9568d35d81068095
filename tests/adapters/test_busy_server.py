"""A busy API server says when to retry; a small server takes its place."""

import asyncio
import time

import pytest
from aiohttp import web

from tessera.ports import ClusterError
from tests.adapters.small_server import connected_cluster


@pytest.mark.parametrize("code", [429, 503])
async def test_a_busy_server_is_retried_after_the_time_that_it_names_and_not_before(
    code: int,
) -> None:
    request_times: list[float] = []

    async def answer(_: web.Request) -> web.Response:
        request_times.append(time.monotonic())
        if len(request_times) == 1:
            return web.json_response({}, status=code, headers={"Retry-After": "1"})
        return web.json_response({"kind": "List"})

    async with connected_cluster(answer) as cluster:
        assert await cluster.request("GET", "/api") == (200, {"kind": "List"})
    assert len(request_times) == 2
    assert request_times[1] - request_times[0] >= 1


async def test_a_request_that_must_wait_past_its_deadline_fails_and_sends_nothing_meanwhile() -> (
    None
):
    paths: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        paths.append(request.path)
        if request.path == "/busy":
            return web.json_response({}, status=429, headers={"Retry-After": "60"})
        return web.json_response({})

    async with connected_cluster(answer) as cluster:
        for _ in range(3):
            with pytest.raises(ClusterError, match="asks to retry later"):
                await cluster.request("GET", "/busy")
        assert (await cluster.request("GET", "/other"))[0] == 200
    assert paths == ["/busy", "/other"]


async def test_a_refusal_without_retry_after_is_returned_at_once() -> None:
    paths: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.json_response({"message": "no"}, status=429)

    async with connected_cluster(answer) as cluster:
        assert await cluster.request("GET", "/api") == (429, {"message": "no"})
    assert paths == ["/api"]


async def test_a_burst_of_requests_shares_few_connections() -> None:
    active, most, arrived = 0, 0, asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        nonlocal active, most
        active += 1
        most = max(most, active)
        if active == 20:
            arrived.set()
        await arrived.wait()
        await asyncio.sleep(0)
        active -= 1
        return web.json_response({})

    async with connected_cluster(answer) as cluster:
        responses = await asyncio.gather(
            *(cluster.request("GET", f"/{index}") for index in range(64))
        )
    assert {status for status, _ in responses} == {200}
    assert most == 20
