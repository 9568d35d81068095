"""What was lent to a gateway that ended is lent again, and not before its records are stored."""

from datetime import timedelta
from pathlib import Path

import pytest

from tessera.domain.charges.exchange import LendingOutcome
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


async def killed(recording: Recording) -> None:
    """End a gateway without a word, as kill -9 does."""
    assert recording._journal is not None
    kill(recording._journal)
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
