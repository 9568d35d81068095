"""Money under broken clocks, refused records and lost objects."""

import json
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from typing_extensions import override

from tessera.ports import ClockReading
from tessera.reconcile.observe import RestoredHistory
from tessera.reconcile.trusted_clock import TrustedClock
from tessera.resources.manifest import ObjectKey
from tests.builders import NOW
from tests.hostile.twin import Fleet, Twins
from tests.memory_operator import add_batch


class SteppingFleet(Fleet):
    """A fleet whose operator runs on a node with a clock that may step."""

    def __init__(self) -> None:
        self.step = timedelta()
        self._trusted = TrustedClock(
            lambda: self.at + self.step,
            self._monotonic,
            lambda: ClockReading(self.at, self._monotonic()),
        )
        super().__init__()

    def _monotonic(self) -> float:
        return (self.at - NOW).total_seconds()

    @override
    def _now(self) -> datetime:
        return self._trusted()


def add_tenant(fleet: Fleet) -> None:
    fleet.add_pool("a100")
    fleet.add_node("a100-0", "a100", {"1g.10gb": 7})
    fleet.add_budget("team-a", "5000", "Month")
    fleet.serve("chat", "team-a", scaling={"minReplicas": 2, "maxReplicas": 6})


@pytest.mark.parametrize("step", [timedelta(days=30), -timedelta(hours=2)])
async def test_a_leader_whose_clock_steps_charges_and_scales_as_one_whose_clock_does_not(
    step: timedelta,
) -> None:
    twins = Twins(add_tenant)
    twins.hostile = stepping = SteppingFleet()
    add_tenant(stepping)

    def act(fleet: Fleet, cycle: int) -> None:
        del fleet
        stepping.step = step if cycle in (10, 11, 20) else timedelta()

    await twins.run(40, act)
    assert twins.hostile.spent("team-a") > 0
    twins.assert_equal()


BUDGET = ObjectKey("tenantbudgets", "", "team-a")
RECORDS = ObjectKey("configmaps", "tessera-system", "tessera-spend")


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_budget_that_is_made_again_or_restored_without_status_keeps_its_spend(
    restarts: bool,
) -> None:
    def with_short_service(fleet: Fleet) -> None:
        add_tenant(fleet)
        fleet.serve("short", "team-a", replicas=3)

    twins = Twins(with_short_service)
    await twins.run(10)
    for fleet in twins.both:
        fleet.cluster.discard(ObjectKey("inferenceservices", "team-a", "short"))
        fleet.cluster.discard(ObjectKey("deployments", "team-a", "short-a100-1g-10gb"))

    def act(fleet: Fleet, cycle: int) -> None:
        if cycle == 30:
            fleet.cluster.discard(BUDGET)
        if cycle == 30 and restarts:
            fleet.restart()
        if cycle == 32:
            fleet.add_budget("team-a", "5000", "Month")

    await twins.run(40, act)
    spent, expected = twins.hostile.spent("team-a"), twins.peaceful.spent("team-a")
    assert expected > 10**7
    # A longer span is rounded once.
    assert spent == pytest.approx(expected, abs=100)


async def spent_after_loss(currency: str = "USD", record: str | None = None) -> Fleet:
    """Run a fleet whose budget is made again in a currency, with another record outside."""
    fleet = Fleet()
    add_tenant(fleet)
    for _ in range(20):
        await fleet.cycle()
    fleet.cluster.discard(BUDGET)
    fleet.restart()
    if record is not None:
        fleet.cluster.objects[RECORDS]["data"]["team-a"] = record
    fleet.add_budget("team-a", "5000", "Month", currency=currency)
    await fleet.cycle()
    return fleet


@pytest.mark.parametrize(
    ("currency", "record"),
    [("EUR", None), ("USD", "{"), ("USD", '{"currency": "USD", "as_of": 1e400, "windows": {}}')],
)
async def test_a_budget_whose_record_outside_cannot_be_used_is_closed(
    currency: str, record: str | None
) -> None:
    fleet = await spent_after_loss(currency, record)
    assert reason_of(fleet) == "SpendUnknown"


@pytest.mark.parametrize("copied", [False, True])
async def test_a_record_from_the_future_counts_only_where_it_is_the_last_one(copied: bool) -> None:
    fleet = Fleet()
    add_tenant(fleet)
    for _ in range(20):
        await fleet.cycle()
    spent = fleet.spent("team-a")
    record = fleet.body(BUDGET)["status"]["spend"]
    record["asOf"] = (fleet.at + timedelta(hours=2)).isoformat()
    record["windows"][0]["spent"] = "4999"
    if not copied:
        fleet.cluster.discard(RECORDS)
    fleet.restart()
    await fleet.cycle()
    reason, last = ("WithinLimits", spent) if copied else ("NearLimit", 4999 * 10**9)
    assert reason_of(fleet) == reason
    assert fleet.spent("team-a") == pytest.approx(last, rel=0.1)
    before = fleet.spent("team-a")
    await fleet.cycle()
    assert fleet.spent("team-a") > before
    as_of = fleet.body(BUDGET)["status"]["spend"]["asOf"]
    assert datetime.fromisoformat(as_of) <= fleet.at


