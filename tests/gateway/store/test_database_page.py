"""The page about backups, typed in beside a gateway's file and a real PostgreSQL server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from docs_tests.blocks import Command, read_steps
from docs_tests.output import matches
from environments import environment
from tessera.domain.usage.report import UsageQuery
from tessera.gateway import import_usage
from tessera.gateway.store.store import GatewayStore, own_file
from tests.gateway.store.builders import a_record
from tests.gateway.store.postgresql import PostgresqlServer

PAGE = Path(__file__).parents[3] / "docs" / "tasks" / "gateway-database.md"
COMMANDS = [step for step in read_steps(PAGE.read_text("utf-8")) if isinstance(step, Command)]
ALL = UsageQuery(by=(), since_ns=0, until_ns=2**63 - 1)
# Runs in this shell what kubectl would run in the gateway's container.
KUBECTL = '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n'


class Terminal:
    """Types in the commands of one section, in order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (programs,) = environment("postgresql").glob("**/pginstall18/bin")
        kubectl = folder / "kubectl"
        kubectl.write_text(KUBECTL)
        kubectl.chmod(0o755)
        own = Path(sys.executable).parent
        self._variables = {
            **os.environ,
            "PATH": f"{folder}:{own}:{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(import_usage.__file__).parents[2]),
        }

    def type(self, section: str, **variables: str) -> None:
        """Type what stands below a heading; fail unless it prints what stands there."""
        commands = [command for command in COMMANDS if command.section == section]
        assert commands
        for command in commands:
            self._type(command, variables)

    def _type(self, command: Command, variables: dict[str, str]) -> None:
        process = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", command.text],
            cwd=self._folder,
            env={**self._variables, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not process.returncode, process.stderr
        assert command.output is None or matches(command.output, process.stdout), process.stdout


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path)


async def new_store(url: str, records: int = 0) -> str:
    store = await GatewayStore.open(url)
    await store.record([a_record() for _ in range(records)])
    await store.close()
    return url


async def count(url: str) -> int:
    store = await GatewayStore.open(url)
    (row,) = (await store.usage(ALL)).rows
    await store.close()
    return row.requests


async def test_a_backup_of_a_file_is_restored_into_another_gateway(
    terminal: Terminal, tmp_path: Path, postgresql: PostgresqlServer
) -> None:
    url = await postgresql.create_database()
    await new_store(own_file(tmp_path), records=5)
    await new_store(url, records=2)

    terminal.type("SQLite", TESSERA_STATE_DIRECTORY=str(tmp_path), TESSERA_DATABASE_URL=url)

    assert (await count(url), await count(own_file(tmp_path))) == (7, 5)
    assert not (tmp_path / "backup.db").exists()


async def test_a_database_is_dumped_restored_and_moved(
    terminal: Terminal, postgresql: PostgresqlServer
) -> None:
    old = await new_store(await postgresql.create_database(), records=3)
    restored = await postgresql.create_database()
    new = await new_store(await postgresql.create_database(), records=1)

    terminal.type("PostgreSQL", DATABASE=old, RESTORED=restored)
    terminal.type("Move from one PostgreSQL to another", OLD=old, NEW=new)

    assert (await count(restored), await count(new)) == (3, 4)
