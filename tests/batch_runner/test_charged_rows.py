"""Rows that are charged: a runner, the port of a gateway, and its store."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tessera.domain.gateway.directory import Directory
from tessera.domain.gateway.usage_record import RecordDimension
from tessera.domain.observed.batches import Batch
from tessera.domain.usage.statement import ChargeQuery, ChargeRow
from tessera.gateway.batch_api import BatchApi, KnownBatches
from tessera.gateway.store.batches import BatchStore
from tessera.gateway.store.store import GatewayStore
from tests.batch_runner.harness import UID, RunnerExit, RunnerHarness, a_row
from tests.gateway.charging import INPUT, OUTPUT, a_charge_limit, a_charged_batch, paying
from tests.gateway.harness import served

pytestmark = pytest.mark.long

# The simulated engine counts 7 tokens of each prompt, and 11 of each answer.
ROW_NANOS = 7 * INPUT + 11 * OUTPUT
RUNNER = "system:serviceaccount:team-a:tessera-batch"
TOKENS = {"runner": RUNNER, "other": "system:serviceaccount:team-a:default"}


@dataclass
class Money:
    """A gateway with a store, and what its tenant's limit is."""

    url: str
    store: GatewayStore
    token: Path
    directory: Directory
    batch: Batch = field(default_factory=lambda: a_charged_batch(UID))

    def limit(self, nanos: int, generation: int = 1) -> None:
        limit = a_charge_limit(nanos, budget="team-a", generation=generation)
        self.directory = Directory(**paying(limit, name="team-a"))

    async def charged(self) -> tuple[ChargeRow, ...]:
        by = (RecordDimension.SERVICE, RecordDimension.SERVICE_CLASS)
        query = ChargeQuery(by=by, since=0, until=int(time.time()) + 7200)
        return (await self.store.charges(query)).rows

    async def run(
        self, harness: RunnerHarness, attempt: int = 1, *, has_engine: bool = True
    ) -> RunnerExit:
        """Run an attempt to its end."""
        harness.set_current_attempt(attempt)
        self.batch = a_charged_batch(UID, attempt)
        charges = ("--charges", self.url, "--charges-token", str(self.token))
        runner = harness.start(attempt, *charges, has_engine=has_engine)
        return await asyncio.to_thread(runner.wait_for_exit)


@pytest.fixture
async def money(tmp_path: Path) -> AsyncIterator[Money]:
    store = await GatewayStore.open(f"sqlite:///{tmp_path}/store.db")
    token = tmp_path / "token"
    token.write_text("runner\n")
    known = Money("", store, token, Directory())

    async def review(text: str) -> str | None:
        return TOKENS.get(text)

    async def read(namespace: str, name: str) -> Batch | None:
        return known.batch if (namespace, name) == ("team-a", "night") else None

    api = BatchApi(
        BatchStore(store, "gateway"), review, lambda: known.directory, KnownBatches(read)
    )
    async with served(api) as url:
        known.url = url
        yield known
    await store.close()


async def test_each_row_pays_its_tokens_once(harness: RunnerHarness, money: Money) -> None:
    money.limit(10**12)
    harness.write_checked_input(*map(a_row, range(1200)))
    harness.start_engine()

    runner_exit = await money.run(harness)

    assert (runner_exit.code, runner_exit.report["completed"]) == (0, 1200), runner_exit.log_text
    (row,) = await money.charged()
    assert row.group == ("team-a/batch/night", "Batch")
    assert (row.requests, row.charge_nanos) == (1200, 1200 * ROW_NANOS)


async def test_where_money_ends_the_runner_ends_and_after_a_raise_the_next_goes_on(
    harness: RunnerHarness, money: Money
) -> None:
    limit = 40 * ROW_NANOS
    money.limit(limit)
    harness.write_checked_input(*map(a_row, range(100)))
    harness.start_engine()

    refused = await money.run(harness)

    assert (refused.code, refused.report["state"]) == (1, "budgetExceeded"), refused.log_text
    assert "kubectl tessera budget raise team-a charge-month" in refused.report["message"]
    done = refused.report["completed"]
    # A row needs 20 tokens of an answer, and a bound of its prompt, until it ended.
    assert 30 <= done <= 40
    assert [row.charge_nanos for row in await money.charged()] == [done * ROW_NANOS]
    assert len(harness.sent_row_ids()) == done

    # Without a GPU it looks whether there is money.
    looked = await money.run(harness, 2, has_engine=False)
    assert looked.report["state"] == "budgetExceeded", looked.log_text

    money.limit(10**12, generation=2)
    gone_on = await money.run(harness, 3)
    assert (gone_on.code, gone_on.report["completed"]) == (0, 100), gone_on.log_text
    assert [row.charge_nanos for row in await money.charged()] == [100 * ROW_NANOS]


