"""Sums near the end of 64 bits: exact, and no statement fails for what others charge."""

import ast
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import text

import tessera.gateway.store
from tessera.domain.gateway.usage_record import RecordDimension
from tessera.domain.usage.report import UsageQuery
from tessera.domain.usage.statement import closed_month
from tessera.gateway.store.store import GatewayStore
from tests.gateway.store.builders import SECOND, START_NS
from tests.gateway.store.test_charge_accounts import START, a_scope, an_ask, exchange
from tests.gateway.store.test_statements import a_charged, totals

MOST = 2**53
# Beyond what one sum of 64 bits has.
RECORDS = 2**10 + 200


async def absurd(store: GatewayStore, at_ns: int = START_NS, **fields: Any) -> None:
    """Store records with the most that one may be charged, in two hours and four transactions."""
    billed = {"cost_nanos": MOST, "cost_currency": "USD"}
    for start in range(0, RECORDS, 400):
        began = {"started_at_ns": at_ns - start // 400 % 2 * 3600 * SECOND}
        count = min(400, RECORDS - start)
        await store.record([a_charged(MOST, **billed, **began, **fields) for _ in range(count)])


async def test_a_sum_of_more_than_64_bits_is_exact_and_others_read_theirs(
    store: GatewayStore,
) -> None:
    await store.record([a_charged(7, tenant="team-b")])
    await absurd(store)

    assert await totals(store, RecordDimension.TENANT) == {
        ("team-a",): (RECORDS, RECORDS * MOST),
        ("team-b",): (1, 7),
    }
    assert await totals(store) == {(): (RECORDS + 1, RECORDS * MOST + 7)}


async def test_a_month_with_such_sums_closes_and_reads_the_same(store: GatewayStore) -> None:
    at_ns = (closed_month(time.time()) - 86_400) * SECOND
    await absurd(store, at_ns)
    for hour in range(3):
        earlier = at_ns - hour * 3600 * SECOND
        await store.record([a_charged(3, tenant="team-b", started_at_ns=earlier)])
    before = await totals(store, RecordDimension.TENANT)

    assert await store.close_month()
    assert await totals(store, RecordDimension.TENANT) == before
    assert before["team-a",] == (RECORDS, RECORDS * MOST)
    async with store.read() as connection:
        statement = text("SELECT count(*) FROM charge_sums WHERE tenant = 'team-b'")
        assert await connection.scalar(statement) == 1


async def test_accounts_open_beside_what_does_not_fit(store: GatewayStore) -> None:
    own, other = a_scope(), a_scope("team-b/charge-month")
    other = replace(other, limit=replace(other.limit, budget="team-b"))
    at_ns = (START + 7200) * SECOND
    await absurd(store, at_ns)
    await store.record([a_charged(7, tenant="team-b", started_at_ns=at_ns)])

    answers = await exchange(store, "gateway", *(an_ask(scope=scope) for scope in (own, other)))
    assert [each.settled for each in answers] == [RECORDS * MOST, 7]


async def test_usage_of_absurd_tokens_is_a_report(store: GatewayStore) -> None:
    tokens = dict.fromkeys(("input_tokens", "cached_tokens", "output_tokens"), 2**60)
    await absurd(store, requests=2**30, **tokens)

    query = UsageQuery(by=(RecordDimension.TENANT,), since_ns=0, until_ns=2**63 - 1)
    (row,) = (await store.usage(query)).rows
    assert (row.requests, row.input_tokens) == (RECORDS * 2**30, RECORDS * MOST)


def test_each_sum_of_a_statement_is_exact() -> None:
    folder = Path(tessera.gateway.store.__file__).parent
    rounded = {
        f"{path.stem}.{function.name}"
        for path in folder.rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and _adds_in_sql(function)
    }
    # One orders by floats, and the other adds hours that are small.
    assert rounded == {"exact_sums.rough_sum", "statements._compact"}


def _adds_in_sql(function: ast.AST) -> bool:
    """Return whether a function has `func.sum`, or SQL as text with a sum."""
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("func.sum", "func.total"):
            return True
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.lower()
            if "select" in words and ("sum(" in words or "total(" in words):
                return True
    return False
