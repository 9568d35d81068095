"""One store for the charges of all tenants: what one of them does to the sums of the others."""

import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.domain.charge.batch_account import SILENT_SECONDS
from tessera.domain.charge.batch_rows import BatchOutcome
from tessera.domain.charge.exchange import ChargeAnswer, ChargeAsk
from tessera.domain.charge.gateway_charges import ChargeReservation, ChargesNeeded
from tessera.domain.charge.scopes import ChargeScope
from tessera.domain.gateway.usage_record import RecordDimension
from tessera.domain.usage.statement import ChargeCorrection, ChargeQuery
from tessera.gateway.import_usage import Imported, import_usage
from tessera.gateway.store.batches import BatchStore
from tessera.gateway.store.schema import CHARGE_BATCHES
from tessera.gateway.store.store import GatewayStore, own_file
from tests.domain.charge.fleet import ChargeFleet
from tests.domain.charge.fleet import a_scope as a_day
from tests.gateway.charging import a_charge_limit, paying
from tests.gateway.harness import a_directory, a_gateway, a_model, a_replica, an_api_key
from tests.gateway.store.builders import SECOND
from tests.gateway.store.test_batches import TERMS, a_message
from tests.gateway.store.test_statements import a_charged
from tests.hostile.score import SCORE

pytestmark = pytest.mark.anyio

NOW_NS = time.time_ns()
# As a record has it of a request at the dearest price of a PriceList.
DEAREST = 2**80


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[GatewayStore]:
    opened = await GatewayStore.open(f"sqlite:///{tmp_path}/store.db")
    yield opened
    await opened.close()


async def charged(store: GatewayStore, tenant: str) -> dict[str | None, int]:
    """Return what a tenant was charged in each currency."""
    query = ChargeQuery(by=(RecordDimension.TENANT,), since=0, until=2**40, tenant=tenant)
    return {row.currency: row.charge_nanos for row in (await store.charges(query)).rows}


async def test_the_dearest_price_and_amounts_beyond_64_bits_cost_their_tenant_alone(
    store: GatewayStore,
) -> None:
    await store.record([a_charged(7, tenant="team-b", started_at_ns=NOW_NS)])
    for hour in range(2):
        at_ns = NOW_NS - hour * 3600 * SECOND
        await store.record([a_charged(DEAREST, started_at_ns=at_ns) for _ in range(520)])
    others = await charged(store, "team-b")
    own = await charged(store, "team-a")
    SCORE.add(int(others != {"USD": 7}) + int(own != {"USD": 1040 * 2**53}))
    assert (others, own) == ({"USD": 7}, {"USD": 1040 * 2**53})


async def test_what_a_silent_runner_has_reserved_is_a_chats_again(store: GatewayStore) -> None:
    night, chat = BatchStore(store, "a"), BatchStore(store, "b")
    other = a_message(need=9000, want=9000).model_copy(update={"uid": "uid-2"})
    await night.exchange(TERMS, a_message(need=95_000, want=95_000))
    refused = await chat.exchange(TERMS, other)
    async with store.write() as connection:
        later = CHARGE_BATCHES.c.changed_at - SILENT_SECONDS - 1
        await connection.execute(update(CHARGE_BATCHES).values(changed_at=later))
    await night.free_silent()
    granted = await chat.exchange(TERMS, other)
    SCORE.add(int(granted.outcome is not BatchOutcome.GRANTED))
    assert (refused.outcome, granted.outcome) == (BatchOutcome.WAIT, BatchOutcome.GRANTED)


async def test_records_and_corrections_that_come_again_count_once(
    store: GatewayStore, tmp_path: Path
) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    records = [a_charged(10 + n, started_at_ns=NOW_NS) for n in range(3)]
    old = await GatewayStore.open(own_file(folder))
    await old.keep(records)
    await old.close()
    url = f"sqlite:///{tmp_path}/store.db"
    imported = [await import_usage(folder / "store.db", url) for _ in range(3)]

    less = ChargeCorrection(id=records[0].record_id, amount_nanos=-4, reason="wrong price")
    corrected = [await store.correct(less, NOW_NS + n) for n in range(5)]
    total = await charged(store, "team-a")
    SCORE.add(int(total != {"USD": 33 - 4}))
    assert imported == [Imported(3, 0), Imported(0, 3), Imported(0, 3)]
    assert (corrected.count(True), total) == (1, {"USD": 33 - 4})