async def test_what_a_killed_runner_did_not_tell_the_next_one_pays(
    harness: RunnerHarness, money: Money
) -> None:
    money.limit(10**12)
    harness.write_checked_input(*map(a_row, range(300)))
    harness.start_engine("--delay", "0.05")
    charges = ("--charges", money.url, "--charges-token", str(money.token))
    runner = harness.start(1, *charges, "--concurrency", "4")
    await asyncio.to_thread(runner.wait_for_progress, 40)
    runner.process.kill()
    await asyncio.to_thread(runner.process.wait)
    assert await money.charged() == ()

    runner_exit = await money.run(harness, 2)

    assert runner_exit.code == 0, runner_exit.log_text
    (row,) = await money.charged()
    assert (row.requests, row.charge_nanos) == (300, 300 * ROW_NANOS)


@pytest.mark.parametrize(
    ("prompt", "sent", "charge"),
    [
        ("echo row-0", 1, ROW_NANOS),
        # Cut at twice 1,024 tokens, which are paid, and then there is money for 8,192.
        ("please write 3000", 2, 2 * 7 * INPUT + (2048 + 3000) * OUTPUT),
        # Its context has no room for as many, so it ends the answer sooner.
        ("please fit 1000", 2, ROW_NANOS),
    ],
)
async def test_a_row_without_a_limit_gets_one_that_its_money_pays(
    harness: RunnerHarness, money: Money, prompt: str, sent: int, charge: int
) -> None:
    money.limit(10**12)
    row = a_row(0, prompt=prompt)
    del row["body"]["max_tokens"]
    harness.write_checked_input(row)
    harness.start_engine()

    runner_exit = await money.run(harness)

    assert (runner_exit.code, runner_exit.report["completed"]) == (0, 1), runner_exit.log_text
    assert len(harness.sent_row_ids()) == sent
    (charged,) = await money.charged()
    assert (charged.requests, charged.charge_nanos) == (1, charge)


async def test_a_row_that_was_cut_and_has_no_money_to_go_on_is_paid_and_stays_open(
    harness: RunnerHarness, money: Money
) -> None:
    money.limit(2200 * OUTPUT)
    row = a_row(0, prompt="please write 3000")
    del row["body"]["max_tokens"]
    harness.write_checked_input(row)
    harness.start_engine()

    runner_exit = await money.run(harness)

    assert (runner_exit.report["state"], runner_exit.report["completed"]) == ("budgetExceeded", 0)
    (charged,) = await money.charged()
    assert (charged.requests, charged.charge_nanos) == (0, 7 * INPUT + 2048 * OUTPUT)
    # It starts no node again before there is money for so much.
    money.limit(2 * 2200 * OUTPUT, generation=2)
    looked = await money.run(harness, 2, has_engine=False)
    assert looked.report["state"] == "budgetExceeded"


async def test_while_no_gateway_answers_the_batch_holds(
    harness: RunnerHarness, money: Money
) -> None:
    money.limit(10**12)
    harness.write_checked_input(a_row(0))
    harness.start_engine()
    money.token.write_text("other")

    runner_exit = await money.run(harness)

    assert (runner_exit.code, runner_exit.report["state"]) == (1, "budgetExceeded")
    assert "no token of a ServiceAccount tessera-batch" in runner_exit.report["message"]
    assert harness.sent_row_ids() == []


@pytest.mark.parametrize(
    ("token", "body", "status"),
    [
        ("runner", {}, 400),
        ("runner", {"blocks": [{"number": 0, "rows": [[1000, 1, 1]]}]}, 400),
        ("runner", {"blocks": [{"number": 0, "rows": [[0, -1, 1]]}]}, 400),
        ("runner", {"need": 2**70}, 400),
        ("runner", {"uid": "../../x"}, 400),
        ("other", {}, 401),
        ("", {}, 401),
    ],
)
async def test_a_message_that_is_none_settles_nothing(
    money: Money, token: str, body: dict[str, Any], status: int
) -> None:
    money.limit(10**12)
    whole = {"batch": "night", "uid": UID, "attempt": 1, "model": "tiny"} if body else {}
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{money.url}/batches/charges"
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(url, json=whole | body) as answer,
    ):
        assert answer.status == status
    assert await money.charged() == ()


async def test_without_a_price_a_batch_holds_and_without_a_limit_it_is_not_held(
    money: Money,
) -> None:
    money.limit(10**12)
    known = money.directory
    whole = {"batch": "night", "uid": UID, "attempt": 1, "model": "tiny", "need": 5}
    answers = []
    for directory in (replace(known, prices=Directory().prices), Directory()):
        money.directory = directory
        async with (
            aiohttp.ClientSession(headers={"Authorization": "Bearer runner"}) as session,
            session.post(f"{money.url}/batches/charges", json=whole) as answer,
        ):
            answers.append(await answer.json())
    assert answers[0]["outcome"] == "BudgetExceeded"
    assert "PriceList" in answers[0]["message"]
    assert (answers[1]["outcome"], answers[1]["reserved"]) == ("Granted", 5)
