"""An API server that is busy says when it wants to be asked again; a small one stands in for it."""

import asyncio
import time

import pytest
from aiohttp import web

from tessera.ports import ClusterError
from tests.adapters.small_server import served


@pytest.mark.parametrize("code", [429, 503])
async def test_a_busy_server_is_asked_again_when_it_said_and_not_before(code: int) -> None:
    asked: list[float] = []

    async def answer(_: web.Request) -> web.Response:
        asked.append(time.monotonic())
        if len(asked) == 1:
            return web.json_response({}, status=code, headers={"Retry-After": "1"})
        return web.json_response({"kind": "List"})

    async with served(answer) as cluster:
        assert await cluster.request("GET", "/api") == (200, {"kind": "List"})
    assert len(asked) == 2
    assert asked[1] - asked[0] >= 1


async def test_who_shall_wait_longer_than_there_is_time_fails_and_asks_nobody_meanwhile() -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path == "/busy":
            return web.json_response({}, status=429, headers={"Retry-After": "60"})
        return web.json_response({})

    async with served(answer) as cluster:
        for _ in range(3):
            with pytest.raises(ClusterError, match="asks to retry later"):
                await cluster.request("GET", "/busy")
        assert (await cluster.request("GET", "/other"))[0] == 200
    assert asked == ["/busy", "/other"]


async def test_a_refusal_that_says_nothing_of_waiting_is_handed_on_at_once() -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"message": "no"}, status=429)

    async with served(answer) as cluster:
        assert await cluster.request("GET", "/api") == (429, {"message": "no"})
    assert asked == ["/api"]


async def test_a_burst_of_requests_shares_few_connections() -> None:
    now, most, arrived = 0, 0, asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        if now == 20:
            arrived.set()
        await arrived.wait()
        await asyncio.sleep(0)
        now -= 1
        return web.json_response({})

    async with served(answer) as cluster:
        got = await asyncio.gather(*(cluster.request("GET", f"/{index}") for index in range(64)))
    assert {status for status, _ in got} == {200}
    assert most == 20
