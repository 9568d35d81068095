"""Batches that are charged, in SQLite and PostgreSQL: each row is settled once."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from tessera.domain.charge.account import window_at
from tessera.domain.charge.batch_rows import (
    BatchAnswer,
    BatchMessage,
    BatchOutcome,
    BlockUse,
    RowTokens,
)
from tessera.domain.charge.prices import RequestPrice
from tessera.domain.charge.reports import reported_charges
from tessera.domain.charge.scopes import ChargeLimit, ChargeScope
from tessera.domain.gateway.usage_record import RecordDimension
from tessera.domain.usage.statement import ChargeQuery
from tessera.gateway.store.batches import BatchStore, BatchTerms
from tessera.gateway.store.store import FreedRows, GatewayStore
from tests.gateway.store.builders import START_NS, a_record
from tests.gateway.store.test_charge_accounts import an_ask, answer

LIMIT = ChargeLimit(
    budget="team-a",
    generation=1,
    name="charge-month",
    window="Month",
    amount=100_000,
    currency="USD",
    time_zone="UTC",
)
MONTH = ChargeScope(key="team-a/charge-month", limit=LIMIT)
DAY = ChargeScope(key="team-a/charge-day", limit=replace(LIMIT, name="charge-day", window="Day"))
# A nano-unit for a token of a prompt, two for one of an answer, five for a row.
PRICE = RequestPrice(
    price_list="standard@1",
    currency="USD",
    input=10**6,
    cached_input=10**6,
    output=2 * 10**6,
    reasoning=2 * 10**6,
    per_request=1000,
    per_batch_row=5,
)
TERMS = BatchTerms(namespace="team-a", tenant="team-a", price=PRICE, scopes=(MONTH, DAY))
ROW_NANOS = 10 + 2 * 20 + 5


@pytest.fixture
def batches(store: GatewayStore) -> BatchStore:
    return BatchStore(store, "gateway")


def a_message(attempt: int = 1, **fields: Any) -> BatchMessage:
    return BatchMessage(batch="night", uid="uid-1", attempt=attempt, model="llama", **fields)


def a_block(number: int = 0, rows: Iterable[int] = (), **fields: Any) -> BlockUse:
    tokens = tuple(RowTokens(row, 10, 20) for row in rows)
    return BlockUse(number=number, rows=tokens, **fields)


async def settled(store: GatewayStore, scope: ChargeScope = MONTH) -> tuple[int, int]:
    """Return what an account has settled, and what is lent."""
    start = window_at(scope.limit, time.time())[0]
    known = await answer(store, "other", replace(an_ask(scope=scope), start=start))
    return known.settled, known.lent


async def rows_in(store: GatewayStore, table: str) -> int:
    async with store.read() as connection:
        return int(await connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0)  # noqa: S608


async def test_a_batch_reserves_its_share_and_pays_what_its_rows_used(
    store: GatewayStore, batches: BatchStore
) -> None:
    opened = await batches.exchange(TERMS, a_message(opens=True))
    assert opened == BatchAnswer(
        outcome=BatchOutcome.GRANTED, input=10**6, output=2 * 10**6, per_row=5
    )

    granted = await batches.exchange(TERMS, a_message(need=500, want=90_000))
    assert (granted.outcome, granted.reserved) == (BatchOutcome.GRANTED, 5000)
    assert await settled(store) == await settled(store, DAY) == (0, 5000)

    paid = await batches.exchange(TERMS, a_message(blocks=(a_block(rows=range(10)),)))
    assert (paid.outcome, paid.reserved) == (BatchOutcome.GRANTED, 0)
    # Budgets act by this report.
    reported = reported_charges(batches.answered())
    assert {limit.limit: each.accounts[0].settled for limit, each in reported.items()} == {
        "charge-month": 10 * ROW_NANOS,
        "charge-day": 10 * ROW_NANOS,
    }
    assert await settled(store) == await settled(store, DAY) == (10 * ROW_NANOS, 0)


async def test_a_message_that_comes_again_late_or_of_an_older_attempt_settles_nothing(
    store: GatewayStore, batches: BatchStore
) -> None:
    first = a_message(blocks=(a_block(rows=range(10)),), want=5000)
    second = a_message(blocks=(a_block(rows=range(30)),), want=5000)
    await batches.exchange(TERMS, a_message(want=5000))
    for message in (first, first, second, first, second):
        await batches.exchange(TERMS, message)
    assert (await settled(store))[0] == 30 * ROW_NANOS

    # The next attempt tells of the same rows, and of one that the first did not tell.
    thief = a_message(2, blocks=(a_block(rows=range(31)),), opens=True, want=5000)
    answered = await batches.exchange(TERMS, thief)
    assert answered.settled == ((0, 31),)
    late = await batches.exchange(TERMS, a_message(1, blocks=(a_block(rows=range(500)),), need=1))

    assert (late.outcome, late.reserved) == (BatchOutcome.FENCED, 0)
    # What the first attempt had reserved is free.
    assert (await settled(store))[0] <= 31 * ROW_NANOS
    assert await settled(store) == await settled(store, DAY)


async def test_what_a_killed_attempt_reserved_is_its_successors(
    store: GatewayStore, batches: BatchStore
) -> None:
    await batches.exchange(TERMS, a_message(want=5000))
    assert await settled(store) == (0, 5000)

    await batches.exchange(TERMS, a_message(2, opens=True))
    assert await settled(store) == (0, 0)
    await batches.exchange(TERMS, a_message(2, need=100, want=100))
    assert await settled(store) == (0, 100)


async def test_a_runner_that_claims_more_than_it_reserved_pays_what_it_reserved(
    store: GatewayStore, batches: BatchStore
) -> None:
    await batches.exchange(TERMS, a_message(want=1000))
    lie = BlockUse(number=0, rows=(RowTokens(0, 2**31, 2**31),), cut_output=2**31)
    paid = await batches.exchange(TERMS, a_message(blocks=(lie,), want=0))

    assert paid.reserved == 0
    assert await settled(store) == await settled(store, DAY) == (1000, 0)
    report = await store.charges(
        ChargeQuery(
            by=(RecordDimension.SERVICE, RecordDimension.SERVICE_CLASS), since=0, until=2**40
        )
    )
    (row,) = report.rows
    assert (row.group, row.charge_nanos, row.requests) == (
        ("team-a/batch/night", "Batch"),
        1000,
        1,
    )


async def test_two_runners_with_one_block_pay_each_row_once(
    store: GatewayStore, batches: BatchStore
) -> None:
    other = BatchStore(store, "another")
    await batches.exchange(TERMS, a_message(want=5000))
    await asyncio.gather(
        *(
            each.exchange(TERMS, a_message(blocks=(a_block(rows=range(40)),), want=5000))
            for each in (batches, other) * 4
        )
    )
    assert (await settled(store))[0] == 40 * ROW_NANOS


async def test_an_answer_that_was_cut_pays_its_tokens_and_its_row_stays_open(
    store: GatewayStore, batches: BatchStore
) -> None:
    await batches.exchange(TERMS, a_message(want=5000))
    cut = a_message(blocks=(a_block(cut_input=10, cut_output=50),), want=5000)
    for _ in range(2):
        answered = await batches.exchange(TERMS, cut)
    assert (await settled(store))[0] == 10 + 100
    assert answered.outcome is BatchOutcome.GRANTED

    whole = a_message(blocks=(a_block(rows=[3], cut_input=10, cut_output=50),), want=5000)
    await batches.exchange(TERMS, whole)
    assert (await settled(store))[0] == 110 + ROW_NANOS


async def test_where_a_limit_is_used_up_a_batch_is_refused_until_it_is_raised(
    store: GatewayStore, batches: BatchStore
) -> None:
    await batches.exchange(TERMS, a_message(need=99_000, want=99_000))
    spent = tuple(RowTokens(row, 990 - 5, 0) for row in range(100))
    await batches.exchange(TERMS, a_message(blocks=(BlockUse(number=0, rows=spent),)))
    assert await settled(store) == (99_000, 0)

    refused = await batches.exchange(TERMS, a_message(need=1001, want=9000))
    assert (refused.outcome, refused.reserved) == (BatchOutcome.EXCEEDED, 0)
    assert "charge-" in refused.message
    assert "kubectl tessera budget raise team-a" in refused.message

    raised = tuple(
        replace(scope, limit=replace(scope.limit, amount=200_000, generation=2))
        for scope in TERMS.scopes
    )
    granted = await batches.exchange(replace(TERMS, scopes=raised), a_message(need=1001, want=9000))
    assert (granted.outcome, granted.reserved) == (BatchOutcome.GRANTED, 101_000 // 20)


async def test_what_running_requests_have_reserved_is_waited_for(
    store: GatewayStore, batches: BatchStore
) -> None:
    month = window_at(LIMIT, time.time())[0]
    await answer(store, "gateway", replace(an_ask(100_000, scope=MONTH, reserved=0), start=month))

    waiting = await batches.exchange(TERMS, a_message(need=10, want=10))

    assert (waiting.outcome, waiting.reserved) == (BatchOutcome.WAIT, 0)
    # Of the day, which had room, nothing stays lent.
    assert await settled(store, DAY) == (0, 0)


async def test_a_million_rows_are_few_rows_of_the_store(
    store: GatewayStore, batches: BatchStore
) -> None:
    rich = tuple(
        replace(scope, limit=replace(scope.limit, amount=10**12)) for scope in TERMS.scopes
    )
    terms, blocks, rows = replace(TERMS, scopes=rich), 4, 1000
    await batches.exchange(terms, a_message(want=rows * ROW_NANOS))
    for number in range(blocks):
        await batches.exchange(
            terms, a_message(blocks=(a_block(number, range(rows)),), want=rows * ROW_NANOS)
        )
    assert (await settled(store))[0] == blocks * rows * ROW_NANOS
    assert await rows_in(store, "usage_records") == blocks
    assert await rows_in(store, "charge_batches") == blocks + 1


async def test_an_attempt_pays_the_price_of_its_beginning(
    store: GatewayStore, batches: BatchStore
) -> None:
    dearer = replace(TERMS, price=replace(PRICE, input=10**9, price_list="standard@2"))
    await batches.exchange(TERMS, a_message(want=5000))

    answered = await batches.exchange(dearer, a_message(blocks=(a_block(rows=[0]),), want=5000))
    assert (answered.input, await settled(store)) == (10**6, (ROW_NANOS, answered.reserved))

    later = await batches.exchange(dearer, a_message(2, opens=True))
    assert (later.input, later.settled) == (10**9, ((0, 1),))


async def test_rows_of_batches_count_and_give_way_and_are_paid_once(
    store: GatewayStore, batches: BatchStore
) -> None:
    rich = replace(TERMS, scopes=())
    for uid in ("uid-1", "uid-2"):
        blocks = tuple(a_block(number, rows=[0]) for number in range(30))
        message = a_message(blocks=blocks).model_copy(update={"uid": uid})
        await batches.exchange(rich, message)
    # Two messages are two records of one group, and 31 rows of each batch.
    assert await store.rows_by_tenant() == {"team-a": 2 + 1 + 62}
    # A batch that may go on keeps its blocks.
    await store.make_room("team-a")
    assert await rows_in(store, "charge_batches") == 62

    async with store.write() as connection:
        silent = "UPDATE charge_batches SET changed_at = changed_at - 90000 WHERE batch LIKE '%-1'"
        await connection.execute(text(silent))
    assert await store.make_room("team-a") == FreedRows(30)
    assert await rows_in(store, "charge_batches") == 32
    again = await batches.exchange(rich, a_message(2, blocks=(a_block(0, rows=[0]),)))
    assert again.outcome is BatchOutcome.EXCEEDED
    assert "create another BatchInference" in again.message
    report = await store.charges(ChargeQuery(by=(), since=0, until=2**40))
    assert sum(row.requests for row in report.rows) == 60


async def test_sums_of_many_names_become_few_and_charge_the_same(store: GatewayStore) -> None:
    hour = 3600 * 10**9
    for number in range(40):
        await store.record(
            [
                a_record(
                    tenant=tenant,
                    model=f"model-{number}",
                    service=f"{tenant}/{number}",
                    key=f"key-{number}",
                    charge_nanos=number,
                    currency="USD",
                    requests=2,
                    request_id="",
                    started_at_ns=START_NS + number % 2 * hour,
                )
                for tenant in ("team-a", "team-b")
            ]
        )
    by = (RecordDimension.TENANT,)
    since, until = START_NS // hour * 3600, (START_NS // hour + 1) * 3600
    queries = [
        ChargeQuery(by=by, since=0, until=2**40),
        ChargeQuery(by=by, since=since, until=until),
    ]
    before = [await store.charges(query) for query in queries]

    async with store.write() as connection:
        await connection.execute(text("DELETE FROM usage_records WHERE tenant = 'team-a'"))
    assert await store.make_room("team-a") == FreedRows(38)

    assert [await store.charges(query) for query in queries] == before
    assert await store.rows_by_tenant() == {"team-a": 2, "team-b": 80}
    assert await store.make_room("team-a") == FreedRows(0, are_lost=True)


async def test_what_a_silent_batch_reserved_is_free_after_ten_minutes(
    store: GatewayStore, batches: BatchStore
) -> None:
    await batches.exchange(TERMS, a_message(want=5000))
    await batches.exchange(TERMS, a_message(blocks=(a_block(rows=range(10)),), want=4000))
    reserved = await settled(store)
    await batches.free_silent()
    assert await settled(store) == reserved == (10 * ROW_NANOS, 4000)

    async with store.write() as connection:
        await connection.execute(text("UPDATE charge_batches SET changed_at = changed_at - 601"))
    await batches.free_silent()
    assert await settled(store) == await settled(store, DAY) == (10 * ROW_NANOS, 0)

    # A runner that was only slow reserves what it needs again.
    granted = await batches.exchange(TERMS, a_message(need=500, want=500))
    assert (granted.outcome, granted.reserved) == (BatchOutcome.GRANTED, 500)
    await batches.exchange(TERMS, a_message(blocks=(a_block(rows=range(12)),)))
    assert (await settled(store))[0] == 12 * ROW_NANOS
