"""Rollouts of services whose Deployments somebody else scales: what ends the wait."""

from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest

from tests.floors.fleet import FloorFleet, add_gpus
from tests.floors.kube import Autoscaler, PodTimes
from tests.floors.test_scenes import MINUTE

FAST = PodTimes(start=(10, 30))
REFUSAL = "list autoscalers of team-a: 403 horizontalpodautoscalers.autoscaling is forbidden"


@pytest.fixture
async def begin() -> AsyncIterator[Callable[[int], FloorFleet]]:
    """Begin fleets that end with the test: a service of so many replicas fills its only pool."""
    fleets: list[FloorFleet] = []

    def start(floor: int) -> FloorFleet:
        fleet = FloorFleet.begin(1, FAST)
        add_gpus(fleet, "a100", floor)
        fleet.serve("chat", floor)
        fleets.append(fleet)
        return fleet

    yield start
    for fleet in fleets:
        await fleet.close()


async def _scaled(fleet: FloorFleet, floor: int, **fields: object) -> Autoscaler:
    """Let an autoscaler hold the Deployment at its number from the start; nobody sees that."""
    await fleet.settle()
    (deployment,) = fleet.deployments("chat")
    fleet.autoscale(deployment, floor)
    autoscaler = fleet.kube.autoscalers[deployment]
    for name, value in fields.items():
        setattr(autoscaler, name, value)
    await fleet.run(MINUTE)
    return autoscaler


def _progressing(fleet: FloorFleet) -> tuple[str, str]:
    condition = fleet.condition("chat", "Progressing")
    return condition["reason"], condition["message"]


async def _seconds_of_a_missing_replica(fleet: FloorFleet, floor: int, minutes: int) -> float:
    """Return for how long fewer replicas than the floor take requests."""
    missing, end = timedelta(), fleet.kube.at + timedelta(minutes=minutes)
    while fleet.kube.at < end:
        before = fleet.kube.at
        await fleet.tick()
        if fleet.healthy("chat") < floor:
            missing += fleet.kube.at - before
    return missing.total_seconds()


async def _assert_complete(fleet: FloorFleet, floor: int) -> None:
    assert _progressing(fleet)[0] == "RolloutComplete", "\n".join(fleet.describe())
    assert fleet.healthy("chat") == floor
    assert not fleet.judge.findings, fleet.judge.findings[:3]
    assert "replicaConflicts" not in fleet.status("chat")


@pytest.mark.parametrize("restarted", [False, True], ids=["same", "restarted"])
async def test_a_rollout_goes_on_once_the_autoscaler_is_deleted(
    *, restarted: bool, begin: Callable[[int], FloorFleet]
) -> None:
    """The autoscaler agrees with the number, so nothing is ever written that takes it back."""
    fleet = begin(2)
    await _scaled(fleet, 2)
    fleet.edit_template("chat", "two")
    await fleet.run(8 * MINUTE)
    reason, message = _progressing(fleet)
    assert reason == "FieldManagerConflict"
    assert "waits until HorizontalPodAutoscaler/chat-a100-1gpu-hpa is gone" in message
    fleet.kube.autoscalers.clear()
    if restarted:
        await fleet.restart_operator()
    await fleet.run(10 * MINUTE)
    await _assert_complete(fleet, 2)


@pytest.mark.parametrize("restarted", [False, True], ids=["same", "restarted"])
async def test_no_replica_leaves_again_while_an_autoscaler_lives(
    *, restarted: bool, begin: Callable[[int], FloorFleet]
) -> None:
    """Silence of an autoscaler that has its number proves nothing."""
    fleet = begin(2)
    await _scaled(fleet, 2)
    fleet.edit_template("chat", "two")
    await fleet.run(5 * MINUTE)
    assert _progressing(fleet)[0] == "FieldManagerConflict"
    missing = 0.0
    for _ in range(3):
        if restarted:
            await fleet.restart_operator()
        missing += await _seconds_of_a_missing_replica(fleet, 2, minutes=10)
    assert not missing
    assert _progressing(fleet)[0] == "FieldManagerConflict"


@pytest.mark.parametrize("floor", [1, 2])
async def test_a_bad_template_is_fixed_once_the_autoscaler_is_deleted(
    floor: int, begin: Callable[[int], FloorFleet]
) -> None:
    fleet = begin(floor)
    await _scaled(fleet, floor)
    fleet.break_template("chat")
    await fleet.run(30 * MINUTE)
    assert fleet.healthy("chat") == floor, "\n".join(fleet.describe())
    fleet.kube.autoscalers.clear()
    fleet.edit_template("chat", "fixed")
    await fleet.run(10 * MINUTE)
    await _assert_complete(fleet, floor)


async def test_a_writer_without_an_autoscaler_is_tried_again_after_twice_the_silence(
    begin: Callable[[int], FloorFleet],
) -> None:
    fleet = begin(2)
    await _scaled(fleet, 2, is_listed=False)
    fleet.edit_template("chat", "two")
    # A step and its reversal take up to two minutes, first at once and then after two more.
    assert await _seconds_of_a_missing_replica(fleet, 2, minutes=9) <= 2 * 120
    (conflict,) = fleet.status("chat")["replicaConflicts"]
    assert conflict["takes"] == 1
    assert _progressing(fleet)[0] == "FieldManagerConflict"
    assert "and goes on then unless somebody writes spec.replicas" in _progressing(fleet)[1]
    fleet.kube.autoscalers.clear()
    await fleet.run(10 * MINUTE)
    assert _progressing(fleet)[0] == "RolloutComplete"


async def test_a_refused_list_is_named_with_the_right_that_is_missing(
    begin: Callable[[int], FloorFleet],
) -> None:
    fleet = begin(2)
    await _scaled(fleet, 2)
    fleet.kube.autoscaler_refusal = REFUSAL
    fleet.edit_template("chat", "two")
    await fleet.run(5 * MINUTE)
    fleet.kube.autoscalers.clear()
    assert not await _seconds_of_a_missing_replica(fleet, 2, minutes=10)
    reason, message = _progressing(fleet)
    assert reason == "FieldManagerConflict"
    assert REFUSAL in message
    assert "the verb list on horizontalpodautoscalers of API group autoscaling" in message
    fleet.kube.autoscaler_refusal = None
    await fleet.run(5 * MINUTE)
    await _assert_complete(fleet, 2)
