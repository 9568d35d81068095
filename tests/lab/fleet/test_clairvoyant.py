"""A fleet that knows its load: cheaper than any fixed one, and not below the bound."""

import math
from dataclasses import replace

from tessera_lab.engine.requests import EngineLimits
from tessera_lab.fleet.attainment import AttainmentGoal
from tessera_lab.fleet.generators import requests_at_rate
from tessera_lab.fleet.hindsight.bound import Supply, lower_bound
from tessera_lab.fleet.hindsight.clairvoyant import clairvoyant_run
from tessera_lab.fleet.model import FleetModel, StartUp
from tessera_lab.fleet.policies.scheduled import ScheduledPolicy
from tessera_lab.fleet.prices import GpuPrices
from tessera_lab.fleet.simulation import Simulation
from tests.lab.fleet.loads import DENSE, replica

GOAL = AttainmentGoal(window=60.0, window_share=0.9)
MODEL = replica(DENSE, seqs=64, tokens=512, kv=148_320)
FLEET = FleetModel(
    replica=MODEL,
    limits=EngineLimits(
        max_model_len=MODEL.max_model_len,
        max_num_seqs=MODEL.max_num_seqs,
        max_num_batched_tokens=MODEL.max_num_batched_tokens,
        blocks=MODEL.kv_tokens // 16 + 1,
    ),
    step=DENSE,
    start_up=StartUp(low=0.0, mode=0.0, high=0.0),
)
# Four minutes of a quiet and two of a busy service.
LOAD = requests_at_rate("step", lambda at: 2.0 if at < 240 else 12.0, 360.0, 1)


def test_a_known_load_costs_less_than_a_fixed_fleet_and_more_than_the_bound() -> None:
    run = clairvoyant_run(LOAD, FLEET, GOAL)
    assert run.sufficient
    assert GOAL.score(zip(LOAD.arrivals, run.course.ttft, strict=True)).sufficient
    fixed = next(count for count in range(1, 9) if attains(count))
    assert fixed >= 2
    assert run.course.replica_seconds < fixed * LOAD.seconds
    prices = GpuPrices(on_demand=1.0, reserved=1.0, spot=1.0)
    least = lower_bound(LOAD, MODEL, GOAL, Supply(prices=prices, reserved=False))
    assert 0.35 < least.replica_seconds / run.course.replica_seconds < 1


def test_a_goal_that_cannot_be_attained_has_the_most_replicas_that_were_tried() -> None:
    load = LOAD.cut(0.0, 60.0)
    run = clairvoyant_run(load, FLEET, replace(GOAL, objective=1e-6))
    assert not run.sufficient
    assert run.course.replica_seconds >= 2 * load.seconds


def attains(replicas: int) -> bool:
    fleet = replace(FLEET, initial_replicas=replicas)
    course = Simulation(LOAD, fleet, ScheduledPolicy([(0.0, replicas), (math.inf, 1)])).run()
    return GOAL.score(zip(LOAD.arrivals, course.ttft, strict=True)).sufficient
