"""A pause keeps the number of replicas, and after it the windows start again."""

from dataclasses import replace
from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.domain.explain.explain import explain
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.planning.plan import Plan, PlanMemory
from tests.builders import (
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    plan_of,
    readings_of,
)

CHAT = Ref("team-a", "chat")
PAUSE: dict[str, Any] = {"paused": {"by": "anna: incident 12"}}
PODS = tuple(a_pod(f"chat-{index}") for index in range(3))


def a_fleet(waiting: float, seconds: float, **scaling: Any) -> Snapshot:
    return a_snapshot(
        a_service(spec=a_spec(scaling={"minReplicas": 1, **scaling})),
        at=at(seconds),
        pods=PODS,
        workloads=(a_workload(3),),
        readings=readings_of(PODS, at=at(seconds), waiting=waiting),
    )


def play(
    waiting: float, seconds: range, memory: PlanMemory | None = None, **scaling: Any
) -> list[Plan]:
    plans = []
    memory = memory or PlanMemory()
    for second in seconds:
        plans.append(plan_of(a_fleet(waiting, second, **scaling), memory=memory))
        memory = replace(memory, scaling_history=plans[-1].scaling_history)
    return plans


def replicas_of(plans: list[Plan]) -> list[int]:
    return [plan.service_plans[CHAT].scale.replicas for plan in plans]


@pytest.mark.parametrize("policy", ["QueueAndActivity", "Capacity"])
@pytest.mark.parametrize("waiting", [0.0, 1000.0])
def test_no_load_changes_the_number_during_a_pause(policy: str, waiting: float) -> None:
    seconds = range(0, 900, 30)
    assert set(replicas_of(play(waiting, seconds, policy=policy))) != {3}
    plans = play(waiting, seconds, policy=policy, **PAUSE)
    assert set(replicas_of(plans)) == {3}
    scale = plans[-1].service_plans[CHAT].scale
    assert (scale.reason, scale.message) == ("Paused", "spec.scaling.paused: anna: incident 12")


def test_nothing_is_removed_at_once_after_a_pause() -> None:
    paused = play(0.0, range(0, 900, 30), **PAUSE)
    memory = PlanMemory(scaling_history=paused[-1].scaling_history)
    after = replicas_of(play(0.0, range(900, 1500, 30), memory))
    assert after[:10] == [3] * 10
    assert after[-1] == 1


def test_a_pause_keeps_a_number_beyond_the_bounds() -> None:
    assert replicas_of(play(0.0, range(0, 60, 30), maxReplicas=2, **PAUSE)) == [3, 3]


def test_explain_says_what_ends_the_pause() -> None:
    fleet = a_fleet(0.0, 0, **PAUSE)
    scaling = [each for each in explain(fleet, plan_of(fleet), CHAT) if each.topic == "scaling"]
    (way_out,) = scaling[0].would_change
    assert way_out.startswith("This ends when the field that pauses it is removed")
