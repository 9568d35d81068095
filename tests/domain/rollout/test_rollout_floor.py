"""A rollout keeps what its record says without what is lost; a device that was taken counts."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from tessera.api.ref import Ref
from tessera.api.service_status import RolloutFloorStatus, RolloutStepStatus
from tessera.domain.observed.snapshot import Pod
from tessera.domain.rollout.rollout_floor import ReplacedService, RolloutFloor, rollout_floor
from tests.builders import NOW, a_pod, at

WAIT = timedelta(minutes=12)
STEP = RolloutStepStatus(node="a100-0", since=at(-60))


def observed(
    staying: int,
    *,
    leaving: Sequence[Pod] = (),
    is_starting: bool = False,
    free: Sequence[str] = (),
    others: Sequence[Pod] = (),
) -> ReplacedService:
    return ReplacedService(
        desired=4,
        guaranteed=4,
        staying=staying,
        leaving=leaving,
        is_starting=is_starting,
        nodes_with_free_devices=free,
        others=others,
    )


def floor(
    record: RolloutFloorStatus | None, service: ReplacedService, seconds: float = 0.0
) -> RolloutFloor:
    return rollout_floor(record, service, WAIT, at(seconds))


def a_taker(seconds: float) -> Pod:
    return replace(a_pod("notebook", node="a100-0"), service=Ref("", ""), bound=at(seconds))


@pytest.mark.parametrize(
    ("service", "replicas"),
    [(observed(3), 3), (observed(4), 4), (observed(3, is_starting=True), 4)],
    ids=["short", "full", "record-lost"],
)
def test_it_keeps_what_was_healthy_when_it_began_once_the_status_says_so(
    service: ReplacedService, replicas: int
) -> None:
    begun = floor(None, service)
    assert (begun.replicas, begun.is_recorded, begun.within(4)) == (replicas, False, 4)
    recorded = floor(begun.status, service)
    assert (recorded.replicas, recorded.is_recorded) == (replicas, True)
    assert recorded.within(4) == replicas


def test_what_becomes_healthy_is_kept_too_after_the_status_says_so() -> None:
    more = floor(RolloutFloorStatus(replicas=3), observed(4))
    assert (more.replicas, more.is_recorded) == (4, False)


def test_what_is_lost_for_long_is_subtracted() -> None:
    record = RolloutFloorStatus(replicas=4)
    lost = floor(record, observed(3))
    assert (lost.replicas, lost.missing, lost.falls_at) == (4, 1, NOW + WAIT)
    late = WAIT.total_seconds()
    assert floor(lost.status, observed(3), late - 1).replicas == 4
    assert floor(lost.status, observed(3), late).replicas == 3
    assert floor(lost.status, observed(3, is_starting=True), late).status.short_since is None


@pytest.mark.parametrize("others", [(), (a_taker(-30),)], ids=["free", "another-device-taken"])
def test_a_replacement_is_open_while_the_device_is_free(others: Sequence[Pod]) -> None:
    record = RolloutFloorStatus(replicas=4, step=STEP)
    open_step = floor(record, observed(3, free=["a100-0"], others=others))
    assert (open_step.missing, open_step.taker, open_step.status.step) == (0, None, STEP)


def test_a_replica_that_drains_opens_a_replacement() -> None:
    pod = replace(a_pod("chat-0", node="a100-0"), draining_since=at(-5))
    step = floor(RolloutFloorStatus(replicas=4), observed(3, leaving=[pod])).status.step
    assert step == RolloutStepStatus(node="a100-0", since=at(-5))


def test_a_taker_of_the_device_lowers_nothing_and_is_named() -> None:
    record = RolloutFloorStatus(replicas=4, step=STEP)
    taken = floor(record, observed(3, others=[a_taker(-30)]))
    assert (taken.taker, taken.missing, taken.falls_at) == (a_taker(-30), 1, None)
    later = floor(taken.status, observed(3, others=[a_taker(-30)]), 10 * WAIT.total_seconds())
    assert later.replicas == 4


def test_beside_a_taken_device_only_what_is_lost_is_subtracted() -> None:
    record = RolloutFloorStatus(replicas=4, step=STEP, short_since=at(-WAIT.total_seconds()))
    assert floor(record, observed(2, others=[a_taker(-30)])).replicas == 3


def test_a_device_that_nobody_has_is_lost() -> None:
    record = RolloutFloorStatus(replicas=4, step=STEP)
    lost = floor(record, observed(3, others=[a_taker(-90)]))
    assert (lost.taker, lost.status.step, lost.status.short_since) == (None, None, NOW)


@pytest.mark.parametrize(
    ("recorded", "staying", "replicas"),
    [
        pytest.param(4, 3, 4, id="a refused successor lowers nothing"),
        pytest.param(2, 3, 2, id="an extra replica raises nothing"),
        pytest.param(1, 2, 2, id="granted ones raise it"),
    ],
)
def test_money_that_refuses_a_replica_changes_nothing_of_what_is_kept(
    recorded: int, staying: int, replicas: int
) -> None:
    granted = replace(observed(staying), desired=2)
    assert floor(RolloutFloorStatus(replicas=recorded), granted).replicas == replicas
