"""Plan -> statuses: what is said, and what keeps its time."""

from dataclasses import replace
from typing import Any

import pytest

from tessera.api.meta import Condition
from tessera.api.reasons import Accepted, PlacementReason, StatusVerdict
from tessera.api.service_status import InferenceServiceStatus, ReplacementStatus
from tessera.domain.health.stall import EngineProgress
from tessera.domain.observed.snapshot import (
    EngineReading,
    InFlight,
    Node,
    ObservedService,
    ProbeResult,
    Readings,
    Ref,
    Snapshot,
)
from tessera.domain.planning.plan import PlanMemory
from tessera.domain.status.conditions import conditions
from tessera.domain.status.pool import pool_status
from tessera.domain.status.service import StatusUrgency, service_status, status_urgency
from tests.builders import (
    NOW,
    a_node,
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_speed_reading,
    a_workload,
    at,
    plan_of,
    readings_of,
)

CHAT = Ref("team-a", "chat")
A_POD_WITHOUT_IMAGE = a_pod(
    containers_ready=False, ready_since=None, waiting_reason="ImagePullBackOff"
)


def status_of(snapshot: Snapshot, problem: str | None = None) -> InferenceServiceStatus:
    return service_status(snapshot, plan_of(snapshot).service_plans[CHAT], None, problem)


def a_running_fleet(service: ObservedService | None = None, **fields: Any) -> Snapshot:
    pods = (a_pod("chat-0"), a_pod("chat-1"))
    return a_snapshot(
        service or a_service(),
        **{"pods": pods, "workloads": (a_workload(2),), "readings": readings_of(pods), **fields},
    )


def status_and_reason(status: InferenceServiceStatus) -> dict[str, tuple[str, str]]:
    return {condition.type: (condition.status, condition.reason) for condition in status.conditions}


def test_a_settled_service_shows_where_it_runs_and_what_it_costs() -> None:
    status = status_of(a_running_fleet())
    assert status_and_reason(status) == {
        "Accepted": ("True", "Valid"),
        "Placed": ("True", "Placed"),
        "Progressing": ("True", "RolloutComplete"),
        "Ready": ("False", "ProbePending"),
        "UpdateAvailable": ("False", "UpToDate"),
        "SpeedAsPredicted": ("Unknown", "NotEnoughRequests"),
        "SLOMet": ("Unknown", "NoTraffic"),
        "LoadBalanced": ("True", "Balanced"),
    }
    assert status.variant is not None
    assert status.cost is not None
    assert (status.replicas, status.ready_replicas) == (2, 2)
    assert (status.variant.pool, status.variant.profile, status.variant.gpus) == (
        "a100",
        "1g.10gb",
        1,
    )
    assert str(status.cost.per_hour) == "0.5357"
    assert status.endpoint == "http://chat.team-a.svc:8000/v1"
    assert status.selector == "tessera.dev/service=chat"


@pytest.mark.parametrize(
    ("snapshot", "expected"),
    [
        (a_snapshot(a_service()), True),
        (a_running_fleet(pods=(), workloads=(a_workload(2),)), True),
        (a_running_fleet(pods=(a_pod("chat-0", serving=False),)), True),
        (a_running_fleet(), True),
        (a_running_fleet(probe_results={CHAT: ProbeResult(at=NOW, problem=None)}), False),
        (a_running_fleet(pods=(A_POD_WITHOUT_IMAGE,)), False),
        (a_snapshot(a_service(), nodes=()), False),
        (a_snapshot(a_service(spec=a_spec(model={"uri": "hf://acme/unknown"}))), False),
    ],
)
def test_a_status_settles_while_it_only_says_that_a_start_goes_on(
    snapshot: Snapshot, *, expected: bool
) -> None:
    urgency = status_urgency(snapshot, plan_of(snapshot).service_plans[CHAT])
    assert urgency is (StatusUrgency.SETTLING if expected else StatusUrgency.USUAL)