async def test_amounts_of_two_currencies_are_two_rows(store: GatewayStore) -> None:
    same: dict[str, Any] = {"started_at_ns": NOW_NS}
    await store.record([a_charged(5, **same), a_charged(6, currency="EUR", **same)])
    rows = await charged(store, "team-a")
    SCORE.add(int(rows != {"USD": 5, "EUR": 6}))
    assert rows == {"USD": 5, "EUR": 6}


class LossyLine:
    """What brings asks of a gateway to the accounts and answers back: lost, twice and late."""

    def __init__(self, fleet: ChargeFleet, chance: random.Random) -> None:
        self.fleet, self.chance, self.member = fleet, chance, fleet.start()
        self._sent = list[ChargeAsk]()

    def exchange(self, asks: Sequence[ChargeAsk]) -> None:
        answers = list[ChargeAnswer]()
        for ask in asks:
            self._sent.append(ask)
            again = self.chance.choice(self._sent)
            for each in self.chance.choice(((), (ask,), (ask, again), (again, ask, ask))):
                answers.append(self.fleet.answer(self.member, each))
        self.chance.shuffle(answers)
        for answer in answers:
            if self.chance.random() < 0.8:
                self.exchange(self.member.charges.receive([answer], self.fleet.now))

    def request(self, scopes: tuple[ChargeScope, ...]) -> None:
        """Begin a request of 400 at most, if there is money, and perhaps end another."""
        answer = self.member.charges.reserve(scopes, 400, 100, self.fleet.now)
        if isinstance(answer, ChargesNeeded):
            self.exchange(answer.asks)
        elif isinstance(answer, ChargeReservation):
            self.member.running.append(answer)
        if self.member.running and self.chance.random() < 0.7:
            reservation = self.chance.choice(self.member.running)
            self.fleet.settle(self.member, reservation, self.chance.randrange(101))


def test_messages_of_two_gateways_that_are_lost_double_or_late_spend_no_limit_twice() -> None:
    chance, fleet = random.Random(7), ChargeFleet()  # noqa: S311 - no secret
    scopes = a_day(7_000), a_day(10_000, "month", "Month")
    lines = LossyLine(fleet, chance), LossyLine(fleet, chance)
    for _ in range(800):
        line = chance.choice(lines)
        line.request(scopes)
        fleet.now += 0.05
        if chance.random() < 0.2:
            line.exchange(line.member.charges.renewal(fleet.now))
    spent = max(fleet.charged.values())
    SCORE.add(int(spent > 7_000))
    assert 3_500 < spent <= 7_000


async def test_what_a_sender_has_left_is_cheap_counts_and_needs_its_accounts() -> None:
    limits = [a_charge_limit(10**12, name=f"limit-{number}") for number in range(64)]
    key = an_api_key(limits=RateLimitsSpec(requests=PeriodLimits(per_day=5)))
    known = a_directory(a_model(a_replica("127.0.0.1:1")), keys=(key,), **paying(*limits))
    async with a_gateway(known) as gateway:
        statuses, took = [], list[float]()
        for _ in range(7):
            began = time.process_time()
            async with gateway.client.get(f"{gateway.url}/v1/budget") as response:
                statuses.append(response.status)
                data = json.loads(await response.read()).get("data", ())
                took.append(time.process_time() - began)
            if response.status == 200:
                assert len(data) == 64
    SCORE.add(int(statuses != [200] * 5 + [429] * 2))
    assert statuses == [200] * 5 + [429] * 2
    # Client and gateway together.
    assert min(took) < 0.1
    async with a_gateway(known) as gateway:
        gateway.accounts.answers = False
        async with gateway.client.get(f"{gateway.url}/v1/budget") as response:
            assert response.status == 503
