"""The gateway reads what an independent reader reads, or refuses it and closes the connection."""

import contextlib
import logging
from functools import partial
from typing import cast

import httptools
import pytest
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tessera.gateway.http.protocol import GatewayProtocol
from tests.framing.play import fuzz, play_alone, shrink
from tests.framing.recording import a_recorded_gateway

pytestmark = pytest.mark.anyio
SHORT, FULL, FAULTY = 2_000, 1_000_000, 300


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Each of a million refusals has a line."""
    caplog.set_level(logging.CRITICAL, "uvicorn.error")


@pytest.mark.parametrize(
    ("seed", "count"), [("short", SHORT), pytest.param("full", FULL, marks=pytest.mark.full)]
)
async def test_the_gateway_reads_what_the_bytes_say(seed: str, count: int) -> None:
    async with a_recorded_gateway() as (port, recording):
        play = partial(play_alone, port, recording)
        async for difference in fuzz(play, (f"{seed}-{number}" for number in range(count))):
            pytest.fail(str(await shrink(play, difference)))


class _EndsAtUpgrades(GatewayProtocol):
    """Reads the body after an offer to upgrade as the next requests."""

    @override
    def _parse(self, data: bytes | memoryview) -> None:
        with contextlib.suppress(httptools.HttpParserUpgrade):
            self.parser.feed_data(data)

    @override
    def on_headers_complete(self) -> None:
        self._in_headers = False
        HttpToolsProtocol.on_headers_complete(self)


Headers = list[tuple[bytes, bytes]]


class _TakesTrailers(GatewayProtocol):
    """Takes trailers for headers."""

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_headers:
            cast("Headers", self.cycle.scope["headers"]).append((name.lower(), value))
        super().on_header(name, value)


class _TakesAnyHead(GatewayProtocol):
    """Takes any head: all versions, hosts, encodings and targets."""

    @override
    def _check_head(self) -> None:
        pass


@pytest.mark.parametrize(
    ("protocol", "kind"),
    [
        (_EndsAtUpgrades, "no request"),
        (_TakesTrailers, "another request"),
        (_TakesAnyHead, "no request"),
    ],
)
async def test_a_gateway_that_reads_something_else_is_seen(
    protocol: type[GatewayProtocol], kind: str
) -> None:
    async with a_recorded_gateway(protocol) as (port, recording):
        seeds = (f"faulty-{number}" for number in range(FAULTY))
        async for difference in fuzz(partial(play_alone, port, recording), seeds):
            if kind in difference.kinds:
                return
    pytest.fail(f"nothing of {FAULTY} inputs shows it")
