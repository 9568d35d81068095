"""A gateway of 0.1 and one of today on one database, and on one volume, one after the other."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tessera.domain.usage.report import UsageQuery
from tessera.gateway.store.store import GatewayStore
from tessera.gateway.usage.journal import UsageJournal, abandoned_journals
from tests import earlier_tessera
from tests.gateway.store.builders import a_record

pytestmark = pytest.mark.long


class EarlierGateway:
    """A process with the modules of 0.1."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("earlier_gateway.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", script],
            env=earlier_tessera.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str) -> Any:
        """Run a command of `earlier_gateway.py`; return what it answers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(command), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def earlier() -> Iterator[EarlierGateway]:
    gateway = EarlierGateway()
    try:
        assert Path(gateway.run("modules", "")).is_relative_to(earlier_tessera.unpacked())
        yield gateway
    finally:
        gateway.kill()


async def requests(store: GatewayStore) -> int:
    (row,) = (await store.usage(UsageQuery(by=(), since_ns=0, until_ns=2**63 - 1))).rows
    return row.requests


async def test_both_record_into_one_database_before_and_after_its_migration_and_after_a_rollback(
    store_url: str, earlier: EarlierGateway
) -> None:
    earlier.run("record", store_url, "before")
    store = await GatewayStore.open(store_url)
    await store.record([a_record()])
    earlier.run("record", store_url, "beside")
    assert earlier.run("usage", store_url) == await requests(store) == 3
    await store.close()

    earlier.run("close", store_url)
    earlier.run("record", store_url, "after a rollback")
    written = earlier.run("oldest", store_url)

    assert len(written) == 4
    assert {path.partition("/v1/")[0] for _, path in written} == {""}


def test_what_a_killed_gateway_left_is_recovered_in_both_directions(
    tmp_path: Path, earlier: EarlierGateway
) -> None:
    up, back = tmp_path / "up", tmp_path / "back"
    journal = UsageJournal(back)
    journal.add([a_record(record_id="a"), a_record(record_id="b")], 2)
    journal._file.close()
    assert earlier.run("recover", str(back)) == ["a", "b"]

    earlier.run("journal", str(up), "a", "b")
    earlier.kill()
    (left,) = abandoned_journals(up)
    assert [record.record_id for record in left.records] == ["a", "b"]