def test_a_service_that_is_ready_no_more_says_so_at_once() -> None:
    answered = {CHAT: ProbeResult(at=NOW, problem=None)}
    ready = replace(a_service(), status=status_of(a_running_fleet(probe_results=answered)))
    snapshot = a_running_fleet(ready, pods=(a_pod(containers_ready=False, ready_since=None),))
    service_plan = plan_of(snapshot).service_plans[CHAT]
    assert status_urgency(snapshot, service_plan) is StatusUrgency.AT_ONCE
    stays = a_running_fleet(ready, probe_results=answered)
    usual = status_urgency(stays, plan_of(stays).service_plans[CHAT])
    assert usual is StatusUrgency.USUAL


def test_replicas_on_slices_of_a_previous_variant_cost_what_these_cost() -> None:
    former, chosen = {"nvidia.com/mig-7g.80gb": 1}, {"nvidia.com/mig-1g.10gb": 1}
    pods = (
        a_pod("chat-0", variant="a100-7g-80gb", node="gpu-1", devices=former),
        a_pod("chat-1", node="gpu-1", devices=chosen),
    )
    status = status_of(a_running_fleet(pods=pods))
    assert status.cost is not None
    assert str(status.cost.per_hour) == "2.2679"  # 2.00 + 0.2679


def test_the_price_of_tokens_is_that_of_a_replica_at_its_expected_load() -> None:
    status = status_of(a_running_fleet())
    assert status.cost is not None
    assert status.variant is not None
    hourly, speed = 2 * (1 / 7 + 1 / 8) / 2, status.variant.tokens_per_second
    per_million = float(status.cost.per_million_tokens or 0)
    assert per_million == pytest.approx(hourly / speed / 3600 * 1e6, rel=2e-3)
    assert f"{speed} output tokens" in status.cost.assumed_load


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    def written(
        reason: PlacementReason, generation: int, seconds: float, *before: Condition
    ) -> tuple[Condition, ...]:
        status = InferenceServiceStatus(conditions=before)
        service = a_service(generation=generation, status=status)
        return conditions({"Placed": StatusVerdict(reason, "a")}, service, at(seconds))

    first = written(PlacementReason.NO_POOL, 1, 0)
    same = written(PlacementReason.TOO_LARGE, 2, 60, *first)
    other = written(PlacementReason.PLACED, 2, 90, *same)
    assert [each[0].last_transition_time for each in (first, same, other)] == [
        at(0),
        at(0),
        at(90),
    ]
    assert [each[0].observed_generation for each in (first, same, other)] == [1, 2, 2]


def test_an_unchanged_fleet_has_an_unchanged_status() -> None:
    first = status_of(a_running_fleet())
    again = status_of(a_running_fleet(a_service(status=first), at=at(30)))
    assert again == first


def test_readings_alone_do_not_rewrite_the_status() -> None:
    first = status_of(a_running_fleet())
    pods = (a_pod("chat-0"), a_pod("chat-1"))
    later = a_running_fleet(
        a_service(status=first), at=at(5), readings=readings_of(pods, activity=0.31)
    )
    assert status_of(later) == first


def test_what_the_api_server_refused_is_reported() -> None:
    status = status_of(a_running_fleet(), "apply services team-a/chat: exists already")
    assert status_and_reason(status)["Progressing"] == ("False", "ApplyFailed")


def test_a_stalled_engine_is_reported_until_its_replacement_takes_requests() -> None:
    stuck, other = a_pod("chat-0"), a_pod("chat-1")
    progress = {stuck.ref: EngineProgress(steps=9.0, since=at(-200), busy_since=at(-190))}
    frozen = a_running_fleet(
        in_flight={stuck.ref: InFlight(at(-5), 3)},
        readings=Readings(at=NOW, engines={stuck.ref: EngineReading(steps=9.0, scraped_at=at(-1))}),
    )
    service_plan = plan_of(frozen, memory=PlanMemory(engine_progress=progress)).service_plans[CHAT]
    first = service_status(frozen, service_plan, None, None)
    assert status_and_reason(first)["Progressing"] == ("False", "EngineStalled")
    assert first.replacement is not None
    assert (first.replacement.pod, first.replacement.uid) == ("chat-0", "uid-chat-0")

    going = a_pod("chat-0", terminating=True)
    new = a_pod("chat-2", ready_since=None, containers_ready=False)
    during = status_of(a_running_fleet(a_service(status=first), pods=(going, other, new)))
    assert (during.conditions, during.replacement) == (first.conditions, first.replacement)
    assert during.ready_replicas == 1

    after = a_running_fleet(a_service(status=during), pods=(other, a_pod("chat-2")))
    assert status_and_reason(status_of(after))["Progressing"] == ("True", "RolloutComplete")
    assert status_of(after).replacement == first.replacement


