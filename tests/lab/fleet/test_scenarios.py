"""In hard situations policies come back, stay calm, lose nothing and recover: ours does."""

import math
from array import array
from dataclasses import replace

import pytest

from tessera_lab.fleet.attainment import AttainmentGoal
from tessera_lab.fleet.course import Course
from tessera_lab.fleet.generators import situation
from tessera_lab.fleet.model import FleetModel
from tessera_lab.fleet.policies.product import OURS
from tessera_lab.fleet.scenarios.scenario import RATE, SCENARIOS, TAIL, TAIL_RATE, HardScenario
from tessera_lab.fleet.scenarios.service import fleet_objects
from tessera_lab.fleet.scenarios.verdict import (
    PropertyVerdict,
    RecordedPolicy,
    direction_changes,
    judge,
    lost_requests,
    play,
    scenario_fleet,
    scenario_policy,
)
from tessera_lab.fleet.simulation import Simulation
from tests.lab.fleet.builders import Planned


def small(name: str) -> HardScenario:
    """Return a scenario with half of the rate and of the tail that `make bench-scenarios` has."""
    return replace(SCENARIOS[name], usual_rate=RATE / 2, tail=TAIL / 2)


def judged(
    scenario: str, *counts: tuple[float, int], fleet: FleetModel | None = None
) -> PropertyVerdict:
    """Judge a fixed course of decisions; its minimum is 1."""
    fleet = fleet or scenario_fleet(small(scenario), "planned")
    policy = RecordedPolicy(Planned(*counts, interval=60.0), fleet)
    return judge(policy, small(scenario), fleet, minimum=1)


@pytest.mark.parametrize(
    "scenario", ["silent-night", "metrics-missing", "metrics-nan", "dead-node", "full-pool"]
)
def test_ours_keeps_every_property(scenario: str) -> None:
    verdict = play(OURS, small(scenario))
    assert verdict.holds, verdict


def test_ours_stays_within_a_budget_that_ends_and_recovers_when_it_is_raised() -> None:
    # Half of the budget beyond one replica, too.
    limited = fleet_objects(hourly_limit="4.40")
    scenario = replace(small("budget-end"), objects=limited)
    fleet = scenario_fleet(scenario, OURS)
    policy = RecordedPolicy(scenario_policy(OURS, scenario, fleet), fleet)
    verdict = judge(policy, scenario, fleet, minimum=1)
    assert verdict.holds, verdict
    (raised_at, _), *_ = scenario.edits
    before = {desired for at, desired in policy.decisions if 600 <= at < raised_at}
    after = max(desired for at, desired in policy.decisions if at >= raised_at)
    assert max(before) <= 2
    assert after > 2


def test_ours_recovers_on_engines_slower_than_their_profile() -> None:
    # It keeps more replicas than it needs there, which docs/benchmarks.md says.
    verdict = play(OURS, small("model-slower"))
    assert verdict.no_oscillation
    assert verdict.no_loss
    assert verdict.no_deadlock


def test_the_hpa_of_the_documents_ratchets_on_whole_gpus_while_traffic_flows() -> None:
    flowing = play("hpa-documents-busy", small("steady"))
    silent = play("hpa-documents-busy", small("silent-night"))
    assert (flowing.minimum, flowing.no_ratchet) == (2, False)
    assert flowing.final > 4
    assert (silent.final, silent.no_ratchet) == (2, True)


def test_one_replica_keeps_the_slo_in_the_tail() -> None:
    fleet = replace(scenario_fleet(SCENARIOS["steady"], "static"), initial_replicas=1)
    trace = situation("steady", TAIL_RATE, TAIL, seed=1)
    course = Simulation(trace, fleet, Planned((0, 1))).run()
    assert AttainmentGoal().score(zip(trace.arrivals, course.ttft, strict=True)).share > 0.95


def test_a_fleet_that_keeps_what_it_grew_to_ratchets() -> None:
    verdict = judged("steady", (0, 2), (600, 4))
    assert (verdict.no_ratchet, verdict.final) == (False, 4)
    assert verdict.no_oscillation
    assert verdict.no_loss
    assert verdict.no_deadlock


def test_a_fleet_that_grows_and_shrinks_under_steady_load_oscillates() -> None:
    waves = [(minute * 60.0, 2 + minute // 3 % 2) for minute in range(20)]
    verdict = judged("steady", *waves, (1200, 1))
    assert (verdict.no_oscillation, verdict.turns) == (False, 4)
    assert verdict.no_ratchet


def test_replicas_that_go_without_a_drain_lose_requests() -> None:
    fleet = replace(scenario_fleet(small("steady"), "static"), drain_timeout=0.0)
    verdict = judged("steady", (0, 3), (300, 2), (1200, 1), fleet=fleet)
    assert verdict.lost > 0
    assert not verdict.no_loss


def test_a_fleet_too_small_after_a_step_does_not_recover() -> None:
    verdict = judged("step", (0, 1))
    assert verdict.recovered_share < 0.5
    assert not verdict.no_deadlock
    assert verdict.no_ratchet


def test_replicas_that_are_never_ready_do_not_recover() -> None:
    verdict = judged("steady", *((second, 2 + int(second) // 60) for second in range(0, 600, 60)))
    assert verdict.recovered_share > 0.95
    assert not verdict.no_deadlock


@pytest.mark.parametrize(
    ("counts", "changes"), [([2, 2, 2], 0), ([1, 2, 2, 3], 0), ([1, 3, 2], 1), ([3, 2, 2, 3, 1], 2)]
)
def test_only_changes_of_direction_count(counts: list[int], changes: int) -> None:
    assert direction_changes(counts) == changes


def test_requests_of_a_dead_node_are_not_lost_by_the_policy() -> None:
    course = Course(ttft=array("d", [0.1, math.inf, math.inf]), lost_streams=2)
    assert lost_requests(course) == 0
    course.lost_streams = 1
    course.broken_streams = 3
    assert lost_requests(course) == 4
