"""Attacks on money: killed gateways, stores that go back in time, limits that change."""

import shutil
import sqlite3
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from tessera.domain.budget.raises import AmountRaise
from tessera.domain.charge.account import ChargeAccount
from tessera.domain.charge.exchange import ChargeAsk, LendingOutcome
from tessera.domain.limits.account import BorrowRequest
from tessera.gateway.store import charges
from tessera.gateway.store.leases import clock
from tessera.gateway.store.lender import Lender
from tessera.gateway.store.store import GatewayStore
from tests.gateway.store.test_charge_accounts import START, a_charge, a_scope, an_ask, answer
from tests.gateway.store.test_ended_gateways import killed, opened
from world.testing import eventually

pytestmark = pytest.mark.anyio
NOW = START + 3600.0
GRANTED, NOTHING = LendingOutcome.GRANTED, LendingOutcome.NOTHING


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[GatewayStore]:
    opened_store = await GatewayStore.open(f"sqlite:///{tmp_path}/store.db")
    yield opened_store
    await opened_store.close()


# --- gateways that are killed, and their volumes


async def test_a_process_beside_a_running_one_on_its_volume_frees_nothing(tmp_path: Path) -> None:
    first = await opened(tmp_path, "a")
    assert (await answer(first.store, "a", an_ask(90))).outcome is GRANTED

    second = await opened(tmp_path, "b")
    await second.ended.close()
    refused = await answer(second.store, "b", an_ask(20))
    await second.close()
    await first.close()

    assert (refused.outcome is GRANTED, refused.lent) == (False, 90)


async def test_a_torn_line_of_a_journal_hides_no_other_and_frees_nothing_spent(
    tmp_path: Path,
) -> None:
    first = await opened(tmp_path, "a")
    await answer(first.store, "a", an_ask(90))
    first.add(a_charge("a", 20))
    await killed(first)
    (journal,) = (path for path in (tmp_path / "journals").iterdir() if path.stat().st_size)
    with journal.open("ab") as file:
        file.write(b'{"record_id":"a-999","charge_na')

    second = await opened(tmp_path, "b")
    await second.writer.flush()
    await second.ended.close()
    granted = await answer(second.store, "b", an_ask(80))
    await second.close()

    assert (granted.outcome, granted.settled) == (GRANTED, 20)


@pytest.mark.parametrize("is_stored", [True, False])
async def test_an_old_copy_of_a_volume_frees_nothing_that_was_spent_since(
    tmp_path: Path, is_stored: bool
) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    (tmp_path / "volume").mkdir()
    first = await opened(tmp_path / "volume", "a", url)
    await answer(first.store, "a", an_ask(90))
    first.add(a_charge("a", 20))
    await first.writer.flush()
    shutil.copytree(tmp_path / "volume", tmp_path / "copy")
    first.add(a_charge("a", 30))
    if is_stored:
        await first.writer.flush()
    await answer(first.store, "a", an_ask(ceiling=90, used=50, reserved=40))
    await killed(first)

    second = await opened(tmp_path / "copy", "b", url)
    await second.writer.flush()
    await second.ended.close()
    refused = await answer(second.store, "b", an_ask(51))
    granted = await answer(second.store, "b", an_ask(50))
    await second.close()

    assert (refused.outcome, refused.settled) == (NOTHING, 50)
    assert granted.outcome is GRANTED


# --- stores that are locked, or of yesterday


async def test_a_locked_store_lends_no_money_and_lends_on_at_once_afterwards(
    store: GatewayStore, tmp_path: Path
) -> None:
    assert (await answer(store, "a", an_ask(30))).outcome is GRANTED
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    lender = Lender(store)
    ask = an_ask(30)
    began = time.monotonic()
    leases = [await lender.borrow("b", BorrowRequest(charges=(ask,))) for _ in range(2)]
    other.execute("ROLLBACK")
    other.close()

    async def lends() -> None:
        lease = await lender.borrow("b", BorrowRequest(charges=(ask,)))
        assert [(each.outcome, each.lent) for each in lease.charges] == [(GRANTED, 60)]

    assert [lease.charges for lease in leases] == [(), ()]
    assert time.monotonic() - began < 9
    await eventually(lends, within=2)