def test_replicas_that_start_later_have_nothing_to_do_with_an_engine_replaced_before() -> None:
    record = ReplacementStatus(at=at(-60), pod="chat-9", uid="uid-chat-9", message="stood still")
    service = a_service(status=InferenceServiceStatus(replacement=record))
    new = a_pod("chat-2", ready_since=None, containers_ready=False)
    status = status_of(a_running_fleet(service, pods=(a_pod("chat-0"), new)))
    assert status_and_reason(status)["Progressing"] == ("True", "Starting")


@pytest.mark.parametrize(
    "nodes", [(), (replace(a_node(slices={"1g.10gb": 7}), kubelet_ready=False),)]
)
def test_a_pod_that_cannot_end_on_a_dead_node_is_no_replica_any_more(
    nodes: tuple[Node, ...],
) -> None:
    stuck = a_pod("chat-9", terminating=True, node="a100-0")
    alive = a_node(slices={"1g.10gb": 2}, name="a100-1")
    pods = (stuck, a_pod("chat-0", node="a100-1"), a_pod("chat-1", node="a100-1"))
    status = status_of(a_running_fleet(pods=pods, nodes=(*nodes, alive)))
    assert status_and_reason(status)["Progressing"] == ("True", "RolloutComplete")
    assert (status.replicas, status.ready_replicas) == (2, 2)


def test_the_predicted_throughput_is_that_of_the_replicas_of_now() -> None:
    pods = (a_pod("chat-0"), a_pod("chat-1"))
    speeds = {CHAT: (a_speed_reading(itl_seconds=0.02),)}
    measured = replace(readings_of(pods), speeds=speeds, speeds_at=NOW)
    first = status_of(a_running_fleet(readings=measured))
    assert first.speed is not None
    fewer = a_running_fleet(a_service(status=first), pods=pods[:1], workloads=(a_workload(1),))
    later = status_of(fewer).speed
    assert later is not None
    rate, before = later.tokens_per_second, first.speed.tokens_per_second
    assert float(rate.predicted) == pytest.approx(float(before.predicted) / 2, abs=1)
    assert (rate.measured, later.at) == (before.measured, first.speed.at)


def test_scaling_is_written_only_with_a_decision() -> None:
    first = status_of(a_running_fleet())
    assert first.scaling is not None
    assert (first.scaling.desired_replicas, first.scaling.reason) == (2, "EstimatedArrivals")
    assert [change.replicas for change in first.scaling.recent_changes] == [2]
    assert first.scaling.observed_at == NOW
    pods = (a_pod("chat-0"), a_pod("chat-1"))
    busier = a_running_fleet(
        a_service(status=first),
        at=at(5),
        readings=readings_of(pods, at=at(5), waiting=1, running=9),
    )
    assert status_of(busier).scaling == first.scaling
    fewer = a_service(spec=a_spec(replicas=1), status=first)
    changed = status_of(a_running_fleet(fewer, at=at(5))).scaling
    assert changed is not None
    assert changed.observed_at == at(5)


def test_a_refused_service_keeps_the_status_of_its_hardware() -> None:
    first = status_of(a_running_fleet())
    refused = a_service(status=first, spec=None, problem="spec.model: Field required")
    status = status_of(a_running_fleet(refused))
    assert status_and_reason(status)["Accepted"] == ("False", Accepted.INVALID_SPEC)
    assert (status.variant, status.cost) == (first.variant, first.cost)


def test_a_pool_shows_what_it_offers_and_its_price() -> None:
    (view,) = plan_of(a_snapshot()).pools
    status = pool_status(view, None, NOW)
    assert (status.product, status.nodes, status.allocatable) == (
        "NVIDIA-A100-SXM4-80GB",
        1,
        "7x 1g.10gb",
    )
    assert (str(status.per_gpu_hour), status.currency) == ("2.00", "USD")
