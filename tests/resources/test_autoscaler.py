"""A HorizontalPodAutoscaler is written for services of mode HPA alone, where a value lets it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.domain.config import Config
from tessera.domain.planning.service_plan import ServicePlan
from tessera.ports import ClusterObject
from tessera.reconcile.store import Store
from tessera.reconcile.writing.service_work import obsolete_objects
from tessera.resources.api_resources import AUTOSCALING, HORIZONTAL_POD_AUTOSCALERS, KINDS
from tessera.resources.children import service_inputs, service_manifests
from tessera.resources.manifest import ObjectKey
from tests.builders import DEFAULT_CONFIG, NOW, a_service, a_snapshot, a_spec, plan_of

CHAT = Ref("team-a", "chat")
ENABLED = Config(autoscalers=True)


def planned(
    mode: str = "HPA", config: Config = ENABLED, at: datetime = NOW, **scaling: Any
) -> ServicePlan:
    spec = a_spec(replicas=2, scaling={"mode": mode, **scaling})
    return plan_of(a_snapshot(a_service(spec=spec), at=at), config).service_plans[CHAT]


def autoscalers(service_plan: ServicePlan) -> Sequence[dict[str, Any]]:
    return [
        dict(manifest.body)
        for manifest in service_manifests(service_plan)
        if manifest.kind is HORIZONTAL_POD_AUTOSCALERS
    ]


def test_the_autoscaler_follows_the_recommendation_within_the_bounds() -> None:
    (autoscaler,) = autoscalers(planned(minReplicas=2, maxReplicas=6))
    assert autoscaler["apiVersion"] == "autoscaling/v2"
    assert autoscaler["metadata"]["name"] == "chat"
    assert autoscaler["metadata"]["ownerReferences"][0]["kind"] == "InferenceService"
    assert autoscaler["spec"] == {
        "scaleTargetRef": {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "InferenceService",
            "name": "chat",
        },
        "minReplicas": 2,
        "maxReplicas": 6,
        "metrics": [
            {
                "type": "External",
                "external": {
                    "metric": {
                        "name": "tessera_service_recommended_replicas",
                        "selector": {"matchLabels": {"service": "chat"}},
                    },
                    "target": {"type": "AverageValue", "averageValue": "1"},
                },
            }
        ],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
    }


def test_the_autoscaler_gets_the_bounds_of_the_schedule_that_applies() -> None:
    schedules = [{"cron": "0 8 * * *", "minReplicas": 4}, {"cron": "0 20 * * *"}]
    day, night = (planned(schedules=schedules, at=NOW.replace(hour=hour)) for hour in (8, 20))
    assert [plan["spec"]["minReplicas"] for plan in (*autoscalers(day), *autoscalers(night))] == [
        4,
        2,
    ]
    assert service_inputs(day) != service_inputs(night)


@pytest.mark.parametrize("mode", ["Native", "External"])
def test_no_other_mode_has_an_autoscaler(mode: str) -> None:
    assert autoscalers(planned(mode)) == []


def test_without_the_value_the_condition_says_how_to_get_one() -> None:
    service_plan = planned(config=DEFAULT_CONFIG)
    assert autoscalers(service_plan) == []
    assert service_plan.accepted.reason == "HPADisabled"
    assert service_plan.accepted.reason.is_true
    assert "hpa.enabled is false" in service_plan.accepted.message
    assert service_plan.scale.reason == "ScaledExternally"


def test_an_autoscaler_of_a_former_mode_is_deleted() -> None:
    key = ObjectKey("horizontalpodautoscalers", "team-a", "chat")
    existing = (ClusterObject(key=key, version=1, service=CHAT),)
    for mode, obsolete in (("HPA", []), ("External", [(HORIZONTAL_POD_AUTOSCALERS, key)])):
        service_plan = planned(mode)
        manifests = service_manifests(service_plan)
        assert obsolete_objects(service_plan, manifests, existing) == obsolete


def test_autoscalers_are_listed_only_with_the_value() -> None:
    assert not set(AUTOSCALING) & set(KINDS)
    assert Store(KINDS).children_by_service() == {}
    assert Store((*KINDS, *AUTOSCALING)).children_by_service() == {}
