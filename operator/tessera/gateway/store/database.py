"""Connections to the store's database, and its schema."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Dialect, Table, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 5.0
# Gateways that start together migrate one after the other.
_MIGRATION_LOCK = 0x7E55E7A
_SQLITE_PRAGMAS = (
    "PRAGMA busy_timeout = 5000",
    "PRAGMA journal_mode = WAL",
    # A commit survives the loss of power, as PostgreSQL's does.
    "PRAGMA synchronous = FULL",
)
_JSON_CODEC: dict[str, Any] = {
    "json_serializer": lambda value: msgspec.json.encode(value).decode(),
    "json_deserializer": msgspec.json.decode,
}


class StoreError(Exception):
    """The store cannot be used; the message says why, without passwords."""


class Database:
    """One SQLite file or PostgreSQL database."""

    def __init__(self, url: str) -> None:
        """Take `sqlite:////path/of/file` or a `postgresql://` URL as libpq has it."""
        self._url = _parse(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self._engine = self._sqlite() if self.is_sqlite else self._postgresql()
        option: dict[str, Any] = (
            {"reads_only": True} if self.is_sqlite else {"postgresql_readonly": True}
        )
        self._reader = self._engine.execution_options(**option)
        # SQLite has one writer, and those that wait for it in the file only try again and again.
        self._writers = asyncio.Semaphore(1) if self.is_sqlite else nullcontext()

    @asynccontextmanager
    async def write(self, seconds: float = 5.0) -> AsyncIterator[AsyncConnection]:
        """Open a transaction; StoreError when it takes longer, or when the database refuses."""
        async with self._writers, self._transaction(self._engine, seconds) as connection:
            yield connection

    @asynccontextmanager
    async def read(self, seconds: float = 60.0) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that only reads, and that delays no writer."""
        async with self._transaction(self._reader, seconds) as connection:
            yield connection

    async def migrate(self) -> None:
        """Bring the schema to this version's; gateways that start together take turns."""
        # It computes for tenths of a second, and requests go on meanwhile: on a loop of its own.
        await asyncio.to_thread(asyncio.run, _migrate_alone(self._url))

    async def close(self) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def _transaction(
        self, engine: AsyncEngine, seconds: float
    ) -> AsyncIterator[AsyncConnection]:
        try:
            async with asyncio.timeout(seconds), engine.begin() as connection:
                yield connection
        except TimeoutError as error:
            raise StoreError(f"{self._name}: no answer within {seconds:g} s") from error
        except (SQLAlchemyError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreError(f"{self._name}: {_reason(error)}") from error

    @property
    def _name(self) -> str:
        return self._url.set(drivername=self._url.get_backend_name()).render_as_string()

    def _sqlite(self) -> AsyncEngine:
        url = self._url.set(drivername="sqlite+aiosqlite")
        engine = create_async_engine(url, **_JSON_CODEC)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine

    def _postgresql(self) -> AsyncEngine:
        # The driver itself reads the URL: it knows the options of libpq, such as `sslmode`.
        dsn = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        return create_async_engine(
            "postgresql+asyncpg://",
            async_creator=partial(asyncpg.connect, dsn, timeout=_CONNECT_SECONDS),
            pool_size=4,
            max_overflow=0,
            **_JSON_CODEC,
        )


async def insert_rows(
    connection: AsyncConnection,
    table: Table,
    rows: Sequence[tuple[Any, ...]],
    sums: tuple[str, ...] | None = None,
) -> None:
    """Insert rows of a table, each with the values of all its columns in their order.

    Of a row that is there these sums grow, and the rest stays; with None it is an error. Values go
    to the driver as they are, a column of JSON as its text: SQLAlchemy takes longer for a row than
    the database.
    """
    if rows:
        dialect = connection.dialect
        # One of each call in the code, beside the table that it is of.
        known = sums, dialect.name
        if known not in table.info:
            table.info[known] = _insert(table, sums, dialect)
        await connection.exec_driver_sql(table.info[known], [*rows])


def _insert(table: Table, sums: tuple[str, ...] | None, dialect: Dialect) -> str:
    statement = (sqlite if dialect.name == "sqlite" else postgresql).insert(table)
    if sums:
        more = statement.excluded
        statement = statement.on_conflict_do_update(
            index_elements=[column.name for column in table.primary_key],
            set_={name: table.c[name] + more[name] for name in sums},
        )
    elif sums is not None:
        statement = statement.on_conflict_do_nothing()
    return str(statement.compile(dialect=dialect))


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise StoreError("store URL: begin with sqlite:// or postgresql://")
    if parsed.get_backend_name() == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise StoreError(
                "store URL: name the file, such as sqlite:////var/lib/tessera/store.db"
            )
        if not (folder := Path(parsed.database).parent).is_dir():
            raise StoreError(f"store URL: {folder} is no folder")
    return parsed


def _prepare_sqlite(connection: Any, _: object) -> None:
    # The driver begins no transactions by itself: `_begin_sqlite` does.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in _SQLITE_PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    reads_only = connection.get_execution_options().get("reads_only", False)
    # A writer waits for the last one here, and not where it already read.
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")


async def _migrate_alone(url: URL) -> None:
    database = Database(url.render_as_string(hide_password=False))
    try:
        async with database.write(seconds=60.0) as connection:
            await connection.run_sync(_migrate)
    finally:
        await database.close()


def _migrate(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    config = Config()
    config.set_main_option("script_location", "tessera.gateway.store:migrations")
    config.attributes["connection"] = connection
    current = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in known:
        log.warning("the store has the newer schema %s, which only adds to this version's", current)
        return
    command.upgrade(config, "head")


def _reason(error: BaseException) -> str:
    """Return the first line of the driver's own message: statements and values stay inside."""
    cause = getattr(error, "orig", None) or error
    lines = str(cause).splitlines()
    return lines[0] if lines else type(cause).__name__
