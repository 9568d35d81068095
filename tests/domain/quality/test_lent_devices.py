"""A replica that neither its floor nor half an hour of load needs lends its device to a change."""

import random
import re
from datetime import datetime, timedelta
from typing import Any

import pytest

from tessera.api.reasons import ScalingReason
from tessera.domain.scaling.decisions import NEED_SPAN, needed_lately, with_need
from tessera.domain.scaling.state import ScaleDecision, ScalingHistory, TimestampedReplicas
from tests.builders import NOW, a_node, a_pool
from tests.domain.quality.gated_fleet import A_CHANGE, GatedVariantFleet, a_gated_fleet
from tests.domain.variant_fleet import CHAT
from tests.properties import examples

_FLOOR = 2
_REPLICAS = 3
# What was added for a load stays for an hour.
_SLOW = {"maxReplicas": _REPLICAS, "scaleDown": {"stabilizationWindow": "1h"}}
_BUSY = 500.0
_ALL_THREE = re.compile(
    r"no nvidia\.com/gpu of AcceleratorPool/\w+ is free, (the load of the last 30 minutes (needs|"
    r"is not known)|\d of \d ready replicas stay anyway|the replica that the load does not need|no "
    r"replica of the service).*, and spec\.rollout\.gateWindow is not set: "
)
_POLICIES = ("QueueAndActivity", "Capacity")


def a_full_fleet(policy: str = _POLICIES[0], *, has_spot: bool = False) -> GatedVariantFleet:
    """Return a service with one replica beyond its floor, a change, and no free device.

    Where it `has_spot`, that one is of another variant, on a node that may go any time.
    """
    fields: dict[str, Any] = {"scaling": {"policy": policy, **_SLOW}}
    if has_spot:
        fields |= {"class": "Standard", "placement": {"tiers": ["Reserved", "Spot"]}}
    fleet = a_gated_fleet(devices=_REPLICAS, **fields)
    if has_spot:
        fleet.pools = [*fleet.pools, a_pool("spot", "0.50", tier="Spot")]
        fleet.nodes = [a_node("a100", whole=_FLOOR), a_node("spot", whole=_REPLICAS - _FLOOR)]
    fleet.waiting = _BUSY
    fleet.run(240)
    assert sum(fleet.serving().values()) == _REPLICAS, fleet.describe()
    fleet.waiting = 0.0
    fleet.edit(**A_CHANGE, **fields)
    return fleet


def let_pass(fleet: GatedVariantFleet, minutes: int) -> None:
    """Run for so long; fail as soon as the floor is not there, or a change serves users."""
    # While nothing changes, a cycle of two minutes shows what four shorter ones do.
    quiet = max(0, minutes - 5) // 2
    for seconds in [*[120] * quiet, *[30] * 2 * (minutes - 2 * quiet)]:
        fleet.cycle(seconds)
        # On nodes that stay.
        assert fleet.counts()["a100"] >= _FLOOR, fleet.describe()
        assert fleet.serving().keys() <= fleet.promoted, fleet.describe()
        assert not fleet.lost


def test_after_half_an_hour_a_replica_without_load_lends_its_device() -> None:
    fleet = a_full_fleet()
    let_pass(fleet, 25)
    assert fleet.tried_pods() == []
    assert fleet.gated.missing_device == (
        "no nvidia.com/gpu of AcceleratorPool/a100 is free, the load of the last 30 minutes needs "
        "the 3 replicas, and spec.rollout.gateWindow is not set: add a node, or set it"
    )

    let_pass(fleet, 10)
    (tried,) = fleet.tried_pods()
    assert tried.containers_ready
    assert sum(fleet.serving().values()) == _FLOOR

    fleet.decide_on_candidate("Failed")
    let_pass(fleet, 3)
    assert (fleet.tried_pods(), sum(fleet.serving().values())) == ([], _REPLICAS)


def test_a_load_that_is_not_known_lends_nothing() -> None:
    fleet = a_full_fleet()
    fleet.waiting = None
    let_pass(fleet, 45)
    assert fleet.tried_pods() == []

    fleet.restart_operator()
    let_pass(fleet, 45)
    assert fleet.tried_pods() == []
    assert "the load of the last 30 minutes is not known" in (fleet.gated.missing_device or "")


def test_a_restart_of_the_operator_ends_no_gate_that_runs_on_a_lent_device() -> None:
    fleet = a_full_fleet()
    let_pass(fleet, 35)
    (tried,) = fleet.tried_pods()
    for waiting in (None, 0.0):
        fleet.restart_operator()
        fleet.waiting = waiting
        let_pass(fleet, 3)
        assert [pod.ref for pod in fleet.tried_pods()] == [tried.ref]

    fleet.waiting = _BUSY
    let_pass(fleet, 3)
    assert fleet.tried_pods() == []


