"""Policies that know the trace: one plays a schedule, one sees the work that arrived."""

import pytest

from tessera_lab.fleet.hindsight.work import trace_work
from tessera_lab.fleet.observation import Observation, Policy, total
from tessera_lab.fleet.policies.reactive import reactive
from tessera_lab.fleet.policies.scheduled import ScheduledPolicy
from tests.lab.fleet.loads import DENSE, replica, trace

SCHEDULE = [(0.0, 2), (300.0, 5), (600.0, 3)]


def decisions(policy: Policy, *moments: float) -> list[int]:
    observations = [Observation(at=at, replicas=1, ready=1, scraped_at=at) for at in moments]
    return [total(policy.decide(observation)) for observation in observations]


def test_the_schedule_is_followed_at_its_moments() -> None:
    policy = ScheduledPolicy(SCHEDULE)
    assert decisions(policy, 0, 295, 300, 595, 600, 9000) == [2, 2, 5, 5, 3, 3]


def test_replicas_are_ordered_ahead_by_their_lead_and_go_when_due() -> None:
    policy = ScheduledPolicy(SCHEDULE, lead=100)
    assert decisions(policy, 195, 200, 500, 595, 600) == [2, 5, 5, 5, 3]


def test_the_reactive_policy_follows_the_work_of_its_window_and_holds() -> None:
    model = replica(DENSE)
    load = trace([(60 + second / 10, 1000, 50) for second in range(600)] + [(900.0, 1, 1)])
    per_second = trace_work(load, model).total / 60
    family = reactive(load, model)
    policy = family.create({"headroom": 1.0, "window": 60.0, "hold": 120.0}, model)
    full = decisions(policy, 59, 90, 120, 240, 245)
    assert full[0] == 0
    assert full[2] == pytest.approx(per_second, abs=1)
    assert full[1] == pytest.approx(per_second / 2, abs=1)
    assert full[3] == full[2]
    assert full[4] < full[3]


def test_headroom_multiplies_the_replicas() -> None:
    model = replica(DENSE)
    load = trace([(second / 10, 1000, 50) for second in range(600)])
    family = reactive(load, model)
    single, double = (
        family.create({"headroom": headroom, "window": 30.0, "hold": 0.0}, model)
        for headroom in (1.0, 2.0)
    )
    assert decisions(double, 60)[0] == pytest.approx(2 * decisions(single, 60)[0], abs=1)
    assert len(family.grid) >= 30
    assert all(settings.keys() == family.published.keys() for settings in family.grid)
