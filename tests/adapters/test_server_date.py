"""The time of the API server, as its responses say; a small server takes its place."""

import asyncio
from datetime import UTC, datetime

import pytest
from aiohttp import web

from tests.adapters.small_server import connected_cluster


@pytest.mark.parametrize("date", ["soon", "Tue, 99 Nov 2026 25:00:00 GMT"])
async def test_the_date_of_the_latest_response_that_has_one_is_known(date: str) -> None:
    dates = iter(["Sat, 21 Nov 2026 20:00:00 GMT", date])

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({}, headers={"Date": next(dates)})

    async with connected_cluster(answer) as cluster:
        assert cluster.server_date is None
        for _ in range(2):
            await cluster.request("GET", "/api")
        assert cluster.server_date is not None
        assert cluster.server_date.at == datetime(2026, 11, 21, 20, tzinfo=UTC)
        assert cluster.server_date.monotonic <= asyncio.get_running_loop().time()
