"""Services with fewer devices than replicas take edits, one healthy replica at a time."""

from collections.abc import AsyncIterator

import pytest

from tessera.api.ref import Ref
from tests.floors.fleet import NAMESPACE, FloorFleet, add_gpus
from tests.floors.kube import PodTimes

MINUTE = 60.0
CHAT = Ref(NAMESPACE, "chat")
GPUS = 3


@pytest.fixture
async def fleet() -> AsyncIterator[FloorFleet]:
    fleet = FloorFleet.begin(1, PodTimes(start=(10, 30)))
    yield fleet
    await fleet.close()


async def _serve_short(fleet: FloorFleet, pools: int, missing: int) -> None:
    """Serve chat on 3 GPUs in so many pools, with so many replicas more in its floor."""
    for index, size in enumerate({1: (3,), 2: (2, 1), 3: (1, 1, 1)}[pools]):
        add_gpus(fleet, f"a100-{index}", size, "OnDemand" if index else "Reserved")
    fleet.serve("chat", GPUS + missing)
    await fleet.settle()
    assert fleet.healthy("chat") == GPUS, fleet.describe()


def _templates(fleet: FloorFleet) -> set[str]:
    """Return the templates of the replicas that take requests, one of each pool."""
    pods = fleet.kube.service_pods(NAMESPACE, "chat")
    return {pod.template for _, pod in pods if pod.takes_requests}


async def _watch(fleet: FloorFleet, seconds: float, *, healthy: int = GPUS) -> set[str]:
    """Run for so long, with at most one healthy replica away; return the reasons of Progressing."""
    reasons, end = set[str](), fleet.kube.at.timestamp() + seconds
    fleet.quiet_ticks = 0
    while fleet.kube.at.timestamp() < end:
        await fleet.tick()
        reasons.add(fleet.condition("chat", "Progressing")["reason"])
        assert fleet.healthy("chat") >= healthy - 1, "\n".join(fleet.describe())
    assert not fleet.judge.findings, fleet.judge.findings[:3]
    assert "DisruptionNotAllowed" not in reasons
    return reasons


def _assert_replaced(fleet: FloorFleet, old: set[str], healthy: int = GPUS) -> None:
    assert fleet.healthy("chat") == healthy, "\n".join(fleet.describe())
    assert not _templates(fleet) & old, "\n".join(fleet.describe())
    assert "in place" not in fleet.condition("chat", "Progressing")["message"]


@pytest.mark.parametrize("restart", [False, True], ids=["same", "restarted"])
@pytest.mark.parametrize(("pools", "missing"), [(1, 1), (1, 2), (2, 1), (3, 1), (3, 2)], ids=str)
async def test_an_edit_replaces_all_that_runs(
    pools: int, missing: int, restart: bool, fleet: FloorFleet
) -> None:
    await _serve_short(fleet, pools, missing)
    old = _templates(fleet)
    fleet.edit_template("chat", "two")
    await _watch(fleet, 30)
    if restart:
        await fleet.restart_operator()
    await _watch(fleet, 10 * MINUTE)
    _assert_replaced(fleet, old)


@pytest.mark.parametrize("restart", [False, True], ids=["same", "restarted"])
@pytest.mark.parametrize("pools", [1, 2, 3])
async def test_a_fix_replaces_a_bad_template(pools: int, restart: bool, fleet: FloorFleet) -> None:
    await _serve_short(fleet, pools, 1)
    old = _templates(fleet)
    fleet.break_template("chat")
    await _watch(fleet, 5 * MINUTE)
    fleet.edit_template("chat", "fixed")
    if restart:
        await fleet.restart_operator()
    await _watch(fleet, 15 * MINUTE)
    _assert_replaced(fleet, old)


@pytest.mark.parametrize("pools", [1, 2, 3])
async def test_a_bad_template_is_taken_back(pools: int, fleet: FloorFleet) -> None:
    await _serve_short(fleet, pools, 1)
    old = _templates(fleet)
    fleet.break_template("chat")
    await _watch(fleet, 5 * MINUTE)
    fleet.edit("chat", engine=None)
    await _watch(fleet, 10 * MINUTE)
    assert fleet.healthy("chat") == GPUS, "\n".join(fleet.describe())
    assert _templates(fleet) == old


async def _watch_takers(fleet: FloorFleet, seconds: float) -> None:
    """Run for so long, while somebody with a higher priority takes each device that is freed."""
    end = fleet.kube.at.timestamp() + seconds
    while fleet.kube.at.timestamp() < end:
        ending = [
            pod
            for _, pod in fleet.kube.service_pods(NAMESPACE, "chat")
            if pod.terminating and pod.node is not None
        ]
        waiting = any(pod.node is None and not pod.service.name for _, pod in fleet.kube.pods())
        if ending and not waiting:
            fleet.take_devices("a100-0", priority=100)
        await fleet.tick()


@pytest.mark.parametrize(("gpus", "floor"), [(4, 4), (3, 4)], ids=["full", "short"])
async def test_takers_of_freed_devices_get_one_and_are_named(
    gpus: int, floor: int, fleet: FloorFleet
) -> None:
    add_gpus(fleet, "a100-0", gpus)
    fleet.serve("chat", floor)
    await fleet.settle()
    old = _templates(fleet)
    fleet.edit_template("chat", "two")
    await _watch_takers(fleet, 60 * MINUTE)
    assert fleet.healthy("chat") == gpus - 1, "\n".join(fleet.describe())
    progressing = fleet.condition("chat", "Progressing")
    assert progressing["reason"] == "WaitingForDevice", "\n".join(fleet.describe())
    assert " of namespace people took the device on Node/" in progressing["message"]
    assert "spec.scaling.minReplicas" in progressing["message"]
    fleet.free_devices("a100-0")
    await _watch(fleet, 15 * MINUTE, healthy=gpus - 1)
    _assert_replaced(fleet, old, healthy=gpus)


