"""The judge finds missing replicas, tolerates what it should, and knows what is cheapest."""

from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from tessera.api.ref import Ref
from tests.floors.costs import dollars_above_cheapest
from tests.floors.fleet import NAMESPACE, FloorFleet, add_gpus
from tests.floors.player import end_findings

CHAT = Ref(NAMESPACE, "chat")


@pytest.fixture
async def fleet() -> AsyncIterator[FloorFleet]:
    """Serve two replicas on demand, since somebody else has the reserved GPU."""
    fleet = FloorFleet.begin()
    add_gpus(fleet, "a100", 1)
    add_gpus(fleet, "a100-od", 1, "OnDemand")
    fleet.add_node("a100-od", whole=1, name="other")
    fleet.take_devices("a100")
    await fleet.run(5)
    fleet.serve("chat", 2)
    await fleet.settle()
    assert fleet.healthy("chat") == 2, fleet.describe()
    yield fleet
    await fleet.close()


async def test_a_replica_that_goes_without_need_is_found(fleet: FloorFleet) -> None:
    key = next(key for key, pod in fleet.kube.pods() if pod.service == CHAT)
    fleet.kube.begin_deletion(key)
    await fleet.run(5)
    assert fleet.judge.ticks_below_floor == 1
    assert fleet.judge.findings[0].endswith("team-a/chat has 1 healthy of 2, 0 may be missing")


async def test_the_end_of_a_node_is_tolerated_until_the_floor_is_there_again(
    fleet: FloorFleet,
) -> None:
    fleet.lose_node("other")
    await fleet.run(60)
    assert (fleet.healthy("chat"), fleet.judge.findings) == (1, [])
    fleet.add_node("a100-od", whole=1, name="another")
    await fleet.settle()
    assert fleet.healthy("chat") == 2
    await test_a_replica_that_goes_without_need_is_found(fleet)


async def test_what_somebody_else_scales_down_is_tolerated(fleet: FloorFleet) -> None:
    (deployment,) = fleet.deployments("chat")
    fleet.kube.scale_as(deployment, 1, "kubectl")
    await fleet.kube.step()
    await fleet.settle()
    assert (fleet.judge.lowest[CHAT], fleet.judge.findings) == (1, [])


async def test_a_floor_that_the_user_lowers_is_no_loss(fleet: FloorFleet) -> None:
    fleet.set_floor("chat", 1)
    await fleet.run(600)
    assert fleet.judge.findings == []


async def test_a_free_reserved_gpu_makes_one_on_demand_too_dear_until_it_moved(
    fleet: FloorFleet,
) -> None:
    assert dollars_above_cheapest(fleet.kube, CHAT, 2) == 0
    fleet.free_devices("a100")
    await fleet.run(30)
    assert dollars_above_cheapest(fleet.kube, CHAT, 2) == Decimal("3.36")
    await fleet.run(1200)
    assert dollars_above_cheapest(fleet.kube, CHAT, 2) == 0


async def test_a_service_below_its_floor_is_clean_only_with_what_to_do(fleet: FloorFleet) -> None:
    fleet.lose_node("other")
    await fleet.run(1800)
    assert end_findings(fleet) == []
    assert "Free or add such hardware" in fleet.condition("chat", "Placed")["message"]