async def test_a_clock_that_goes_a_month_ahead_and_back_gives_no_window_twice(
    store: GatewayStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await answer(store, "a", an_ask(100))
    await store.record([a_charge("a", 100)])
    seen = (await answer(store, "a", an_ask(used=100, ceiling=100))).settled

    async def ahead(connection: AsyncConnection) -> float:
        return await clock(connection) + 40 * 86_400

    with monkeypatch.context() as patch:
        patch.setattr(charges, "clock", ahead)
        await store.prune(before_ns=0)

    # Who saw what was settled says it, also a process that begins on its volume.
    refused = await answer(store, "next", an_ask(1, seen=seen))
    assert (refused.outcome, refused.settled) == (NOTHING, 100)
    assert (await answer(store, "other", an_ask(1))).outcome is NOTHING


def an_account(limit: int, **balances: int) -> ChargeAccount:
    account = ChargeAccount()
    for name, used in balances.items():
        ask = pure(need=used, limit=limit)
        assert account.exchange(name, ask, NOW).outcome is GRANTED
        account.record(name, used)
    return account


def pure(*, limit: int = 100, generation: int = 1, **fields: Any) -> ChargeAsk:
    scope = a_scope(amount=limit)
    scope = replace(scope, limit=replace(scope.limit, generation=generation))
    return an_ask(scope=scope, **fields)


def test_gateways_that_live_on_say_what_a_restored_store_does_not_know() -> None:
    account = an_account(100, p=15, q=15)
    backup = account.to_json()
    restored = ChargeAccount.from_json(backup)
    asks = {name: pure(used=45, ceiling=45, reserved=0, seen=90) for name in ("p", "q")}
    for name, ask in asks.items():
        restored.exchange(name, ask, NOW)
    assert restored.settled == 90
    over = restored.exchange("p", pure(used=45, ceiling=45, need=11), NOW)
    fits = restored.exchange("p", pure(used=45, ceiling=45, need=10), NOW)
    assert (over.outcome, fits.outcome) == (NOTHING, GRANTED)


def test_a_restored_store_lends_once_what_is_left_beyond_what_was_seen() -> None:
    account = an_account(100, p=30)
    account.close("p")
    spent = 0
    for _ in range(20):
        ask = pure(need=10, ceiling=spent, used=spent, seen=90)
        if account.exchange("r", ask, NOW).outcome is not GRANTED:
            break
        account.record("r", 10)
        spent += 10
    assert spent == 10


# --- limits that change


def test_a_lowered_limit_lends_nothing_until_it_holds_again() -> None:
    account = an_account(1000, p=250, q=250)
    for name in ("p", "q"):
        assert account.exchange(name, pure(need=100, limit=1000, used=250, ceiling=250), NOW)

    def try_one(limit: int, generation: int) -> LendingOutcome:
        ask = pure(need=1, limit=limit, generation=generation)
        return account.exchange("r", ask, NOW).outcome

    assert try_one(400, 2) is NOTHING
    assert (account.limit, account.settled, account.lent) == (400, 500, 200)
    # A gateway that has not heard of it.
    stale = account.exchange("s", pure(need=1, limit=1000), NOW)
    assert stale.outcome is LendingOutcome.OLD_GENERATION
    assert try_one(550, 3) is not GRANTED
    account.exchange("p", pure(limit=550, generation=3, used=250, ceiling=250), NOW)
    account.exchange("q", pure(limit=550, generation=3, used=250, ceiling=290, reserved=40), NOW)
    assert try_one(550, 3) is GRANTED
    assert account.settled + account.lent == 541


def test_after_a_raise_nothing_is_lent_of_it_whatever_a_gateway_remembers() -> None:
    until = NOW + 60
    scope = a_scope(amount=100)
    raised = replace(scope, limit=replace(scope.limit, raises=(AmountRaise(50, until),)))
    account = an_account(100, p=100)

    def try_at(at: float, nanos: int) -> LendingOutcome:
        return account.exchange("q", an_ask(nanos, raised), at).outcome

    assert try_at(NOW, 51) is NOTHING
    assert try_at(until - 0.1, 20) is GRANTED
    account.record("q", 20)
    assert account.settled == 120
    for _ in range(64):
        assert try_at(until, 1) is NOTHING
    assert account.limit == 100
