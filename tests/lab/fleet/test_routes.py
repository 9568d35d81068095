"""A route over simulated fleets: who answers what, and what it costs."""

import pytest

from tessera.api.model_route import ModelRouteSpec
from tessera_lab.fleet.generators import situation
from tessera_lab.fleet.prices import PRICE_SETS
from tessera_lab.fleet.routes import TargetCourse, TargetFleet, play_route, trivial_openings
from tessera_lab.fleet.scenarios.service import fleet_objects

PRICES = PRICE_SETS["aws-2026"]["NVIDIA-A100-SXM4-80GB"]
SPEC = ModelRouteSpec.model_validate(
    {"targets": [{"service": "small", "when": {"maxScore": 2}}, {"service": "large"}]}
)
TRACE = situation("steady", 1.0, 240.0, 1)


def play(share: float) -> dict[str, TargetCourse]:
    fleets = {
        "small": TargetFleet(objects=fleet_objects(), prices=PRICES.times(0.25)),
        "large": TargetFleet(objects=fleet_objects(), prices=PRICES),
    }
    return dict(play_route(SPEC, TRACE, trivial_openings(len(TRACE), share, 1), fleets))


@pytest.mark.parametrize(("share", "target"), [(0.0, "large"), (1.0, "small")])
def test_a_target_that_no_rule_chooses_costs_nothing(share: float, target: str) -> None:
    courses = play(share)
    assert courses.keys() == {target}
    course = courses[target]
    assert course.requests == len(TRACE)
    assert course.in_time >= 0.99 * len(TRACE)
    one_replica = PRICES.on_demand * (0.25 if target == "small" else 1.0)
    assert course.usd_per_hour == pytest.approx(one_replica, rel=0.01)


def test_each_request_is_answered_by_the_target_that_the_rules_choose() -> None:
    courses = play(0.6)
    assert sum(course.requests for course in courses.values()) == len(TRACE)
    assert courses["small"].requests / len(TRACE) == pytest.approx(0.6, abs=0.08)
