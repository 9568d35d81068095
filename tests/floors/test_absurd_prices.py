"""Scenes with prices and limits beyond any currency: these are refused, and others served."""

from collections.abc import AsyncIterator

import pytest

from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, TENANT_BUDGETS
from tessera.resources.manifest import ObjectKey
from tests.floors.fleet import FloorFleet, add_gpus
from tests.floors.kube import PodTimes

# The first one broke the plan of its service, the second one the bill of all.
ABSURD = ["1e999", "-1"]
DEAREST = "999999999"


@pytest.fixture
async def fleet() -> AsyncIterator[FloorFleet]:
    """Serve chat and sage, each in a pool of its own, under one budget."""
    fleet = FloorFleet.begin(1, PodTimes(start=(10, 30)))
    fleet.set_budget([{"window": "Month", "amount": "900000000000000"}])
    for service, pool in (("chat", "a100"), ("sage", "h100")):
        add_gpus(fleet, pool, 2)
        fleet.serve(service, 1, placement={"pools": [pool]})
    await fleet.settle()
    yield fleet
    await fleet.close()


def _accepted(fleet: FloorFleet, kind: str, name: str) -> dict[str, str]:
    status = fleet.kube.objects[ObjectKey(kind, "", name)]["status"]
    return next(each for each in status["conditions"] if each["type"] == "Accepted")


@pytest.mark.parametrize("price", ABSURD)
async def test_a_pool_with_an_absurd_price_is_refused_and_others_are_served(
    price: str, fleet: FloorFleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.add_pool("h100", price=price)
    fleet.set_floor("chat", 2)
    await fleet.settle()
    accepted = _accepted(fleet, ACCELERATOR_POOLS.plural, "h100")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert "spec.prices" in accepted["message"]
    assert (fleet.healthy("chat"), fleet.healthy("sage")) == (2, 1), fleet.describe()
    _assert_no_defect(fleet, caplog)


@pytest.mark.parametrize("amount", ABSURD)
async def test_a_budget_with_an_absurd_limit_is_refused_and_says_so(
    amount: str, fleet: FloorFleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.set_budget([{"window": "Month", "amount": amount}])
    await fleet.settle()
    accepted = _accepted(fleet, TENANT_BUDGETS.plural, "team-a")
    assert accepted["status"] == "False"
    assert "spec.limits" in accepted["message"]
    assert (fleet.healthy("chat"), fleet.healthy("sage")) == (1, 1), fleet.describe()
    _assert_no_defect(fleet, caplog)


async def test_what_the_dearest_price_sums_up_to_has_a_place_in_each_status(
    fleet: FloorFleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.add_pool("h100", price=DEAREST)
    fleet.set_floor("chat", 2)
    await fleet.settle()
    assert (fleet.healthy("chat"), fleet.healthy("sage")) == (2, 1), fleet.describe()
    _assert_no_defect(fleet, caplog)


def _assert_no_defect(fleet: FloorFleet, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was set aside, and no part of a cycle failed."""
    conditions = [each for name in fleet.services() for each in fleet.conditions(name)]
    reasons = {each["reason"] for each in (*conditions, *fleet.budget_conditions())}
    assert "PlannerError" not in reasons
    assert not [record.getMessage() for record in caplog.records if record.exc_info]
