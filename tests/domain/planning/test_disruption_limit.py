"""Whatever a plan takes, healthy replicas within the floor stay; what is withheld is counted."""

from dataclasses import replace

import pytest

from tessera.api.reasons import Progressing
from tessera.api.ref import Ref
from tessera.domain.planning.disruption_limit import within_disruptions
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.rollout.disruptions import Disruptions, disruptions_of
from tessera.domain.rollout.drain import DrainPlan
from tessera.domain.status.service import service_status
from tests.builders import (
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    compute_service_plan,
)

SPEC = a_spec(scaling={"minReplicas": 2, "maxReplicas": 8})


def planned(ready: int, replicas: int, draining: int = 0) -> ServicePlan:
    """Return a plan of `ready` replicas of which it keeps fewer, and drains some."""
    pods = tuple(a_pod(f"chat-{index}") for index in range(ready))
    workload = replace(a_workload(ready), variant=pods[0].variant)
    service_plan = compute_service_plan(
        a_snapshot(a_service(spec=SPEC), pods=pods, workloads=(workload,))
    )
    [variant] = service_plan.variants
    drain = DrainPlan(replicas=replicas, draining=tuple(pod.ref for pod in pods[:draining]))
    return replace(service_plan, variants=(replace(variant, drain=drain),), drain=drain)


def limited(service_plan: ServicePlan, *, replaces_one: bool = False) -> ServicePlan:
    return within_disruptions(service_plan, replaces_one=replaces_one, excused=frozenset())


@pytest.mark.parametrize(
    ("ready", "replicas", "draining", "replaces_one", "withheld", "left"),
    [
        (4, 2, 2, False, 0, 2),
        (4, 0, 0, False, 2, 2),
        (4, 4, 4, False, 2, 4),
        (3, 1, 0, True, 0, 1),
        (3, 0, 0, True, 1, 1),
        (1, 0, 1, False, 1, 1),
        (1, 0, 1, True, 1, 1),
    ],
    ids=["spare", "all", "drained", "in-place", "more-in-place", "below", "one-is-away"],
)
def test_what_is_healthy_within_the_floor_stays(
    ready: int, replicas: int, draining: int, replaces_one: bool, withheld: int, left: int
) -> None:
    cut = limited(planned(ready, replicas, draining), replaces_one=replaces_one)
    assert cut.withheld == withheld
    assert cut.variants[0].replicas == left
    assert len(cut.drain.draining) <= max(0, ready - (2 - replaces_one))


def test_a_plan_that_takes_nothing_of_the_floor_is_the_same_object() -> None:
    service_plan = planned(3, 2, 1)
    assert limited(service_plan) is service_plan


def test_a_service_that_allows_downtime_gives_what_a_repartition_takes() -> None:
    service_plan = planned(2, 2, 2)
    displaced = frozenset(service_plan.drain.draining)
    limited_plan = within_disruptions(service_plan, replaces_one=False, excused=displaced)
    assert limited_plan is service_plan


def test_a_cut_plan_says_so() -> None:
    cut = limited(planned(2, 0))
    conditions = service_status(a_snapshot(cut.service), cut, None, None).conditions
    [condition] = [each for each in conditions if each.type == "Progressing"]
    assert condition.reason == Progressing.DISRUPTION_NOT_ALLOWED
    assert "2 replicas of 2 healthy ones were to leave and stay" in condition.message


def test_replicas_on_their_way_out_are_not_healthy() -> None:
    draining = replace(a_pod("chat-1"), draining_since=at(-5))
    terminating = replace(a_pod("chat-2"), terminating=True)
    reclaimed, starting = a_pod("chat-3"), replace(a_pod("chat-4"), ready_since=None)
    pods = [a_pod("chat-0"), draining, terminating, reclaimed, starting]
    disruptions = disruptions_of(pods, {reclaimed.ref}, 2)
    assert disruptions.healthy == {Ref("team-a", "chat-0")}
    assert (disruptions.desired_healthy, disruptions.allowed) == (1, 0)


def test_one_of_the_floor_may_be_away_only_while_no_other_is() -> None:
    pods = [a_pod("chat-0"), a_pod("chat-1")]
    disruptions = disruptions_of(pods, (), 2)
    assert disruptions.allows_replacement()
    assert not disruptions_of(pods[1:], (), 2).allows_replacement()
    assert not Disruptions(frozenset(), 1).allows_replacement()
