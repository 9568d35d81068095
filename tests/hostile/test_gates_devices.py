"""Loads and prices that move all the time: floors hold, and what a gate costs has an end."""

import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.builders import H100, a_node, a_pool
from tests.domain.quality.gated_fleet import (
    A_CHANGE,
    GatedVariantFleet,
    a_gated_fleet,
    a_gated_spec,
    an_always_open_window,
)
from tests.domain.quality.test_lent_devices import _BUSY, _FLOOR, a_full_fleet
from tests.domain.quality.test_precisions import LISTED, a_fleet_with_untried_fp8, variants
from tests.domain.variant_fleet import CHAT
from tests.hostile.score import SCORE
from tests.properties import examples


def count(is_met: bool, said: str) -> None:
    """Count a scene, and fail where the attack met its end."""
    SCORE.add(int(is_met))
    assert not is_met, said


@pytest.mark.parametrize("seed", range(examples(16)))
def test_a_floor_holds_whatever_load_restarts_and_losses_do(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - a test
    policy, has_spot = rng.choice(("QueueAndActivity", "Capacity")), rng.random() < 0.5
    fleet = a_full_fleet(policy, has_spot=has_spot)
    for _ in range(14):
        event = rng.choice(("load", "load", "restart", "status", "evict", "verdict", "edit"))
        if event == "load":
            fleet.waiting = rng.choice((0.0, 0.0, _BUSY, None))
        elif event == "restart":
            fleet.restart_operator()
        elif event == "status":
            fleet.lose_status()
        elif event == "evict" and fleet.tried_pods():
            del fleet.pods[fleet.tried_pods()[0].ref]
        elif event == "verdict" and fleet.tried_pods() and fleet.state.candidate is not None:
            fleet.decide_on_candidate("Failed")
        elif event == "edit" and fleet.service.spec is not None:
            spec = fleet.service.spec
            engine = spec.engine.model_copy(update={"extra_args": (f"--seed={rng.randrange(9)}",)})
            edited = spec.model_copy(update={"engine": engine})
            fleet.service = replace(fleet.service, spec=edited)
        for _ in range(rng.choice((3, 15, 35))):
            fleet.cycle(60)
            serving = sum(fleet.serving().values())
            count(serving < _FLOOR, f"{seed} {event} {fleet.describe()}")
            count(not fleet.serving().keys() <= fleet.promoted, fleet.describe())


@pytest.mark.parametrize("floor", [1, 2])
def test_the_last_ready_replica_lends_nothing_whatever_its_floor(floor: int) -> None:
    for replicas in (1, 2):
        scaling: dict[str, Any] = {"scaling": {"maxReplicas": replicas}}
        if floor > replicas:
            continue
        fleet = a_gated_fleet(devices=replicas, floor=floor, **scaling)
        fleet.waiting = 0.0
        window = {"rollout": an_always_open_window()}
        fleet.service = replace(
            fleet.service, spec=a_gated_spec(floor, **A_CHANGE, **scaling, **window)
        )
        for index in range(80):
            if index % 20 == 10:
                # One replica is not ready for a while.
                for ref, pod in list(fleet.pods.items())[:1]:
                    if sum(fleet.serving().values()) > 1:
                        fleet.pods[ref] = replace(pod, ready_since=None, serving=None)
            fleet.cycle(60)
            count(sum(fleet.serving().values()) < 1, fleet.describe())


def test_another_autoscaler_s_number_is_not_lent_while_it_oscillates() -> None:
    fleet = a_gated_fleet(devices=4, replicas=4, scaling={"mode": "External"})
    fleet.waiting = 0.0
    rng = random.Random(7)  # noqa: S311 - a test
    number, ready = 4, timedelta()
    for index in range(120):
        if index % 12 == 0:
            number = rng.choice((2, 3, 4))
            spec = a_gated_spec(**A_CHANGE, replicas=number, scaling={"mode": "External"})
            fleet.service = replace(fleet.service, spec=spec)
            ready = fleet.now + timedelta(minutes=6)
        fleet.cycle(60)
        serving = sum(fleet.serving().values())
        count(fleet.now > ready and serving < number, f"{number} {fleet.describe()}")


def lends_in(fleet: GatedVariantFleet, hours: int, *, quiet: int, busy: int) -> int:
    """Return how often a replica was lent while load comes and goes, in minutes."""
    lends, before, period = 0, False, quiet + busy
    for minute in range(60 * hours):
        fleet.waiting = 0.0 if minute % period < quiet else _BUSY
        fleet.cycle(60)
        is_lent = bool(fleet.tried_pods())
        lends += is_lent and not before
        before = is_lent
        count(sum(fleet.serving().values()) < _FLOOR, fleet.describe())
    return lends


def test_a_load_that_oscillates_lends_a_device_once_in_half_an_hour_at_most() -> None:
    fleet = a_full_fleet()
    count(lends_in(fleet, 3, quiet=3, busy=2) > 0, "it is needed all the time")
    fleet = a_full_fleet()
    lends = lends_in(fleet, 4, quiet=34, busy=3)
    count(lends > 8, str(lends))


@pytest.mark.parametrize("period", [1, 7, 60])
def test_prices_that_flip_start_no_storm_of_trials(period: int) -> None:
    fleet = a_fleet_with_untried_fp8()
    fleet.nodes = [*fleet.nodes, a_node("h100", whole=4, product=H100)]
    pools, tried = fleet.pools, set[str]()
    for minute in range(max(60, 4 * period)):
        price = "1.00" if (minute // period) % 2 == 0 else "9.00"
        fleet.pools = [*pools, a_pool("h100", price)]
        fleet.cycle(60)
        tried |= {pod.ref.name for pod in fleet.tried_pods()}
        count("h100-1gpu-fp8" in {each.rpartition("/")[2] for each in fleet.served}, "untried")
    count(len(tried) > 2, f"{len(tried)} replicas were started: {sorted(tried)}")


def test_prices_that_flip_around_a_refusal_start_no_other_trial() -> None:
    fleet = a_fleet_with_untried_fp8()
    fleet.nodes = [*fleet.nodes, a_node("h100", whole=4, product=H100)]
    pools = fleet.pools
    fleet.pools = [*pools, a_pool("h100", "1.00")]
    fleet.run(60)
    fleet.decide_on_candidate("Failed")
    fleet.run(60)
    for hour in range(20):
        fleet.pools = [*pools, a_pool("h100", "1.00" if hour % 2 else "9.00")]
        if hour % 5 == 0:
            fleet.restart_operator()
        if hour % 7 == 0:
            fleet.lose_status()
        for _ in range(4):
            fleet.cycle(900)
            count(bool(fleet.tried_pods()), fleet.describe())
    assert variants(fleet) == {"a100-1gpu"}


def test_an_edit_each_hour_beside_flipping_prices_leaves_one_replica_at_most() -> None:
    fleet = a_fleet_with_untried_fp8()
    fleet.nodes = [*fleet.nodes, a_node("h100", whole=4, product=H100)]
    pools = fleet.pools
    for hour in range(12):
        fleet.pools = [*pools, a_pool("h100", "1.00" if hour % 2 else "9.00")]
        fleet.edit(**LISTED, engine={"extraArgs": [f"--seed={hour % 3 + 7}"]})
        for _ in range(12):
            fleet.cycle(300)
            tried = [pod for pod in fleet.tried_pods() if not pod.terminating]
            count(len(tried) > 1, fleet.describe())
            count(sum(fleet.serving().values()) < 2, fleet.describe())
    assert len(fleet.plans[CHAT].removable_deployments) <= 1
