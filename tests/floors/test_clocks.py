"""The clock of the cluster is set back, or forward and back: two cycles later all is right."""

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from decimal import Decimal

import pytest

from tessera.domain.kinds.kinds import TENANT_BUDGETS
from tessera.resources.manifest import ObjectKey
from tests.floors.fleet import FloorFleet, add_gpus
from tests.floors.kube import PodTimes
from tests.floors.test_scenes import MINUTE

HOUR = timedelta(hours=1)
STEPS = {"back": (-HOUR,), "ahead and back": (HOUR, -HOUR)}
LIMITS = [{"window": "Month", "amount": "100000"}, {"window": "Day", "amount": "10000"}]


@pytest.fixture
async def begin() -> AsyncIterator[Callable[[], FloorFleet]]:
    """Begin fleets that end with the test: a service of 2 replicas, and room for 4."""
    fleets: list[FloorFleet] = []

    def start() -> FloorFleet:
        fleet = FloorFleet.begin(1, PodTimes(start=(10, 30)))
        add_gpus(fleet, "a100", 4)
        fleet.serve("chat", 2)
        fleets.append(fleet)
        return fleet

    yield start
    for fleet in fleets:
        await fleet.close()


async def _set_clock(fleet: FloorFleet, steps: tuple[timedelta, ...], *, restarted: bool) -> None:
    """Set the clock, with a minute between two steps."""
    for step in steps:
        await fleet.run(MINUTE)
        fleet.kube.step_clock(step)
    if restarted:
        await fleet.restart_operator()


def _spent(fleet: FloorFleet) -> Decimal:
    """Return what the record of the budget has for the month."""
    body = fleet.kube.objects[ObjectKey(TENANT_BUDGETS.plural, "", "team-a")]
    windows = body["status"]["spend"]["windows"]
    return Decimal(next(each["spent"] for each in windows if each["window"] == "Month"))


@pytest.mark.parametrize("restarted", [False, True], ids=["same", "restarted"])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
async def test_a_service_that_was_not_ready_is_ready_two_cycles_after_its_replica(
    steps: tuple[timedelta, ...], *, restarted: bool, begin: Callable[[], FloorFleet]
) -> None:
    fleet = begin()
    await fleet.settle()
    for key, _ in list(fleet.kube.service_pods("team-a", "chat")):
        fleet.kube.forget(key)
    await fleet.tick()
    assert fleet.condition("chat", "Ready")["status"] == "False"
    for step in steps:
        await fleet.tick()
        fleet.kube.step_clock(step)
    if restarted:
        await fleet.restart_operator()
    while fleet.healthy("chat") < 1:
        await fleet.tick()
    for _ in range(3):
        await fleet.tick()
    assert fleet.condition("chat", "Ready")["status"] == "True", "\n".join(fleet.describe())
    assert fleet.condition("chat", "Ready")["lastTransitionTime"] <= fleet.kube.moment


@pytest.mark.parametrize("restarted", [False, True], ids=["same", "restarted"])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
async def test_a_budget_goes_on_from_its_record(
    steps: tuple[timedelta, ...], *, restarted: bool, begin: Callable[[], FloorFleet]
) -> None:
    fleet = begin()
    fleet.set_budget(LIMITS)
    await fleet.settle()
    await fleet.run(5 * MINUTE)
    before = _spent(fleet)
    await _set_clock(fleet, steps, restarted=restarted)
    fleet.set_floor("chat", 3)
    for _ in range(2):
        await fleet.tick()
    reasons = {each["type"]: each["reason"] for each in fleet.budget_conditions()}
    assert reasons["WithinBudget"] != "SpendUnknown"
    assert sum(fleet.kube.strategy(key).replicas for key in fleet.deployments("chat")) == 3
    await fleet.run(5 * MINUTE)
    # Nothing is free: what runs costs in the time that runs twice or before it.
    assert _spent(fleet) > before


@pytest.mark.parametrize("restarted", [False, True], ids=["same", "restarted"])
async def test_a_replica_that_drains_leaves_in_its_time(
    *, restarted: bool, begin: Callable[[], FloorFleet]
) -> None:
    fleet = begin()
    await fleet.settle()
    fleet.take_devices("a100", 2)
    await fleet.run(MINUTE)
    fleet.edit_template("chat", "two")
    while not any(pod.draining_since for _, pod in fleet.kube.pods()):
        await fleet.tick()
    fleet.kube.step_clock(-HOUR)
    if restarted:
        await fleet.restart_operator()
    await fleet.run(10 * MINUTE)
    assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete", fleet.describe()
    assert not fleet.judge.findings
