"""A service follows the bounds of its schedules within a cycle of their times."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.explain.explain import explain
from tessera.domain.incremental import Incremental
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.planning.plan import Plan, PlanMemory
from tessera.domain.service.proposal import guaranteed_replicas, min_replicas_of
from tessera.domain.status.service import service_status
from tests.builders import (
    NOW,
    a_node,
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    plan_of,
    readings_of,
)

CHAT = Ref("team-a", "chat")
# 08:00 and 20:00 of the day.
DAY = NOW.replace(hour=8, minute=0, second=0, microsecond=0)
NIGHT = DAY + timedelta(hours=12)
SCALING: dict[str, Any] = {
    "minReplicas": 1,
    "maxReplicas": 2,
    "schedules": [
        {"cron": "0 8 * * *", "minReplicas": 4, "maxReplicas": 6},
        {"cron": "0 20 * * *"},
    ],
}
PODS = tuple(a_pod(f"chat-{index}") for index in range(4))


def a_fleet(
    at: datetime,
    pods: int = 2,
    status: InferenceServiceStatus | None = None,
    replicas: int | None = None,
    **scaling: Any,
) -> Snapshot:
    spec = a_spec(replicas=replicas, scaling={**SCALING, **scaling})
    return a_snapshot(
        a_service(spec=spec, status=status or InferenceServiceStatus()),
        at=at,
        nodes=(a_node(slices={"1g.10gb": 7}),),
        pods=PODS[:pods],
        workloads=(a_workload(pods),),
        readings=readings_of(PODS[:pods], at=at, running=1.0),
    )


class Cycles:
    """The cycles of an operator, which plans a service again only when it may change."""

    def __init__(self) -> None:
        self._incremental = Incremental()
        self._memory = PlanMemory()

    def run(self, fleet: Snapshot) -> Plan:
        plan = plan_of(fleet, memory=self._memory, incremental=self._incremental)
        self._memory = replace(self._memory, scaling_history=plan.scaling_history)
        return plan


def scale_of(plan: Plan) -> tuple[int, str]:
    scale = plan.service_plans[CHAT].scale
    return scale.replicas, scale.reason


@pytest.mark.parametrize("policy", ["QueueAndActivity", "Capacity"])
def test_a_steady_service_crosses_into_its_bounds_in_the_next_cycle(policy: str) -> None:
    cycles = Cycles()
    quiet = a_fleet(DAY - timedelta(minutes=9), policy=policy)
    for seconds in range(0, 539, 5):
        at = quiet.at + timedelta(seconds=seconds)
        # The same readings, so that nothing but the time asks for a decision.
        cycles.run(replace(quiet, at=at, readings=replace(quiet.readings, at=at)))  # type: ignore[type-var]
    plan = cycles.run(replace(quiet, at=DAY, readings=replace(quiet.readings, at=DAY)))  # type: ignore[type-var]
    assert scale_of(plan) == (4, "BoundsChanged")
    assert plan.service_plans[CHAT].scale.message == (
        "spec.scaling.schedules[0] (0 8 * * * UTC): minReplicas is 4"
    )


def test_a_fixed_number_learns_its_next_bounds_without_another_event() -> None:
    cycles = Cycles()
    fixed = a_fleet(DAY - timedelta(minutes=1), replicas=3)
    for seconds in (0, 5, 10):
        cycles.run(replace(fixed, at=fixed.at + timedelta(seconds=seconds)))
    plan = cycles.run(replace(fixed, at=DAY))
    assert scale_of(plan) == (3, "SetByUser")
    schedule = plan.service_plans[CHAT].schedule
    assert schedule is not None
    assert (schedule.status.current.min_replicas, schedule.status.next_at) == (4, NIGHT)


def test_replicas_above_the_next_maximum_leave() -> None:
    cycles = Cycles()
    cycles.run(a_fleet(NIGHT - timedelta(seconds=5), pods=4))
    plan = cycles.run(a_fleet(NIGHT, pods=4))
    assert scale_of(plan) == (2, "BoundsChanged")
    message = plan.service_plans[CHAT].scale.message
    assert message == "spec.scaling.schedules[1] (0 20 * * * UTC): maxReplicas is 2"


def test_the_bounds_that_apply_are_guaranteed_and_keep_their_slices() -> None:
    for at, least in ((DAY, 4), (NIGHT, 1)):
        spec = plan_of(a_fleet(at)).service_plans[CHAT].service.spec
        assert spec is not None
        assert (min_replicas_of(spec), guaranteed_replicas(spec)) == (least, least)


def test_a_service_sleeps_only_while_a_schedule_lets_it() -> None:
    scaling: dict[str, Any] = {
        "minReplicas": 1,
        "idle": {"after": "5m"},
        "schedules": [{"cron": "0 8 * * *"}, {"cron": "0 20 * * *", "minReplicas": 0}],
    }
    cycles = Cycles()
    scales = []
    for minutes in range(-10, 11):
        fleet = a_fleet(NIGHT + timedelta(minutes=minutes), pods=1, **scaling)
        idle = readings_of(PODS[:1], at=fleet.at, finished={CHAT: 0.0})
        scales.append(scale_of(cycles.run(replace(fleet, readings=idle))))
    assert {replicas for replicas, _ in scales[:15]} == {1}
    assert scales[-1] == (0, "ScaledToZero")
    morning = a_fleet(DAY + timedelta(days=1), pods=0, **scaling)
    assert scale_of(cycles.run(morning)) == (1, "BoundsChanged")


def test_the_status_has_the_bounds_and_changes_only_at_their_times() -> None:
    fleet = a_fleet(DAY, pods=4)
    cycles = Cycles()
    status = service_status(fleet, cycles.run(fleet).service_plans[CHAT], None, None)
    assert status.scaling is not None
    assert status.scaling.schedule is not None
    assert status.scaling.schedule.model_dump(by_alias=True, mode="json") == {
        "current": {
            "schedule": "spec.scaling.schedules[0] (0 8 * * * UTC)",
            "minReplicas": 4,
            "maxReplicas": 6,
        },
        "next": {
            "schedule": "spec.scaling.schedules[1] (0 20 * * * UTC)",
            "minReplicas": 1,
            "maxReplicas": 2,
        },
        "nextAt": f"{NIGHT:%Y-%m-%dT%H:%M:%SZ}",
    }
    later = a_fleet(DAY + timedelta(hours=6), pods=4, status=status)
    assert later_status(later).scaling == status.scaling
    at_night = later_status(a_fleet(NIGHT, pods=4, status=status)).scaling
    assert at_night is not None
    assert at_night.schedule is not None
    assert at_night.schedule.current.max_replicas == 2


def later_status(fleet: Snapshot) -> InferenceServiceStatus:
    return service_status(fleet, plan_of(fleet).service_plans[CHAT], None, None)


def test_a_service_that_sleeps_by_schedule_says_how_it_starts() -> None:
    scaling: dict[str, Any] = {"minReplicas": 0, "idle": {"after": "5m"}}
    fleet = a_fleet(NIGHT, pods=0, **scaling)
    fleet = replace(fleet, demand={CHAT: GatewayDemand()})
    status = later_status(fleet)
    ready = next(condition for condition in status.conditions if condition.type == "Ready")
    assert "kubectl -n team-a scale tsvc/chat --replicas=1" in ready.message


def test_explain_shows_the_schedule_and_its_next_bounds() -> None:
    fleet = a_fleet(DAY, pods=4)
    (scaling,) = (each for each in explain(fleet, plan_of(fleet), CHAT) if each.topic == "scaling")
    numbers = dict(scaling.numbers)
    assert numbers["bounds"] == "4 to 6"
    assert numbers["schedule"] == "spec.scaling.schedules[0] (0 8 * * * UTC)"
    assert numbers["next bounds"] == (
        f"1 to 2 from {NIGHT:%Y-%m-%d} 20:00 UTC, by spec.scaling.schedules[1] (0 20 * * * UTC)"
    )
    assert any(
        line.startswith("spec.scaling.schedules[0] (0 8 * * * UTC): minReplicas below 4")
        for line in scaling.would_change
    )
