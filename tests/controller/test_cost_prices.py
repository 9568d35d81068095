"""The operator measures the prices of tomorrow once, and writes them before tomorrow begins."""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.controller.cost_prices import CostPricing
from tessera.domain.cost.device_use import CostLine, CostState
from tessera.domain.cost.statement import Amounts, BillScrape, ProcessLabels, ScrapeRef
from tessera.domain.kinds.kinds import PRICE_LISTS, TENANT_BUDGETS
from tessera.ports import MetricsError
from tessera.reconcile.observe import Observations
from tessera.reconcile.reflector import Reflector
from tessera.reconcile.store import Store
from tessera.reconcile.writing.writer import Writer
from tessera.resources.api_resources import KINDS
from tessera.resources.manifest import ObjectKey, wire_format
from tests.builders import a_budget
from tests.memory_operator import MemoryOperator

TODAY = datetime(2026, 3, 10, tzinfo=UTC)
YESTERDAY = TODAY - timedelta(days=1)
OPERATOR: ProcessLabels = (("pod", "operator"),)
CHAT = CostLine("USD", "a100", "1g.10gb", CostState.SERVING, "team-a", "chat")
STANDARD = ObjectKey("pricelists", "", "standard")


class Bills:
    """The counters of a day in which a million tokens cost 3 units."""

    gateway_target = 'job="tessera-gateway"'

    def __init__(self) -> None:
        self.days: list[datetime] = []
        self.failures = 0

    async def bill_scrapes(
        self, begin: datetime, end: datetime
    ) -> Mapping[ProcessLabels, Sequence[BillScrape]]:
        self.days.append(begin)
        if self.failures:
            self.failures -= 1
            raise MetricsError("503")
        moments = begin, end - timedelta(seconds=10)
        return {
            OPERATOR: [
                BillScrape(scraped_at=moment, since=YESTERDAY, as_of=moment) for moment in moments
            ]
        }

    async def amounts_at(self, scrape: ScrapeRef) -> Amounts:
        is_end = scrape.scraped_at.hour > 0
        return {("team-a", CHAT): 12 * 10**9 if is_end else 0}

    async def query_union(self, _: object, until: datetime) -> Mapping[str, Any]:
        assert until == self.days[-1] + timedelta(days=1)
        labels = {"service": "team-a/chat"}
        tokens = [{"metric": labels, "value": [0, "4e6"]}]
        return {"started": [{}], "by_service": tokens, "tokens": []}


class World:
    """A pricing over an in-memory cluster, at a time of its own."""

    def __init__(self) -> None:
        self.operator, self.bills = MemoryOperator(), Bills()
        self.operator.serve()
        spec = a_budget(publishing=[{"names": ["chat"]}]).spec
        assert spec is not None
        self.operator.cluster.put(
            TENANT_BUDGETS,
            {"metadata": {"name": "team-a"}, "spec": wire_format(spec)},
        )
        self.now = TODAY + timedelta(minutes=5)
        self.store = Store(KINDS)
        cluster = self.operator.cluster
        self.pricing = CostPricing(
            cluster,
            self.store,
            Writer(cluster, self.store, lambda: True),
            cast("PrometheusMetrics", self.bills),
            lambda: self.now,
        )

    def put(self, *models: str, name: str = "standard", **fields: Any) -> None:
        terms = {"factor": "2", "atLeast": "3"}
        entry = {"from": "2026-01-01", "models": models, "fromCost": terms} | fields
        spec = {"entries": [entry]}
        meta = {"name": name, "uid": f"uid-{name}"}
        self.operator.cluster.put(PRICE_LISTS, {"metadata": meta, "spec": spec})

    async def write(self) -> None:
        await Reflector(
            self.operator.cluster, self.store, Observations(), lambda _: None
        ).list_all()
        await self.pricing.write()

    def prices(self, key: ObjectKey = STANDARD) -> Any:
        entries = self.operator.cluster.objects[key].get("status", {}).get("entries", ())
        return [entry["prices"] for entry in entries]


async def test_the_price_of_tomorrow_is_in_the_status_the_day_before() -> None:
    world = World()
    world.put("chat")
    await world.write()
    assert world.bills.days == [YESTERDAY]
    assert world.operator.cluster.objects[STANDARD]["status"] == {
        "entries": [
            {
                "from": "2026-01-01",
                "models": ["chat"],
                "tenants": [],
                "prices": [
                    {
                        "day": "2026-03-11",
                        "perMillionTokens": "6",
                        "cost": "3",
                        "measuredOn": "2026-03-09",
                    }
                ],
            }
        ]
    }


async def test_a_day_is_read_once_and_its_prices_are_written_once() -> None:
    world = World()
    world.put("chat")
    world.put("unknown", name="without-cost")
    for _ in range(3):
        await world.write()
    assert world.bills.days == [YESTERDAY]
    assert world.operator.cluster.applied.count(STANDARD) == 1
    assert world.prices(ObjectKey("pricelists", "", "without-cost")) == []
    world.now += timedelta(days=1)
    await world.write()
    assert world.bills.days == [YESTERDAY, TODAY]
    assert [[price["day"] for price in entry] for entry in world.prices()] == [
        ["2026-03-11", "2026-03-12"]
    ]


async def test_nothing_is_read_before_the_day_has_its_scrapes_or_without_an_entry_by_cost() -> None:
    world = World()
    world.put("chat")
    world.now = TODAY + timedelta(minutes=4, seconds=59)
    await world.write()
    world.put("chat", fromCost=None, input="1", output="1")
    world.now = TODAY + timedelta(minutes=5)
    await world.write()
    assert world.bills.days == []


async def test_a_failure_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.put("chat")
    world.bills.failures = 1
    world.operator.cluster.refusals[STANDARD] = "403"
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            await world.write()
    assert [record.getMessage() for record in caplog.records] == [
        "no prices by cost: 503",
        "prices by cost refused: 403",
    ]
    world.operator.cluster.refusals.clear()
    await world.write()
    assert [[price["perMillionTokens"] for price in entry] for entry in world.prices()] == [["6"]]
