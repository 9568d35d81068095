"""What a store makes of random records: rows, sums of hours, statements, and what reports say.

Months are past, so they close; of what comes later neither the id nor the hour is written, which
are those of the day of the run.
"""

import asyncio
import random
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import text

from tessera.domain.charge.scopes import OTHER_MONTH
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import (
    CHARGE_COLUMNS,
    USAGE_COLUMNS,
    Phase,
    RecordDimension,
    UsageRecord,
)
from tessera.domain.usage.report import UsageQuery
from tessera.domain.usage.statement import ChargeCorrection, ChargeQuery
from tessera.gateway.store.store import GatewayStore
from tessera.gateway.usage import journal
from tests.gateway.store.builders import SECOND, a_record
from tests.gateway.store.postgresql import postgresql_server
from tests.text_records import text_of

RECORDS = 10_000
_START = 1_770_000_000
_SPAN = 80 * 86_400
_BATCH, _CORRECTIONS, _FRAMES = 500, 40, 500
_LATE = "Late", "Correction"


def record_texts() -> Mapping[str, str]:
    """Return what SQLite and PostgreSQL make of the same records."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(postgresql_server())

        async def texts() -> Mapping[str, str]:
            urls = {
                "sqlite": f"sqlite:///{folder}/store.db",
                "postgresql": await server.create_database(),
            }
            return {name: await _text(url) for name, url in urls.items()} | {
                "journal": _journal(Path(folder))
            }

        return asyncio.run(texts())


def _records(seed: int, count: int) -> list[UsageRecord]:
    chance = random.Random(seed)  # noqa: S311 - a test's records
    return [_record(chance, number) for number in range(count)]


def _record(chance: random.Random, number: int) -> UsageRecord:
    pick, seconds = chance.choice, _START + chance.randrange(_SPAN)
    priced, outside, routed = chance.random() < 0.8, chance.random() < 0.2, chance.random() < 0.3
    charge = chance.randrange(10**9) if priced else None
    charges: list[tuple[str, int, int]] = []
    if charge is not None and chance.random() < 0.1:
        charges.append((OTHER_MONTH, _START - 40 * 86_400, charge // 3))
    fields: dict[str, Any] = {
        "record_id": f"gateway-{number}",
        "started_at_ns": seconds * SECOND + number,
        "tenant": pick(("team-a", "team-b", "team-c")),
        "team": pick((None, "search", "mail")),
        "user": pick((None, "ada", "bob", f"user-{number % 50}")),
        "key": pick((None, "laptop", "ci")),
        "service": "" if outside else pick(("team-a/chat", "team-b/code")),
        "model": pick(("chat", "code", "x" * 600, "na\0me")),
        "variant": pick((None, "a100-1gpu")),
        "phase": pick(tuple(Phase)),
        "status": pick((200, 400, 429, 503)),
        "reason": pick(("LeastLoaded", RequestReason.ENGINE_REFUSED, RequestReason.GATEWAY_KILLED)),
        "stream": pick((True, False)),
        "estimated": pick((True, False)),
        "input_tokens": pick((chance.randrange(10_000), 2**40, -5)),
        "cached_tokens": chance.randrange(100),
        "output_tokens": chance.randrange(1000),
        "reasoning_tokens": chance.randrange(100),
        "queue_ns": chance.randrange(10**9),
        "ttft_ns": pick((None, chance.randrange(10**9))),
        "total_ns": pick((chance.randrange(10**10), 2**63)),
        "tags": pick(("", "case=1", f"n={number % 90}")),
        "price_version": pick((None, "a100@1")),
        "requests": pick((1, 1, 1, 0, 40)),
        "charge_nanos": charge,
        "currency": pick(("USD", "EUR")) if priced else None,
        "price_list": pick(("standard@1", "large@2")) if priced else None,
        "charges": tuple(charges),
        "owner": pick((None, "platform")),
        "service_class": pick(("", "Interactive", "Batch")),
        "waste_nanos": pick((0, 0, chance.randrange(10**6))),
        "model_route": "team-a/assistant" if routed else "",
        "target": pick(("large", "small")) if routed else "",
        "provider": "acme/big" if outside else "",
        "cost_nanos": chance.randrange(10**9) if outside else 0,
        "cost_currency": pick(("USD", "EUR")) if outside else None,
    }
    return a_record(**fields)


async def _text(url: str) -> str:
    store = await GatewayStore.open(url)
    try:
        return text_of({name: lines async for name, lines in _parts(store)})
    finally:
        await store.close()


async def _parts(store: GatewayStore) -> Any:
    records = _records(1, RECORDS)
    for first in range(0, RECORDS, _BATCH):
        await store.record(records[first : first + _BATCH])
    yield "records", await _rows(store, "SELECT * FROM usage_records ORDER BY record_id")
    yield "sums of hours", await _rows(store, "SELECT * FROM charge_sums ORDER BY id")
    for by in sorted(USAGE_COLUMNS):
        yield f"usage by {by}", await _usage(store, by)
    yield "charges", await _charges(store)
    closed = await store.close_month()
    yield f"month closed: {closed}", await _rows(store, "SELECT * FROM charge_sums ORDER BY id")
    charged = [each for each in records if each.charge_nanos is not None][:_CORRECTIONS]
    for number, record in enumerate(charged):
        correction = ChargeCorrection(
            id=record.record_id, amount_nanos=number - 9, reason=f"reason {number % 3}"
        )
        await store.correct(correction, _START * SECOND)
    late = [replace(each, record_id=f"{each.record_id}-late") for each in records[:200]]
    await store.record(late)
    yield "charges after the close", await _charges(store)
    freed = await store.make_room("team-a")
    rows = await _rows(store, "SELECT * FROM usage_records ORDER BY record_id")
    yield f"room made: {freed}", rows


async def _usage(store: GatewayStore, by: RecordDimension) -> Sequence[str]:
    query = UsageQuery(by=(by,), since_ns=0, until_ns=2**63 - 1, limit=10_000)
    return sorted(map(str, (await store.usage(query)).rows))


async def _charges(store: GatewayStore) -> Sequence[str]:
    lines = []
    for by in sorted(CHARGE_COLUMNS):
        report = await store.charges(ChargeQuery(by=(by,), since=0, until=2**40))
        lines += [f"{by}: {row}" for row in sorted(map(str, report.rows))]
    return lines


async def _rows(store: GatewayStore, statement: str) -> Sequence[str]:
    async with store.read() as connection:
        rows = (await connection.execute(text(statement))).mappings().all()
    return [*map(_line, rows)]


def _line(row: Any) -> str:
    left_out = {"id", "hour"} if row.get("flag") in _LATE else set[str]()
    named = sorted((name, value) for name, value in row.items() if name not in left_out)
    return " ".join(f"{name}={_plain(value)!r}" for name, value in named if value is not None)


def _plain(value: Any) -> Any:
    """Return a value as both databases have it."""
    if isinstance(value, str):
        return value
    return value if isinstance(value, list) else int(value)


def _journal(folder: Path) -> str:
    frames = [journal._frame(record) for record in _records(2, _FRAMES)]
    path = folder / "journal"
    path.write_bytes(b"".join(frames))
    return text_of(
        {
            "frames": [frame.hex() for frame in frames],
            "read": map(str, journal._read(path)),
        }
    )
