"""Scenes in which a TenantBudget refuses replicas of the floor, and a condition says so."""

from collections.abc import AsyncIterator

import pytest

from tests.floors.fleet import FloorFleet, add_gpus
from tests.floors.kube import PodTimes

MINUTE = 60.0


@pytest.fixture
async def fleet() -> AsyncIterator[FloorFleet]:
    """Serve chat on the one replica that a budget pays for."""
    fleet = FloorFleet.begin(1, PodTimes(start=(10, 30)))
    add_gpus(fleet, "a100", 3, "OnDemand")
    fleet.serve("chat", 1)
    await fleet.settle()
    yield fleet
    await fleet.close()


@pytest.mark.parametrize(
    ("amount", "gpus", "reason", "act"),
    [
        ("0.01", None, "BudgetExhausted", "raises the limit in spec.limits"),
        ("100000", "1", "GPUQuotaExceeded", "raises spec.gpus"),
    ],
    ids=["money", "quota"],
)
@pytest.mark.parametrize("fixed", [False, True], ids=["floor", "fixed"])
async def test_a_replica_that_the_budget_refuses_is_said_until_the_owner_ends_it(
    amount: str, gpus: str | None, reason: str, act: str, *, fixed: bool, fleet: FloorFleet
) -> None:
    fleet.set_budget([{"window": "Month", "amount": amount}], gpus)
    await fleet.settle()
    assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete"
    if fixed:
        fleet.edit("chat", replicas=2)
    else:
        fleet.set_floor("chat", 2)
    await fleet.settle()
    assert fleet.healthy("chat") == 1
    progressing = fleet.condition("chat", "Progressing")
    assert (progressing["status"], progressing["reason"]) == ("False", reason)
    for words in ("1 of 2 replicas", "the owner of TenantBudget/team-a", act):
        assert words in progressing["message"]
    fleet.set_budget([{"window": "Month", "amount": "100000"}])
    await fleet.settle()
    assert fleet.healthy("chat") == 2
    assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete"
