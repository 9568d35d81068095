"""In mode External another autoscaler decides within the bounds, and two of them are named."""

from dataclasses import replace
from typing import Any

import pytest

from tessera.adapters.object_parsing import parse_service
from tessera.api.inference_service import InferenceServiceStatus
from tessera.api.ref import Ref
from tessera.cli.snapshot.trim import trim_object
from tessera.domain.explain.explain import explain
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.plan import Plan, PlanMemory
from tessera.domain.scaling.autoscale import ScaleDecision
from tessera.domain.service.proposal import guaranteed_replicas, min_replicas_of
from tessera.domain.status.service import service_status
from tessera.resources.api_resources import INFERENCE_SERVICES
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
HPA = "kube-controller-manager"
PODS = tuple(a_pod(f"chat-{index}") for index in range(3))


def a_fleet(
    replicas: int | None,
    seconds: float = 0.0,
    *,
    waiting: float = 0.0,
    pods: int = 3,
    writer: str | None = HPA,
    status: InferenceServiceStatus | None = None,
    **scaling: Any,
) -> Snapshot:
    bounds = {"mode": "External", "minReplicas": 2, "maxReplicas": 6, **scaling}
    return a_snapshot(
        a_service(
            spec=a_spec(replicas=replicas, scaling=bounds),
            replicas_writer=writer,
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
        (4, 4, f"spec.replicas is 4, written by {HPA}"),
        (9, 6, f"spec.replicas is 9, written by {HPA}; spec.scaling.maxReplicas is 6"),
        (0, 2, f"spec.replicas is 0, written by {HPA}; spec.scaling.minReplicas is 2"),
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
    scale = scale_of(plan_of(a_fleet(None, writer=None)))
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
    fleet = a_fleet(3, waiting=40.0, scaleUp={"stabilizationWindow": "0s"})
    (scaling,) = (each for each in explain(fleet, plan_of(fleet), CHAT) if each.topic == "scaling")
    assert dict(scaling.numbers)["recommended"].startswith("5 (QueueAboveTarget: 120 waiting")
    assert scaling.would_change == (
        "another spec.replicas, by the autoscaler or the person that scales it, or "
        "spec.scaling.mode Native",
    )


@pytest.mark.parametrize("writer", [HPA, "keda", "keda-operator"])
def test_a_second_autoscaler_is_named_with_a_way_out(writer: str) -> None:
    scale = scale_of(plan_of(a_fleet(5, writer=writer, mode="Native")))
    assert (scale.replicas, scale.reason) == (5, "SetByAutoscaler")
    assert f"spec.replicas is 5, written by {writer}, so 2 autoscalers" in scale.message
    assert "spec.scaling.mode to External" in scale.message


def test_a_person_is_no_second_autoscaler() -> None:
    assert scale_of(plan_of(a_fleet(5, writer="kubectl", mode="Native"))).reason == "SetByUser"


def test_the_status_names_each_new_number() -> None:
    first = a_fleet(9)
    status = service_status(first, plan_of(first).service_plans[CHAT], None, None)
    second = a_fleet(10, status=status)
    scaling = service_status(second, plan_of(second).service_plans[CHAT], None, None).scaling
    assert scaling is not None
    assert scaling.message.startswith("spec.replicas is 10")


FIELDS: dict[str, Any] = {"f:spec": {"f:replicas": {}}}


@pytest.mark.parametrize(
    ("entries", "writer"),
    [
        ([], None),
        ([{"manager": "kubectl", "fieldsV1": {"f:spec": {"f:model": {}}}}], None),
        ([{"manager": "a", "fieldsV1": None}, {"manager": "kubectl"}], None),
        (
            [
                {"manager": HPA, "time": "2026-11-20T12:00:01Z", "fieldsV1": FIELDS},
                {"manager": "kubectl", "time": "2026-11-20T12:00:00Z", "fieldsV1": FIELDS},
            ],
            HPA,
        ),
    ],
)
def test_the_last_writer_of_the_number_is_read_and_kept_in_snapshots(
    entries: list[dict[str, Any]], writer: str | None
) -> None:
    body = {
        "metadata": {"name": "chat", "namespace": "team-a", "uid": "1", "managedFields": entries},
        "spec": {"model": {"uri": "hf://a/b"}, "replicas": 2},
    }
    assert parse_service(body).replicas_writer == writer
    assert parse_service(trim_object(INFERENCE_SERVICES, body)).replicas_writer == writer