def test_a_number_that_another_autoscaler_sets_is_a_floor() -> None:
    number: dict[str, Any] = {"replicas": _REPLICAS, "scaling": {"mode": "External"}}
    fleet = a_gated_fleet(devices=_REPLICAS, **number)
    fleet.waiting = 0.0
    fleet.edit(**A_CHANGE, **number)
    let_pass(fleet, 45)
    assert fleet.tried_pods() == []
    assert "3 of 3 ready replicas stay anyway" in (fleet.gated.missing_device or "")


@pytest.mark.parametrize("policy", _POLICIES)
@pytest.mark.parametrize("has_spot", [False, True])
def test_its_device_goes_back_when_load_asks_and_the_gate_goes_on_later(
    policy: str, has_spot: bool
) -> None:
    fleet = a_full_fleet(policy, has_spot=has_spot)
    let_pass(fleet, 35)
    (tried,) = fleet.tried_pods()
    let_pass(fleet, 15)
    assert [pod.ref for pod in fleet.tried_pods()] == [tried.ref]

    fleet.waiting = _BUSY
    let_pass(fleet, 3)
    assert (fleet.tried_pods(), sum(fleet.serving().values())) == ([], _REPLICAS)

    fleet.waiting = 0.0
    let_pass(fleet, 25)
    assert fleet.tried_pods() == []
    let_pass(fleet, 10)
    assert len(fleet.tried_pods()) == 1
    assert fleet.state.phase == "Candidate"


# Each case is hundreds of cycles.
@pytest.mark.parametrize("seed", range(examples(12) // 2))
def test_whatever_the_load_was_half_an_hour_of_it_needs_no_more_than_what_serves(
    seed: int,
) -> None:
    rng = random.Random(seed)  # noqa: S311 - a test
    fleet = a_full_fleet(rng.choice(_POLICIES), has_spot=rng.random() < 0.5)
    asked = fleet.now
    for _ in range(8):
        fleet.waiting = rng.choice((0.0, 0.0, _BUSY))
        for _ in range(rng.choice((2, 20, 40))):
            if fleet.waiting:
                asked = fleet.now
            let_pass(fleet, 1)
            is_quiet = fleet.now - asked > NEED_SPAN + timedelta(minutes=3)
            # One that scaling removed since has a device that is free.
            is_full = fleet.plans[CHAT].scale.replicas == _REPLICAS
            is_asked = is_full and fleet.now - asked < NEED_SPAN
            tried = [pod for pod in fleet.tried_pods() if not pod.terminating]
            assert not (is_asked and tried), (fleet.waiting, asked, fleet.describe())
            assert tried or not is_quiet, (asked, fleet.describe())
            missing = fleet.gated.missing_device
            assert missing is None or _ALL_THREE.match(missing), missing
        if not fleet.tried_pods() and rng.random() < 0.5:
            # What is not remembered counts as needed, unless the device is lent already.
            fleet.restart_operator()
            asked = fleet.now


@pytest.mark.parametrize("seed", range(examples(40)))
def test_what_half_an_hour_needed_is_the_most_that_stood_in_it(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - a test
    at, needs = NOW, tuple[TimestampedReplicas, ...]()
    stood = list[tuple[datetime, int]]()
    current = rng.randrange(1, 6)
    for _ in range(60):
        needed = rng.randrange(1, 6)
        history = ScalingHistory(
            decisions=(TimestampedReplicas(NOW - timedelta(hours=1), current),),
            down_window=(TimestampedReplicas(at, needed),),
        )
        decision = ScaleDecision(
            replicas=current, reason=ScalingReason.STEADY, message="", history=history
        )
        if not stood:
            stood.append((at, current))
        else:
            stood[-1] = at, stood[-1][1]
        stood.append((at, needed))
        needs = with_need(needs, decision, at)
        at += timedelta(minutes=rng.choice((1, 4, 11, 29)))
        expected = max(
            replicas
            for index, (end, replicas) in enumerate(stood)
            if index == len(stood) - 1 or at - end < NEED_SPAN
        )
        assert needed_lately(ScalingHistory(needs=needs), at) == expected


def test_once_readings_are_lost_what_is_in_effect_counts_as_needed() -> None:
    history = ScalingHistory(decisions=(TimestampedReplicas(NOW, 4),))
    decision = ScaleDecision(replicas=4, reason=ScalingReason.STEADY, message="", history=history)
    assert with_need((), decision, NOW) == ()

    needs = with_need((TimestampedReplicas(NOW, 2),), decision, NOW)
    assert needed_lately(ScalingHistory(needs=needs), NOW) == 4
