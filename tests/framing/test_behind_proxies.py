"""Behind proxies that share connections nobody gets what is another's."""

import logging
from pathlib import Path

import pytest

from tests.framing.behind import SharedProxy
from tests.framing.play import fuzz, shrink
from tests.framing.proxies import a_proxy, missing
from tests.framing.recording import a_recorded_gateway

pytestmark = pytest.mark.anyio
SHORT, FULL = 200, 5_000


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.mark.parametrize(
    ("name", "buffering", "seed", "count"),
    [
        ("nginx", "on", "short", SHORT),
        *[
            pytest.param(name, buffering, "full", FULL, marks=pytest.mark.full)
            for name, buffering in (
                ("nginx", "on"), ("nginx", "off"), ("haproxy", ""), ("caddy", ""),
            )
        ],
    ],
)  # fmt: skip
async def test_nobody_gets_what_is_anothers(
    name: str,
    buffering: str,
    seed: str,
    count: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if reason := missing(name):
        pytest.skip(reason)
    caplog.set_level(logging.CRITICAL, "uvicorn.error")
    async with (
        a_recorded_gateway() as (gateway, recording),
        a_proxy(name, gateway, tmp_path, buffering=buffering) as port,
    ):
        play = SharedProxy(port, recording).play
        async for difference in fuzz(play, (f"{seed}-{number}" for number in range(count))):
            pytest.fail(str(await shrink(play, difference)))
