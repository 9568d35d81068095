from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tessera.gateway.store.store import GatewayStore
from tests.gateway.store.postgresql import PostgresqlServer, postgresql_server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    with postgresql_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
async def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    return await server.create_database()


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[GatewayStore]:
    opened = await GatewayStore.open(store_url)
    yield opened
    await opened.close()
