"""What a gateway saw settled outlives it on its volume, and an old backup of the store."""

from pathlib import Path

import pytest

from tessera.domain.charge.exchange import AccountKey, LendingOutcome
from tessera.gateway.store.seen import SeenCharges
from tessera.gateway.store.store import GatewayStore
from tests.gateway.store.test_charge_accounts import START, a_scope, an_ask, answer

KEY = AccountKey(a_scope().key, START)


def test_the_next_process_knows_what_the_last_one_saw(tmp_path: Path) -> None:
    first = SeenCharges(tmp_path)
    assert first.settled == {}
    first.write([(*KEY, 2**70)])

    assert SeenCharges(tmp_path).settled == {KEY: 2**70}


def test_a_file_that_cannot_be_read_is_logged_and_counts_as_empty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    SeenCharges(tmp_path).write([(*KEY, 5)])
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"[[")

    assert SeenCharges(tmp_path).settled == {}
    assert "charges may be lent again" in caplog.text


async def test_a_store_of_an_old_backup_lends_nothing_of_what_was_settled(
    store: GatewayStore,
) -> None:
    ask = an_ask(10, seen=95)

    assert (await answer(store, "a", ask)).outcome is LendingOutcome.NOTHING
    other = await answer(store, "b", an_ask(10))
    assert (other.outcome, other.settled) == (LendingOutcome.NOTHING, 95)
