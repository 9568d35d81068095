"""A new account of a limit begins with what its window was charged before, in both databases."""

import time
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from tessera.domain.charge.account import window_at
from tessera.domain.charge.exchange import LendingOutcome
from tessera.domain.charge.scopes import ChargeScope, MemberKind
from tessera.domain.usage.statement import HOUR_SECONDS, ChargeCorrection
from tessera.gateway.store.store import GatewayStore
from tests.gateway.store.test_charge_accounts import (
    START,
    a_charge,
    a_scope,
    an_ask,
    answer,
    exchange,
)
from tests.gateway.store.test_statements import a_charged


def a_part(kind: MemberKind, *members: str, name: str = "each") -> ChargeScope:
    limit = replace(a_scope().limit, name=name, kind=kind)
    return ChargeScope(key=f"team-a/{name}/{kind}/{members[0]}", limit=limit, members=members)


def now_charged(nanos: int, **changes: Any) -> Any:
    return a_charged(nanos, **{"started_at_ns": time.time_ns()} | changes)


async def settled(store: GatewayStore, scope: ChargeScope, start: int = START) -> int:
    return (await answer(store, "b", replace(an_ask(0, scope), start=start))).settled


async def test_a_limit_of_another_name_is_spent_as_the_one_before(store: GatewayStore) -> None:
    await answer(store, "a", an_ask(100))
    await store.record([replace(a_charge("a", 60), started_at_ns=time.time_ns())])
    renamed = a_scope("team-a/renamed")

    refused = await answer(store, "a", an_ask(41, renamed))
    granted = await answer(store, "a", an_ask(40, renamed))
    await store.record([a_charge("a", 40, key=renamed.key)])

    assert (refused.outcome, refused.settled) == (LendingOutcome.NOTHING, 60)
    assert (granted.outcome, granted.used) == (LendingOutcome.GRANTED, 0)
    assert await settled(store, renamed) == 100
    assert await settled(store, a_scope()) == 60


PARTS = {
    a_part(MemberKind.TEAM, "search"): 8,
    a_part(MemberKind.KEY, "laptop"): 5,
    a_part(MemberKind.KEY, "other"): 0,
    a_part(MemberKind.USER, "ada"): 2,
    a_part(MemberKind.SERVICE, "team-b/chat"): 4,
    a_part(MemberKind.MODEL, "llama"): 7,
    a_part(MemberKind.MODEL, "served", "llama", "chat", name="aliases"): 15,
}


async def test_a_part_of_a_tenant_begins_with_its_own_charges(store: GatewayStore) -> None:
    await store.record(
        [
            now_charged(1, user="ada"),
            now_charged(2, user="ada", key=None),
            now_charged(4, service="team-b/chat", model="Llama"),
            now_charged(8, team="search", model="chat", key=None),
            now_charged(16, tenant="team-b", team="search"),
            now_charged(32, currency="EUR"),
            now_charged(64, currency=None),
        ]
    )

    # A limit has one kind.
    limits = [replace(part.limit, name=f"{part.limit.name}-{part.limit.kind}") for part in PARTS]
    scopes = [replace(part, limit=limit) for part, limit in zip(PARTS, limits, strict=True)]
    answers = await exchange(store, "a", *(an_ask(0, scope) for scope in scopes))

    assert [each.settled for each in answers] == list(PARTS.values())
    assert await settled(store, a_scope("team-a/all")) == 15


async def test_keys_of_one_limit_are_read_together(store: GatewayStore) -> None:
    await store.record([now_charged(n, key=f"key-{n}") for n in range(1, 30)])
    scopes = [a_part(MemberKind.KEY, f"key-{n}") for n in range(30)]

    answers = await exchange(store, "a", *(an_ask(0, scope) for scope in scopes))

    assert [each.settled for each in answers] == list(range(30))


@pytest.mark.parametrize(
    ("zone", "hours"), [("UTC", (0, 24)), ("Europe/Berlin", (0, 24)), ("Asia/Kolkata", (1, 24))]
)
async def test_only_whole_hours_of_the_window_count(
    store: GatewayStore, zone: str, hours: tuple[int, int]
) -> None:
    limit = replace(a_scope().limit, window="Day", time_zone=zone)
    start, end = window_at(limit, START + 20 * 3600)
    first = start // HOUR_SECONDS * HOUR_SECONDS
    await store.record([now_charged(4**n, key=f"key-{n}") for n in range(3)])
    async with store.write() as connection:
        # A store moves records of hours to come, and of a month that is closed.
        for n, hour in enumerate((hours[0] - 1, *hours)):
            await connection.execute(
                text("UPDATE charge_sums SET hour = :hour WHERE key = :key"),
                {"hour": first + hour * HOUR_SECONDS, "key": f"key-{n}"},
            )

    assert end - start == 24 * HOUR_SECONDS
    counted = await settled(store, ChargeScope(key="team-a/day", limit=limit), start)
    is_whole = first == start
    assert counted == (4 if is_whole else 4 + 16)


async def test_what_came_late_or_was_corrected_is_of_no_window(store: GatewayStore) -> None:
    record = now_charged(50)
    await store.record([record, now_charged(7, started_at_ns=0)])
    await store.correct(ChargeCorrection(id=record.record_id, amount_nanos=-20, reason="r"), 0)
    assert await store.close_month()
    await store.record([now_charged(9, started_at_ns=0)])

    assert await settled(store, a_scope("team-a/new")) == 50


async def test_records_of_the_account_itself_count_once(store: GatewayStore) -> None:
    record = replace(a_charge("gone", 90), started_at_ns=time.time_ns())
    await store.add_missing([record, now_charged(5)])

    assert await settled(store, a_scope()) == 95
