"""In mode External another autoscaler decides within the bounds."""

from dataclasses import replace
from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.explain.explain import explain
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.planning.plan import Plan, PlanMemory
from tessera.domain.scaling.state import ScaleDecision
from tessera.domain.service.proposal import guaranteed_replicas, min_replicas_of
from tessera.domain.status.service import service_status
from tests.builders import (
    a_node,
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
PODS = tuple(a_pod(f"chat-{index}") for index in range(3))


def a_fleet(
    replicas: int | None,
    seconds: float = 0.0,
    *,
    waiting: float = 0.0,
    pods: int = 3,
    status: InferenceServiceStatus | None = None,
    **scaling: Any,
) -> Snapshot:
    bounds = {"mode": "External", "minReplicas": 2, "maxReplicas": 6, **scaling}
    return a_snapshot(
        a_service(
            spec=a_spec(replicas=replicas, scaling=bounds),
            status=status or InferenceServiceStatus(),
        ),
        at=at(seconds),
        nodes=(a_node(slices={"1g.10gb": 7}),),
        pods=PODS[:pods],
        workloads=(a_workload(pods),),
        readings=readings_of(PODS[:pods], at=at(seconds), waiting=waiting),
    )


def scale_of(plan: Plan) -> ScaleDecision:
    return plan.service_plans[CHAT].scale


@pytest.mark.parametrize(
    ("requested", "replicas", "message"),
    [
        (4, 4, "spec.replicas is 4"),
        (9, 6, "spec.replicas is 9; spec.scaling.maxReplicas is 6"),
        (0, 2, "spec.replicas is 0; spec.scaling.minReplicas is 2"),
    ],
)
def test_the_number_of_another_autoscaler_holds_within_the_bounds(
    requested: int, replicas: int, message: str
) -> None:
    scale = scale_of(plan_of(a_fleet(requested)))
    assert (scale.replicas, scale.reason, scale.message) == (replicas, "ScaledExternally", message)


def test_another_autoscaler_may_remove_all_replicas_where_the_minimum_is_0() -> None:
    idle: dict[str, Any] = {"minReplicas": 0, "idle": {"after": "10m"}}
    assert scale_of(plan_of(a_fleet(0, pods=0, **idle))).replicas == 0
    assert scale_of(plan_of(a_fleet(1, pods=0, **idle))).replicas == 1


def test_without_a_number_the_replicas_stay_and_the_message_says_how_to_begin() -> None:
    scale = scale_of(plan_of(a_fleet(None)))
    assert (scale.replicas, scale.reason) == (3, "ScaledExternally")
    assert "kubectl -n team-a scale tsvc/chat --replicas=3" in scale.message


@pytest.mark.parametrize("policy", ["QueueAndActivity", "Capacity"])
def test_the_policy_recommends_from_the_number_in_effect(policy: str) -> None:
    memory, recommended = PlanMemory(), []
    for second in range(0, 900, 30):
        fleet = a_fleet(4, second, waiting=400.0 if second < 300 else 0.0, policy=policy)
        plan = plan_of(fleet, memory=memory)
        memory = replace(memory, scaling_history=plan.scaling_history)
        scale = scale_of(plan)
        assert scale.replicas == 4
        assert scale.recommended is not None
        recommended.append(scale.recommended.replicas)
    assert max(recommended) == 6
    assert recommended[-1] < 4
    assert len(plan.scaling_history[CHAT].decisions) == 1


def test_the_bounds_are_guaranteed_whatever_number_is_written() -> None:
    spec = a_spec(replicas=1, scaling={"mode": "External", "minReplicas": 2})
    assert (guaranteed_replicas(spec), min_replicas_of(spec)) == (2, 2)


def test_explain_shows_what_the_policy_recommends() -> None:
    fleet = a_fleet(
        3, waiting=40.0, policy="QueueAndActivity", scaleUp={"stabilizationWindow": "0s"}
    )
    (scaling,) = (each for each in explain(fleet, plan_of(fleet), CHAT) if each.topic == "scaling")
    assert dict(scaling.numbers)["recommended"].startswith("5 (QueueAboveTarget: 120 waiting")
    assert scaling.would_change == (
        "another spec.replicas, by whoever scales it, or spec.scaling.mode Native",
    )


def test_the_status_names_each_new_number() -> None:
    first = a_fleet(9)
    status = service_status(first, plan_of(first).service_plans[CHAT], None, None)
    second = a_fleet(10, status=status)
    scaling = service_status(second, plan_of(second).service_plans[CHAT], None, None).scaling
    assert scaling is not None
    assert scaling.message.startswith("spec.replicas is 10")