async def test_an_error_in_the_spec_forgets_no_device_that_was_taken(fleet: FloorFleet) -> None:
    add_gpus(fleet, "a100-0", 4)
    fleet.serve("chat", 4)
    await fleet.settle()
    old = _templates(fleet)
    fleet.edit_template("chat", "two")
    await _watch_takers(fleet, 5 * MINUTE)
    placement = fleet.spec("chat").get("placement", {})
    fleet.edit("chat", placement={**placement, "pools": ["a100-typo", "a100-typo"]})
    await _watch(fleet, MINUTE, healthy=3)
    fleet.edit("chat", placement=placement)
    await _watch(fleet, 30 * MINUTE, healthy=3)
    assert fleet.condition("chat", "Progressing")["reason"] == "WaitingForDevice"
    fleet.free_devices("a100-0")
    await _watch(fleet, 15 * MINUTE, healthy=3)
    _assert_replaced(fleet, old, healthy=4)


async def test_a_lower_floor_ends_the_wait_for_a_device_that_was_taken(fleet: FloorFleet) -> None:
    add_gpus(fleet, "a100-0", 4)
    fleet.serve("chat", 4)
    await fleet.settle()
    old = _templates(fleet)
    fleet.edit_template("chat", "two")
    await _watch_takers(fleet, 5 * MINUTE)
    fleet.set_floor("chat", 3)
    await _watch(fleet, 15 * MINUTE)
    _assert_replaced(fleet, old)


async def test_a_quota_that_is_lowered_in_a_step_counts_as_a_lost_replica(
    fleet: FloorFleet,
) -> None:
    add_gpus(fleet, "a100-0", 4)
    fleet.serve("chat", 3)
    await fleet.settle()
    fleet.set_quota(3)
    old = _templates(fleet)
    fleet.edit_template("chat", "two")
    while not any(pod.terminating for _, pod in fleet.kube.service_pods(NAMESPACE, "chat")):
        await fleet.tick()
    fleet.set_quota(2)
    await fleet.run(30 * MINUTE)
    _assert_replaced(fleet, old, healthy=2)


def _add_two_nodes(fleet: FloorFleet, first: int, second: int) -> None:
    fleet.add_pool("a100-0")
    fleet.add_node("a100-0", whole=first, name="first")
    fleet.add_node("a100-0", whole=second, name="second")


@pytest.mark.parametrize("lost", ["before", "in-rollout"])
@pytest.mark.parametrize("second", [1, 2])
async def test_a_lost_node_does_not_stop_a_rollout_for_good(
    lost: str, second: int, fleet: FloorFleet
) -> None:
    _add_two_nodes(fleet, GPUS, second)
    fleet.serve("chat", GPUS + second)
    await fleet.settle()
    old = _templates(fleet)
    if lost == "in-rollout":
        fleet.edit_template("chat", "two")
        await fleet.run(15)
    fleet.lose_node("second")
    await fleet.run(15)
    if lost == "before":
        fleet.edit_template("chat", "two")
    reasons = await _watch(fleet, 35 * MINUTE)
    _assert_replaced(fleet, old)
    assert lost == "before" or "WaitingForDevice" in reasons


@pytest.mark.parametrize("back", [False, True], ids=["silent", "heard-again"])
async def test_an_edit_goes_on_while_a_node_is_not_ready(back: bool, fleet: FloorFleet) -> None:
    _add_two_nodes(fleet, 2, 1)
    fleet.serve("chat", 3)
    await fleet.settle()
    old = _templates(fleet)
    fleet.set_node_ready("second", False)
    await fleet.run(MINUTE)
    fleet.edit_template("chat", "two")
    await _watch(fleet, 5 * MINUTE, healthy=2)
    fleet.set_node_ready("second", back)
    await _watch(fleet, 10 * MINUTE, healthy=2)
    _assert_replaced(fleet, old, healthy=3 if back else 2)


@pytest.mark.parametrize("when", ["before", "in-rollout"])
async def test_a_successor_that_is_ready_lets_nobody_go_while_a_node_is_not_ready(
    when: str, fleet: FloorFleet
) -> None:
    """The successor starts beside the old one in a pool with room; the other pool is dead."""
    add_gpus(fleet, "a100-0", 2)
    add_gpus(fleet, "a100-1", 2, "OnDemand")
    fleet.take_devices("a100-0")
    await fleet.run(5)
    fleet.serve("chat", 3)
    await fleet.settle()
    fleet.free_devices("a100-0")
    await fleet.run(5)
    old = _templates(fleet)
    (dead,) = [name for name in fleet.kube.nodes() if name.startswith("a100-1")]
    if when == "in-rollout":
        fleet.edit_template("chat", "two")
        await fleet.run(10)
    fleet.set_node_ready(dead, False)
    await fleet.run(10)
    fleet.edit_template("chat", "two")
    await _watch(fleet, 35 * MINUTE, healthy=1)
    fleet.set_node_ready(dead, True)
    await _watch(fleet, 20 * MINUTE, healthy=1)
    _assert_replaced(fleet, old, healthy=3)


@pytest.mark.parametrize("missing", [1, 2])
async def test_a_pool_that_is_renamed_gives_way_while_devices_are_missing(
    missing: int, fleet: FloorFleet
) -> None:
    await _serve_short(fleet, 1, missing)
    fleet.rename_pool("a100-0", "a100-new")
    await _watch(fleet, 15 * MINUTE)
    assert fleet.counts("chat") == {"a100-new-1gpu": GPUS}, "\n".join(fleet.describe())
