"""Scenes on a pool with slices of several sizes: what has room serves, and a lost slice is left."""

from collections.abc import AsyncIterator, Callable, Mapping

import pytest

from tessera.api.ref import Ref
from tessera.resources.api_resources import NODES
from tests.builders import A100
from tests.floors.fleet import NAMESPACE, SLICE, FloorFleet
from tests.floors.kube import PodTimes

LARGE = "nvidia.com/mig-2g.20gb"
MINUTE = 60.0
CHAT = Ref(NAMESPACE, "chat")


@pytest.fixture
async def begin() -> AsyncIterator[Callable[..., FloorFleet]]:
    """Begin fleets with one pool of one GPU in slices, which end with the test."""
    fleets: list[FloorFleet] = []

    def start(small: int, large: int, tier: str = "Reserved") -> FloorFleet:
        fleet = FloorFleet.begin(1, PodTimes(start=(10, 30)))
        fleet.add_pool("a100", tier)
        _add_gpu(fleet, {SLICE: small, LARGE: large})
        fleets.append(fleet)
        return fleet

    yield start
    for fleet in fleets:
        await fleet.close()


def _add_gpu(fleet: FloorFleet, slices: Mapping[str, int]) -> None:
    """Add a node with one GPU in slices of several sizes."""
    labels = {"pool": "a100", "nvidia.com/gpu.product": A100, "nvidia.com/gpu.count": "1"}
    allocatable = {resource: str(count) for resource, count in slices.items()}
    status = {"allocatable": allocatable, "conditions": [{"type": "Ready", "status": "True"}]}
    body = {"metadata": {"name": "a100-0", "labels": labels}, "spec": {}, "status": status}
    fleet.kube.put(NODES, body, "kubelet")


def _restart_pods(fleet: FloorFleet) -> None:
    """Delete the pods of the service, as somebody with kubectl."""
    for key, _ in list(fleet.kube.service_pods(NAMESPACE, "chat")):
        fleet.kube.forget(key)


# M1


@pytest.mark.parametrize("floor", [1, 3, 4])
async def test_a_floor_is_served_by_slices_of_several_sizes(
    floor: int, begin: Callable[..., FloorFleet]
) -> None:
    fleet = begin(small=1, large=3)
    fleet.serve("chat", floor)
    await fleet.run(15 * MINUTE)
    assert fleet.healthy("chat") == floor, fleet.describe()
    assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete"


async def test_a_floor_beyond_the_pool_is_served_as_far_as_it_goes_and_names_what_lacks(
    begin: Callable[..., FloorFleet],
) -> None:
    fleet = begin(small=1, large=3)
    fleet.serve("chat", 6)
    await fleet.run(30 * MINUTE)
    assert fleet.healthy("chat") == 4, fleet.describe()
    placed = fleet.condition("chat", "Placed")
    assert placed["reason"] == "Unschedulable"
    assert "AcceleratorPool/a100" in placed["message"]
    assert "one instance type" not in placed["message"]


@pytest.mark.parametrize("first", [1, 3])
async def test_a_floor_that_grows_takes_the_slices_of_another_size(
    first: int, begin: Callable[..., FloorFleet]
) -> None:
    fleet = begin(small=1, large=3)
    fleet.serve("chat", first)
    await fleet.settle()
    fleet.set_floor("chat", 4)
    await fleet.run(15 * MINUTE)
    assert fleet.healthy("chat") == 4, fleet.describe()
    fleet.set_floor("chat", first)
    await fleet.run(30 * MINUTE)
    assert fleet.healthy("chat") == first, fleet.describe()
    assert not fleet.judge.findings


async def test_a_load_takes_the_slices_of_another_size(begin: Callable[..., FloorFleet]) -> None:
    fleet = begin(small=1, large=3)
    fleet.serve("chat", 1)
    await fleet.settle()
    fleet.waiting["chat"] = 60
    await fleet.run(5 * MINUTE)
    assert fleet.healthy("chat") == 4, fleet.describe()
    fleet.waiting["chat"] = 0
    await fleet.run(30 * MINUTE)
    assert fleet.healthy("chat") == 1, fleet.describe()
    assert not fleet.judge.findings


async def test_an_edit_replaces_replicas_on_slices_of_several_sizes(
    begin: Callable[..., FloorFleet],
) -> None:
    fleet = begin(small=1, large=3)
    fleet.serve("chat", 4)
    await fleet.run(5 * MINUTE)
    fleet.judge.lowest.clear()
    fleet.edit_template("chat", "two")
    await fleet.run(30 * MINUTE)
    assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete", fleet.describe()
    assert fleet.judge.lowest[CHAT] == 3
    assert not fleet.judge.findings


# M2


@pytest.mark.parametrize("restart", [False, True], ids=["same", "restarted"])
@pytest.mark.parametrize("tier", ["Reserved", "OnDemand"])
async def test_a_replica_whose_slice_is_taken_takes_a_free_one_of_another_size(
    tier: str, restart: bool, begin: Callable[..., FloorFleet]
) -> None:
    fleet = begin(small=1, large=2, tier=tier)
    fleet.serve("chat", 1)
    await fleet.settle()
    assert fleet.counts("chat") == {"a100-1g-10gb": 1}
    fleet.take_devices("a100", resource=SLICE, priority=9)
    _restart_pods(fleet)
    if restart:
        await fleet.restart_operator()
    await fleet.run(3 * MINUTE)
    assert fleet.counts("chat") == {"a100-2g-20gb": 1}, fleet.describe()
    taken, before = len(fleet.judge.findings), fleet.judge.ticks_below_floor
    fleet.free_devices("a100")
    await fleet.run(120 * MINUTE)
    assert fleet.healthy("chat") == 1, fleet.describe()
    assert (len(fleet.judge.findings), fleet.judge.ticks_below_floor) == (taken, before)
    assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete"


async def test_a_slice_taken_by_turns_loses_no_floor(begin: Callable[..., FloorFleet]) -> None:
    """Whoever wants the small slice again and again moves the service once."""
    fleet = begin(small=1, large=2)
    fleet.serve("chat", 1)
    await fleet.settle()
    fleet.take_devices("a100", resource=SLICE, priority=9)
    _restart_pods(fleet)
    await fleet.run(5 * MINUTE)
    pods = {key for key, _ in fleet.kube.service_pods(NAMESPACE, "chat")}
    for _ in range(6):
        fleet.free_devices("a100")
        await fleet.run(2 * MINUTE)
        fleet.take_devices("a100", resource=SLICE, priority=9)
        await fleet.run(2 * MINUTE)
    assert {key for key, _ in fleet.kube.service_pods(NAMESPACE, "chat")} == pods
