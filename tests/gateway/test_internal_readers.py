"""Readers of the port for the platform: no token of one address keeps those of another waiting."""

import asyncio
import logging
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from typing_extensions import override

from tessera.domain.gateway.requests import RunningRequest
from tessera.gateway.internal_api import MAX_WAITING_READERS, InternalApi
from tessera.gateway.usage.metrics import GatewayMetrics
from tests.cli.test_usage import NAMESPACE, NO_OTHERS
from world.testing import eventually

READER = f"system:serviceaccount:{NAMESPACE}:tessera-usage-reader"


class Requests:
    def running(self, limit: int) -> tuple[list[RunningRequest], int]:
        assert limit
        return [], 0

    def explain(self, request_id: str) -> Any:
        raise AssertionError(request_id)


async def status_of(url: str, token: str, address: str) -> int:
    connector = aiohttp.TCPConnector(local_addr=(address, 0))
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(connector=connector, headers=headers) as session,
        session.get(url) as response,
    ):
        return response.status


async def test_slow_tokens_of_one_address_keep_no_reader_of_another_out() -> None:
    reviewed, release = list[str](), asyncio.Event()

    async def review(token: str) -> str | None:
        reviewed.append(token)
        if token.startswith("slow"):
            await release.wait()
        return READER if token == "reader" else None  # noqa: S105 - a name

    metrics = GatewayMetrics()
    store: Any = None
    api = InternalApi(metrics, store, review, NAMESPACE, dict, Requests(), others=NO_OTHERS)
    async with TestServer(api.application()) as server:
        url = str(server.make_url("/requests"))
        slow = [
            asyncio.create_task(status_of(url, f"slow-{number}", "127.0.0.2"))
            for number in range(MAX_WAITING_READERS + 3)
        ]

        async def are_refused() -> None:
            assert sum(each.done() for each in slow) == 2

        await eventually(are_refused)
        assert reviewed == ["slow-0"]
        for _ in range(3):
            assert await status_of(url, "reader", "127.0.0.1") == 200
        release.set()
        statuses = await asyncio.gather(*slow)
    assert sorted(statuses) == [401] * (MAX_WAITING_READERS + 1) + [429] * 2
    count = metrics.registry.get_sample_value
    name = "tessera_gateway_readers_refused_total"
    assert [count(name, {"code": code}) for code in ("401", "429")] == [MAX_WAITING_READERS + 1, 2]


async def holds_reader(token: str) -> str | None:
    return READER if token == "reader" else None  # noqa: S105 - a name


async def test_a_head_that_cannot_be_read_is_refused_without_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store: Any = None
    api = InternalApi(
        GatewayMetrics(), store, holds_reader, NAMESPACE, dict, Requests(), others=NO_OTHERS
    )
    with caplog.at_level(logging.WARNING):
        async with TestServer(api.application()) as server:
            url = str(server.make_url("/requests"))
            assert await status_of(url, "x" * 2**14, "127.0.0.1") == 400
            assert await status_of(url, "reader", "127.0.0.1") == 200
    assert caplog.messages == []


async def test_two_tokens_are_no_reader_whichever_is_first() -> None:
    store: Any = None
    api = InternalApi(
        GatewayMetrics(), store, holds_reader, NAMESPACE, dict, Requests(), others=NO_OTHERS
    )
    async with TestServer(api.application()) as server, aiohttp.ClientSession() as session:
        for tokens in (("reader", "other"), ("other", "reader")):
            fields = [("Authorization", f"Bearer {token}") for token in tokens]
            async with session.get(server.make_url("/requests"), headers=fields) as response:
                assert response.status == 401


class CountedMetrics(GatewayMetrics):
    pages = 0

    @override
    def page(self) -> bytes:
        self.pages += 1
        return b"up 1\n"


async def test_many_who_ask_for_metrics_at_once_get_one_page() -> None:
    metrics = CountedMetrics()
    nothing: Any = None
    api = InternalApi(metrics, nothing, nothing, NAMESPACE, dict, Requests(), others=NO_OTHERS)
    request: Any = None
    pages = await asyncio.gather(*(api._metrics_page(request) for _ in range(20)))
    assert {bytes(page.body) for page in pages if isinstance(page.body, bytes)} == {b"up 1\n"}
    assert (len(pages), metrics.pages) == (20, 1)