async def test_where_the_record_outside_is_gone_too_the_operators_own_series_have_the_spend() -> (
    None
):
    fleet = Fleet()
    add_tenant(fleet)
    for _ in range(20):
        await fleet.cycle()
    spent = fleet.spent("team-a") + 10**9
    records = dict(fleet.memory.spend_records)
    window = records["team-a"].meter.spend_by_window["Month"]
    exported = replace(
        records["team-a"].meter, spend_by_window={"Month": replace(window, nanos=spent)}
    )
    fleet.cluster.discard(BUDGET)
    fleet.cluster.discard(RECORDS)
    fleet.restart()
    fleet.observations.history = RestoredHistory(
        spend_records={"team-a": replace(records["team-a"], meter=exported)}
    )
    fleet.add_budget("team-a", "5000", "Month")
    await fleet.cycle()
    assert fleet.spent("team-a") >= spent


async def test_a_new_budget_is_new_and_an_old_record_is_dropped() -> None:
    fleet = await spent_after_loss()
    assert reason_of(fleet) == "WithinLimits"
    fleet.cluster.discard(BUDGET)
    fleet.at += timedelta(days=40)
    fleet.add_budget("team-b", "5000", "Month")
    fleet.serve("chat", "team-b")
    for _ in range(30):
        await fleet.cycle()
    assert list(fleet.body(RECORDS)["data"]) == ["team-b"]


def reason_of(fleet: Fleet) -> str:
    conditions = fleet.body(BUDGET)["status"]["conditions"]
    return str({entry["type"]: entry["reason"] for entry in conditions}["WithinBudget"])


async def serving_fleet(replicas: int) -> tuple[Fleet, ObjectKey]:
    """Return a fleet in which a funded service runs, and the service."""
    fleet = Fleet()
    fleet.add_pool("a100")
    fleet.add_node("a100-0", "a100", {"1g.10gb": 7})
    fleet.add_budget("team-a", "5000", "Month")
    chat = fleet.serve("chat", "team-a", replicas=replicas)
    for _ in range(3):
        await fleet.cycle()
    return fleet, chat


async def test_without_a_record_of_the_spend_nothing_is_added_and_reductions_go_on() -> None:
    fleet, chat = await serving_fleet(replicas=3)
    assert len(fleet.pods_of("team-a")) == 3

    fleet.cluster.refusals[BUDGET] = "500 etcdserver: request timed out"
    fleet.serve("late", "team-a", replicas=1)
    batch = add_batch(fleet)
    fleet.cluster.objects[chat]["spec"]["replicas"] = 5
    fleet.cluster.touch(chat)
    for _ in range(20):
        await fleet.cycle()
    assert fleet.replicas_of("team-a") == 3
    assert not [key for key in fleet.cluster.objects if key.plural == "jobs"]
    message = fleet.body(chat)["status"]["conditions"]
    assert "request timed out" in str(message)

    fleet.cluster.objects[chat]["spec"]["replicas"] = 1
    fleet.cluster.touch(chat)
    for _ in range(20):
        await fleet.cycle()
    assert fleet.replicas_of("team-a") == 1

    fleet.cluster.refusals.clear()
    for _ in range(3):
        await fleet.cycle()
    assert fleet.replicas_of("team-a") == 2
    assert [key for key in fleet.cluster.objects if key.plural == "jobs"]
    assert fleet.body(batch)["status"]["state"] != "Failed"


def annotate_override(fleet: Fleet, until: datetime) -> None:
    override = {"until": until.isoformat(), "reason": "INC-7"}
    annotations = {"tessera.dev/budget-override": json.dumps(override)}
    fleet.body(BUDGET)["metadata"]["annotations"] = annotations
    fleet.cluster.touch(BUDGET)


@pytest.mark.parametrize("closed_by", ["lost record", "refused record"])
async def test_an_override_opens_a_closed_budget_until_its_end(closed_by: str) -> None:
    fleet, chat = await serving_fleet(replicas=1)
    if closed_by == "lost record":
        fleet.cluster.discard(RECORDS)
        del fleet.body(BUDGET)["status"]["spend"]
        fleet.restart()
    else:
        fleet.cluster.refusals[BUDGET] = "500 etcdserver: request timed out"

    async def replicas_after(wanted: int) -> int:
        fleet.body(chat)["spec"]["replicas"] = wanted
        fleet.cluster.touch(chat)
        for _ in range(20):
            await fleet.cycle()
        return fleet.replicas_of("team-a")

    assert await replicas_after(2) == 1
    annotate_override(fleet, fleet.at + timedelta(minutes=5))
    assert await replicas_after(3) == 3
    if closed_by == "lost record":
        status = fleet.body(BUDGET)["status"]
        assert status["override"]["reason"] == "INC-7"
        assert "INC-7" in str(status["conditions"])
    fleet.at += timedelta(minutes=5)
    assert await replicas_after(4) <= 3
    assert "override" not in fleet.body(BUDGET)["status"]


@pytest.mark.parametrize(
    "text", ["", "x", "{}", '{"until": "2026-12-01", "reason": "a"}', "[" * 10**5]
)
async def test_an_override_that_cannot_be_read_is_none(text: str) -> None:
    fleet = Fleet()
    add_tenant(fleet)
    annotations = {"tessera.dev/budget-override": text}
    fleet.body(BUDGET)["metadata"]["annotations"] = annotations
    fleet.cluster.touch(BUDGET)
    await fleet.cycle()
    assert "override" not in fleet.body(BUDGET)["status"]
