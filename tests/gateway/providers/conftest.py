"""One gateway for all tests of a file, since to start it costs more than to ask it."""

from collections.abc import AsyncIterator

import pytest

from tests.gateway.providers.played import Played, played


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Played]:
    async with played(tmp_path_factory.mktemp("providers")) as running:
        yield running


@pytest.fixture
def play(gateway: Played) -> Played:
    gateway.forget()
    return gateway
