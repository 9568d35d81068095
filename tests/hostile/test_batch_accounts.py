"""Accounts of charges beside many batches, silent runners and edits of a budget."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from tessera.domain.charge.batch_rows import BatchOutcome
from tessera.domain.usage.statement import ChargeQuery
from tessera.gateway.store.batches import BatchStore
from tessera.gateway.store.store import GatewayStore
from tessera.gateway.usage.metrics import GatewayMetrics
from tessera.gateway.usage.recording import Recording
from tests.gateway.store.builders import a_record
from tests.gateway.store.test_batches import (
    LIMIT,
    ROW_NANOS,
    TERMS,
    a_block,
    a_message,
    settled,
)
from tests.hostile.score import SCORE

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[GatewayStore]:
    opened = await GatewayStore.open(f"sqlite:///{tmp_path}/store.db")
    yield opened
    await opened.close()


async def execute(store: GatewayStore, statement: str, *rows: dict[str, object]) -> None:
    async with store.write() as connection:
        await connection.execute(text(statement), rows or None)


async def charged(store: GatewayStore) -> list[tuple[str | None, int, int]]:
    rows = (await store.charges(ChargeQuery(by=(), since=0, until=2**40))).rows
    return [(row.currency, row.requests, row.charge_nanos) for row in rows]


async def test_batches_that_ended_are_in_no_account_that_gateways_read(store: GatewayStore) -> None:
    batches = BatchStore(store, "gateway")
    for uid in ("uid-1", "uid-2", "uid-3"):
        of_batch: dict[str, object] = {"uid": uid, "want": 5000}
        await batches.exchange(TERMS, a_message().model_copy(update=of_batch))
        of_batch |= {"blocks": (a_block(rows=range(10)),), "want": 0}
        await batches.exchange(TERMS, a_message().model_copy(update=of_batch))
    async with store.read() as connection:
        rows = await connection.execute(text("SELECT state FROM charge_accounts"))
        borrowers = [json.loads(state)["gateways"] for (state,) in rows]
    SCORE.add(sum(map(len, borrowers)))
    assert borrowers == [{}, {}]
    assert await settled(store) == (30 * ROW_NANOS, 0)

    # One that goes on pays further rows once.
    later = {"uid": "uid-1", "blocks": (a_block(rows=range(12)),)}
    await batches.exchange(TERMS, a_message(want=5000).model_copy(update={"uid": "uid-1"}))
    await batches.exchange(TERMS, a_message().model_copy(update=later))
    assert await settled(store) == (32 * ROW_NANOS, 0)
    assert await charged(store) == [("USD", 32, 32 * ROW_NANOS)]


async def test_rows_that_ran_while_nothing_was_heard_of_their_runner_are_paid(
    store: GatewayStore,
) -> None:
    batches = BatchStore(store, "gateway")
    await batches.exchange(TERMS, a_message(need=500, want=5000))
    await execute(store, "UPDATE charge_batches SET changed_at = changed_at - 601")
    await batches.free_silent()
    assert await settled(store) == (0, 0)

    await batches.exchange(TERMS, a_message(blocks=(a_block(rows=range(10)),)))
    SCORE.add(int((await settled(store))[0] != 10 * ROW_NANOS))
    assert await settled(store) == (10 * ROW_NANOS, 0)
    # Rows beyond the limit pay nothing.
    await batches.exchange(
        TERMS, a_message(blocks=(a_block(1, rows=range(1000)), a_block(2, range(1000))))
    )
    assert (await settled(store))[0] <= LIMIT.amount


async def test_no_row_is_paid_in_another_currency_than_its_limit(store: GatewayStore) -> None:
    batches = BatchStore(store, "gateway")
    yen = replace(TERMS, price=replace(TERMS.price, currency="JPY"), scopes=())
    await batches.exchange(yen, a_message())
    answer = await batches.exchange(TERMS, a_message(blocks=(a_block(rows=[0]),), want=5000))
    SCORE.add(int(await settled(store) != (0, 0)))
    assert (answer.outcome, await settled(store)) == (BatchOutcome.EXCEEDED, (0, 0))
    next_one = a_message(2, blocks=(a_block(rows=[0]),), need=500, want=500)
    assert (await batches.exchange(TERMS, next_one)).outcome is BatchOutcome.GRANTED
    assert await charged(store) == [("USD", 1, ROW_NANOS)]


async def test_a_runner_that_opens_reads_many_blocks_in_parts(store: GatewayStore) -> None:
    batches = BatchStore(store, "gateway")
    await batches.exchange(TERMS, a_message())
    state = json.dumps({"done": "f", "attempt": 1, "cut_input": 0, "cut_output": 0})
    block = {"at": time.time(), "state": state}
    await execute(
        store,
        "INSERT INTO charge_batches VALUES ('team-a/uid-1', :block, :at, :state, 'team-a')",
        *({"block": number, **block} for number in range(1001)),
    )
    answer = await batches.exchange(TERMS, a_message(opens=True))
    assert answer.settled == tuple((number, 4) for number in range(1001))


async def test_rows_that_cannot_be_freed_keep_no_others(store: GatewayStore) -> None:
    """Blocks of batches that go on are needed: whoever has most of them stops nothing."""
    state = json.dumps({"done": "f", "attempt": 1, "cut_input": 0, "cut_output": 0})
    await execute(
        store,
        "INSERT INTO charge_batches VALUES ('team-a/uid-1', :block, :at, :state, 'team-a')",
        *({"block": number, "at": time.time(), "state": state} for number in range(300)),
    )
    await store.record([a_record(tenant="team-b") for _ in range(200)])
    recording = Recording(
        store, None, GatewayMetrics(), retention=timedelta(days=10_000), max_rows=400
    )
    await recording.prune(time.time_ns())
    rows = await store.rows_by_tenant()
    SCORE.add(int(sum(rows.values()) > 400))
    assert rows["team-a"] == 300
    assert rows["team-b"] <= 100
