"""What was lent to a gateway that ended is lent again, and not before its records are stored."""

import asyncio
import shutil
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from tessera.domain.charge.account import LIVE_SECONDS
from tessera.domain.charge.exchange import LendingOutcome
from tessera.gateway.store.database import StoreError
from tessera.gateway.store.store import GatewayStore
from tessera.gateway.usage.journal import JOURNALS
from tessera.gateway.usage.metrics import GatewayMetrics
from tessera.gateway.usage.recording import Recording
from tests.gateway.store.postgresql import PostgresqlServer
from tests.gateway.store.test_charge_accounts import a_charge, an_ask, answer
from tests.gateway.usage.test_journal import kill


async def opened(folder: Path, name: str, url: str | None = None) -> Recording:
    metrics = GatewayMetrics()
    recording = await Recording.open(url, folder, metrics, retention=timedelta(days=9), name=name)
    await recording.recover()
    return recording


async def pass_seconds(store: GatewayStore, seconds: float = LIVE_SECONDS) -> None:
    """Let so much time pass without a word of any gateway."""
    async with store.write() as connection:
        changed = text("UPDATE gateways SET seen_at = seen_at - :seconds")
        await connection.execute(changed, {"seconds": seconds})


async def killed(recording: Recording) -> None:
    """End a gateway without a word, as kill -9 does, so long ago that it is known."""
    assert recording._journal is not None
    kill(recording._journal)
    with suppress(StoreError):
        await pass_seconds(recording.store)
    for store in (recording.store, recording._spool):
        if store is not None:
            await store.close()


async def test_the_next_process_on_a_volume_returns_what_a_killed_one_did_not_use(
    tmp_path: Path,
) -> None:
    first = await opened(tmp_path, "a")
    await answer(first.store, "a", an_ask(90))
    first.add(a_charge("a", 20))
    first.note_begun(a_charge("a", 5))
    await killed(first)

    second = await opened(tmp_path, "b")
    await second.ended.close()
    before = await answer(second.store, "b", an_ask(50))
    await second.writer.flush()
    await second.ended.close()
    after = await answer(second.store, "b", an_ask(50))
    await second.close()

    assert before.outcome is not LendingOutcome.GRANTED, "records are not stored yet"
    assert (after.outcome, after.settled, after.lent) == (LendingOutcome.GRANTED, 25, 50)
    assert list((tmp_path / JOURNALS).iterdir()) == []


async def test_a_gateway_without_a_record_is_returned_too(tmp_path: Path) -> None:
    first = await opened(tmp_path, "a")
    await answer(first.store, "a", an_ask(90))
    await killed(first)

    second = await opened(tmp_path, "b")
    await second.ended.close()

    assert (await answer(second.store, "b", an_ask(90))).outcome is LendingOutcome.GRANTED
    await second.close()


async def test_a_gateway_that_ends_in_order_returns_all(tmp_path: Path) -> None:
    first = await opened(tmp_path, "a")
    await answer(first.store, "a", an_ask(90))
    first.add(a_charge("a", 20))
    await first.close()

    store = await GatewayStore.open(f"sqlite:///{tmp_path}/store.db")
    assert (await answer(store, "b", an_ask(80))).outcome is LendingOutcome.GRANTED
    await store.close()


async def test_a_copy_of_a_volume_frees_nothing_of_the_gateway_that_goes_on(
    store_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "volume").mkdir()
    first = await opened(tmp_path / "volume", "a", store_url)
    await answer(first.store, "a", an_ask(90))
    first.add(a_charge("a", 20))
    await first.writer.flush()
    copy = Path(shutil.copytree(tmp_path / "volume", tmp_path / "copy"))
    second = await opened(copy, "b", store_url)
    await second.writer.flush()

    await second.ended.close()
    assert (await answer(first.store, "a", an_ask(0, ceiling=90, used=20))).ceiling == 90
    await second.ended.close()
    await pass_seconds(second.store)
    await second.ended.close()

    refused = await answer(second.store, "b", an_ask(20))
    assert (refused.outcome is LendingOutcome.GRANTED, refused.lent) == (False, 70)
    assert "gateway a goes on: its journal here is a copy" in caplog.text
    assert len(list((copy / JOURNALS).iterdir())) == 1, "its own"
    await first.close()
    granted = await answer(second.store, "b", an_ask(80))
    assert (granted.outcome, granted.settled) == (LendingOutcome.GRANTED, 20)
    await second.close()


async def test_a_gateway_that_asked_just_now_is_not_ended_yet(
    store_url: str, tmp_path: Path
) -> None:
    first = await opened(tmp_path, "a", store_url)
    await answer(first.store, "a", an_ask(90))
    await killed(first)
    second = await opened(tmp_path, "b", store_url)
    await pass_seconds(second.store, -1.0)

    await second.ended.close()
    assert (await answer(second.store, "b", an_ask(90))).outcome is not LendingOutcome.GRANTED
    await asyncio.sleep(1.1)
    await second.ended.close()

    assert (await answer(second.store, "b", an_ask(90))).outcome is LendingOutcome.GRANTED
    await second.close()


@pytest.mark.parametrize("is_killed", [False, True])
async def test_while_the_database_is_away_nothing_is_returned_and_afterwards_all_is(
    postgresql: PostgresqlServer, tmp_path: Path, is_killed: bool
) -> None:
    url = await postgresql.create_database()
    first = await opened(tmp_path, "a", url)
    await answer(first.store, "a", an_ask(90))
    await postgresql.close_database(url)
    first.add(a_charge("a", 20))
    await (killed(first) if is_killed else first.close())

    second = await opened(tmp_path, "b", url)
    await second.writer.flush()
    await second.ended.close()
    assert second.writer.spooled == 1
    await postgresql.open_database(url)
    await killed(second)

    third = await opened(tmp_path, "c", url)
    await pass_seconds(third.store)
    assert (await answer(third.store, "c", an_ask(80))).outcome is not LendingOutcome.GRANTED
    third.writer._retry_at = 0.0
    await third.writer.write()
    assert third.writer.spooled == 0
    await third.ended.close()
    last = await answer(third.store, "c", an_ask(80))
    await third.close()

    assert (last.outcome, last.settled) == (LendingOutcome.GRANTED, 20)
    assert list((tmp_path / JOURNALS).iterdir()) == []


async def test_a_gateway_killed_over_and_over_strands_nothing(tmp_path: Path) -> None:
    for turn in range(20):
        gateway = await opened(tmp_path, f"g{turn}")
        await gateway.writer.flush()
        await gateway.ended.close()
        lent = await answer(gateway.store, f"g{turn}", an_ask(100 - 2 * turn))
        assert (lent.outcome, lent.settled) == (LendingOutcome.GRANTED, 2 * turn)
        gateway.add(a_charge(f"g{turn}", 2))
        await killed(gateway)
