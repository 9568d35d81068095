"""Services that have no replica while nobody uses them, minutes in microseconds."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from tessera.api.inference_service import Scaling as ScalingSpec
from tessera.api.reasons import ScalingReason
from tessera.domain.explain.explain import explain
from tessera.domain.health.readiness import must_probe
from tessera.domain.observed.demand import (
    MAX_REPORT_AGE,
    ArrivedTokens,
    GatewayDemand,
    GatewayReport,
    fleet_demand,
)
from tessera.domain.observed.snapshot import ProbeResult, Ref, Snapshot
from tessera.domain.planning.plan import PlanMemory
from tessera.domain.scaling.policies.queue_and_activity import decide
from tessera.domain.scaling.state import (
    ScaleDecision,
    ScalingHistory,
    ServiceLoad,
    TimestampedReplicas,
)
from tessera.domain.scaling.target import ScaleTarget
from tessera.domain.service.proposal import guaranteed_replicas, min_replicas_of
from tessera.domain.status.service import service_status
from tests.builders import (
    NOW,
    a_budget,
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    plan_of,
    readings_of,
)
from tests.layout_builders import (
    a_fleet,
    a_mig_gpu,
    a_mig_node,
    a_mig_service,
    adopt_plan,
    layout_problem_of,
    with_status,
)

CHAT = Ref("team-a", "chat")
SLEEPER = {"minReplicas": 0, "maxReplicas": 6, "idle": {"after": "10m"}}
ASLEEP = ScalingHistory(decisions=(TimestampedReplicas(at(-1000), 0),))
POLICY = ScaleTarget(spec=ScalingSpec.model_validate(SLEEPER), queue_target=4, max_num_seqs=30)


def load(seconds: float, **fields: Any) -> ServiceLoad:
    """One ready replica without requests, by default."""
    return ServiceLoad(
        **{
            **{"at": at(seconds), "replicas": 1, "ready": 1, "serving": 1},
            **{"waiting": 0.0, "running": 0.0, "activity": 0.0, "finished": 0.0},
            **fields,
        }
    )


def play(*loads: ServiceLoad, history: ScalingHistory | None = None) -> Iterator[ScaleDecision]:
    history = history or ScalingHistory()
    for service_load in loads:
        decision = decide(POLICY, service_load, history)
        history = decision.history
        yield decision


def asleep_at(*loads: ServiceLoad) -> float | None:
    """The second of the first decision for no replica."""
    decisions = zip(loads, play(*loads), strict=True)
    zero = (each.at for each, decision in decisions if decision.replicas == 0)
    first = next(zero, None)
    return None if first is None else (first - NOW).total_seconds()


def quiet(start: int, end: int, **fields: Any) -> list[ServiceLoad]:
    return [load(second, **fields) for second in range(start, end, 5)]


def test_a_service_sleeps_once_no_request_came_for_the_whole_time() -> None:
    assert asleep_at(*quiet(0, 700)) == 600
    *_, last = play(*quiet(0, 605))
    assert (last.reason, last.message) == (
        ScalingReason.SCALED_TO_ZERO,
        "no request for 10m (spec.scaling.idle.after)",
    )
    assert last.history.decisions[-1].replicas == 0


@pytest.mark.parametrize(
    "request_at_300",
    [
        {"running": 1.0},
        {"waiting": 1.0},
        {"finished": 1.02},  # shorter than the time between two readings
        {"gateway_requests": 1},
        {"finished": None},  # not known is not idle
    ],
)
def test_any_request_starts_the_time_again(request_at_300: dict[str, Any]) -> None:
    loads = [*quiet(0, 300), load(300, **request_at_300), *quiet(305, 2000)]
    assert asleep_at(*loads) in (900, 905)


def test_requests_that_leave_the_five_minutes_of_the_count_are_no_new_ones() -> None:
    counts = [load(second, finished=max(0.0, 3.1 - second / 100)) for second in range(0, 700, 5)]
    assert asleep_at(*counts) == 600


def test_missing_readings_put_no_service_to_sleep_and_a_long_gap_starts_again() -> None:
    unknown = {"waiting": None, "running": None, "finished": None}
    short = [*quiet(0, 500), *quiet(500, 640, **unknown), *quiet(640, 1400)]
    assert asleep_at(*short) == 640
    long = [*quiet(0, 100), *quiet(100, 2000, **unknown), *quiet(2000, 3000)]
    assert asleep_at(*long) == 2600


def test_a_service_whose_replica_never_starts_sleeps_by_what_gateways_say() -> None:
    waking = {"ready": 0, "serving": 0, "waiting": None, "running": None, "finished": None}
    assert asleep_at(*quiet(0, 2000, **waking)) is None
    assert asleep_at(*quiet(0, 2000, **waking, queued=0)) == 600
    assert asleep_at(*quiet(0, 2000, **waking, queued=3)) is None


def test_requests_at_the_gateway_wake_a_service_at_once() -> None:
    nothing = {"replicas": 0, "ready": 0, "serving": 0, "waiting": None, "running": None}
    (woken,) = play(load(0, **nothing, queued=1), history=ASLEEP)
    assert (woken.replicas, woken.reason) == (1, ScalingReason.SCALED_FROM_ZERO)
    assert woken.message == "1 request waiting at the gateway, 0 replicas"
    (crowded,) = play(load(0, **nothing, queued=400), history=ASLEEP)
    assert crowded.replicas == 2  # spec.scaling.scaleUp.pods
    for queued in (None, 0):
        (stays,) = play(load(0, **nothing, queued=queued), history=ASLEEP)
        assert (stays.replicas, stays.reason) == (0, ScalingReason.SCALED_TO_ZERO)
        assert stays.history.decisions == ASLEEP.decisions


def test_a_service_in_use_has_at_least_one_replica_and_needs_the_usual_windows() -> None:
    busy = [load(second, ready=2, serving=2, running=1.0) for second in range(0, 700, 5)]
    two = ScalingHistory(decisions=(TimestampedReplicas(at(-1000), 2),))
    counts = [decision.replicas for decision in play(*busy, history=two)]
    assert (counts[59], counts[60], counts[-1]) == (2, 1, 1)


@pytest.mark.parametrize(
    ("after", "valid"), [("29s", False), ("30s", True), ("24h", True), ("24h1s", False)]
)
def test_the_time_without_requests_has_bounds(after: str, valid: bool) -> None:
    if valid:
        assert ScalingSpec.model_validate({**SLEEPER, "idle": {"after": after}}).may_sleep
        return
    with pytest.raises(ValidationError, match=r"at (least|most)"):
        ScalingSpec.model_validate({**SLEEPER, "idle": {"after": after}})


def test_with_another_minimum_the_time_has_no_effect() -> None:
    assert not ScalingSpec.model_validate({**SLEEPER, "minReplicas": 1}).may_sleep


def sleeper(**fields: Any) -> Snapshot:
    service = a_service(spec=a_spec(scaling=SLEEPER))
    return a_snapshot(service, **{"workloads": (a_workload(0),), "demand": {}, **fields})


def test_a_new_service_starts_one_replica() -> None:
    service_plan = plan_of(sleeper(workloads=())).service_plans[CHAT]
    assert service_plan.scale.replicas == 1


def test_a_sleeping_service_says_how_to_wake_it() -> None:
    snapshot = sleeper()
    plan = plan_of(snapshot)
    status = service_status(snapshot, plan.service_plans[CHAT], None, None)
    reasons = {condition.type: condition for condition in status.conditions}
    assert reasons["Ready"].reason == "ScaledToZero"
    assert reasons["Ready"].message.startswith(
        "0 replicas; the next request at the gateway starts one on a100-1g-10gb for 0.27 USD per "
        "hour. Without the gateway:"
    )
    assert (
        "kubectl -n team-a patch tsvc chat --type merge "
        '-p \'{"spec": {"scaling": {"minReplicas": 1}}}\'' in reasons["Ready"].message
    )
    assert reasons["Progressing"].reason == "RolloutComplete"
    assert status.scaling is not None
    # It is not known for how long no request came.
    assert (status.scaling.reason, status.scaling.message) == (
        "ScaledToZero",
        "0 replicas, no request waiting at the gateway",
    )
    assert status.cost is not None
    assert float(status.cost.per_hour) == 0
    scaling = next(each for each in explain(snapshot, plan, CHAT) if each.topic == "scaling")
    (way_out,) = scaling.would_change
    assert way_out.startswith("This ends when a request for the model arrives at the gateway")


@pytest.mark.parametrize(
    ("budget", "start_refusal"),
    [
        (
            {"amount": "0.01", "window": "Day"},
            "TenantBudget/team-a: day limit 0.0100 USD until 2026-11-21T00:00Z leaves too little "
            "for 1 more replica. Raise spec.limits[0].amount or wait for the next day.",
        ),
        (
            {"gpus": "0.1"},
            "TenantBudget/team-a: spec.gpus is 0.1, which leaves no room for 1 more replica. Raise "
            "spec.gpus, or lower what other services of the tenant need.",
        ),
        ({"currency": "EUR"}, "spec.currency is EUR and the pool is priced in USD"),
    ],
)
@pytest.mark.parametrize("queued", [0, 2])
def test_a_sleeping_service_without_budget_says_that_no_request_wakes_it(
    budget: dict[str, Any], start_refusal: str, queued: int
) -> None:
    demand = {CHAT: GatewayDemand(queued=queued)}
    snapshot = sleeper(budgets=(a_budget(**budget),), demand=demand)
    plan = plan_of(snapshot)
    service_plan = plan.service_plans[CHAT]
    assert service_plan.scale.replicas == 0
    view = plan.budgets_by_namespace["team-a"]
    status = service_status(snapshot, service_plan, view, None)
    assert status.tenant is not None
    assert status.tenant.budget == "team-a"
    assert start_refusal in str(status.tenant.start_refusal)
    ready = next(each for each in status.conditions if each.type == "Ready")
    assert "starts a replica" not in ready.message
    if not queued:
        assert start_refusal in ready.message
    scaling = next(each for each in explain(snapshot, plan, CHAT) if each.topic == "scaling")
    (way_out,) = scaling.would_change
    assert way_out.startswith("This ends when the TenantBudget has room")


def test_what_a_sleeping_service_says_of_its_budget_stays_while_others_spend() -> None:
    others = a_service("other", uid="uid-other", ref=Ref("team-a", "other"))
    texts = set()
    for seconds in (0, 5, 60):
        snapshot = replace(sleeper(budgets=(a_budget(amount="0.01"),)), at=at(seconds))
        snapshot = replace(snapshot, services=(*snapshot.services, others))
        texts.add(plan_of(snapshot).service_plans[CHAT].start_refusal)
    assert len(texts) == 1
    assert None not in texts


def test_a_service_whose_budget_pays_for_its_start_says_nothing_of_it() -> None:
    for demand in ({}, {CHAT: GatewayDemand(queued=2)}):
        plan = plan_of(sleeper(budgets=(a_budget(),), demand=demand))
        assert plan.service_plans[CHAT].start_refusal is None


def test_the_way_to_wake_it_does() -> None:
    woken = a_service(spec=a_spec(scaling={**SLEEPER, "minReplicas": 1}))
    snapshot = a_snapshot(woken, workloads=(a_workload(0),))
    scale = plan_of(snapshot).service_plans[CHAT].scale
    assert (scale.replicas, scale.reason) == (1, ScalingReason.BOUNDS_CHANGED)


def test_a_plan_starts_a_replica_for_what_waits_also_after_a_restart_of_the_operator() -> None:
    asleep = plan_of(sleeper())
    assert asleep.service_plans[CHAT].scale.replicas == 0
    memory = PlanMemory().after(asleep)
    snapshot = replace(sleeper(demand={CHAT: GatewayDemand(queued=2)}), at=at(5))
    for known in (memory, PlanMemory()):
        scale = plan_of(snapshot, memory=known).service_plans[CHAT].scale
        assert (scale.replicas, scale.reason) == (1, ScalingReason.SCALED_FROM_ZERO)


def test_what_waits_at_the_gateway_counts_as_waiting() -> None:
    pods = (a_pod("chat-0"),)
    scaling = {
        "policy": "QueueAndActivity",
        "maxReplicas": 6,
        "minReplicas": 1,
        "scaleUp": {"stabilizationWindow": "0s"},
    }
    snapshot = a_snapshot(
        a_service(spec=a_spec(scaling=scaling)),
        pods=pods,
        workloads=(a_workload(1),),
        readings=readings_of(pods),
        demand={CHAT: GatewayDemand(queued=12)},
    )
    scale = plan_of(snapshot).service_plans[CHAT].scale
    assert (scale.replicas, scale.reason) == (3, ScalingReason.QUEUE_ABOVE_TARGET)


def test_the_last_replica_is_drained_and_stays_for_a_request_that_comes_meanwhile() -> None:
    pods = (a_pod("chat-0"),)
    *_, last = play(*quiet(0, 600))
    idle = PlanMemory(scaling_history={CHAT: last.history})
    fleet = sleeper(pods=pods, workloads=(a_workload(1),))
    later = readings_of(pods, at=at(600), finished={CHAT: 0.0})
    draining = plan_of(replace(fleet, at=at(600), readings=later), memory=idle)
    assert draining.service_plans[CHAT].scale.replicas == 0
    assert draining.service_plans[CHAT].drain.draining == (pods[0].ref,)
    woken = replace(fleet, at=at(601), readings=later, demand={CHAT: GatewayDemand(queued=1)})
    again = plan_of(woken, memory=idle.after(draining)).service_plans[CHAT]
    assert (again.scale.replicas, again.drain.draining) == (1, ())


def test_a_budget_grants_the_first_replica_like_any_other() -> None:
    assert guaranteed_replicas(a_spec(scaling=SLEEPER)) == 0
    assert min_replicas_of(a_spec(scaling=SLEEPER)) == 1
    snapshot = sleeper(demand={CHAT: GatewayDemand(queued=2)}, budgets=(a_budget(amount="0.01"),))
    scale = plan_of(snapshot).service_plans[CHAT].scale
    assert (scale.replicas, scale.reason) == (0, ScalingReason.BUDGET_EXHAUSTED)
    affordable = replace(snapshot, budgets=(a_budget(amount="100.00"),))
    assert plan_of(affordable).service_plans[CHAT].scale.replicas == 1


def test_no_completion_is_asked_of_a_service_only_because_it_is_idle() -> None:
    pods = (a_pod("chat-0"),)
    for scaling, expected in ((SLEEPER, False), ({**SLEEPER, "minReplicas": 1}, True)):
        service = a_service(spec=a_spec(scaling=scaling))
        assert must_probe(a_snapshot(service), service, pods)  # the first one
        probed = a_snapshot(service, probe_results={CHAT: ProbeResult(at=at(-400))})
        assert must_probe(probed, service, pods) is expected
        failed = a_snapshot(service, probe_results={CHAT: ProbeResult(at=at(-6), problem="500")})
        assert must_probe(failed, service, pods)


def test_a_sleeping_service_leaves_its_devices_to_others() -> None:
    other = a_service("other", a_spec(scaling={"minReplicas": 7, "maxReplicas": 7}))
    snapshot = sleeper()
    snapshot = replace(snapshot, services=(*snapshot.services, other))
    plans = plan_of(snapshot).service_plans
    assert plans[Ref("team-a", "other")].scale.replicas == 7


def test_a_new_service_chooses_hardware_that_has_room_for_its_first_replica() -> None:
    full = a_pod(
        "other-0",
        "other",
        node="cheap-0",
        variant="cheap-1g-10gb",
        devices={"nvidia.com/mig-1g.10gb": 1},
    )
    spec = a_spec(scaling={"minReplicas": 1, "maxReplicas": 1})
    snapshot = sleeper(
        workloads=(a_workload(1, "other", "cheap-1g-10gb"),),
        pods=(full,),
        pools=(a_pool("cheap", "1.00"), a_pool("a100", "2.00")),
        nodes=(a_node("cheap", {"1g.10gb": 1}), a_node("a100", {"1g.10gb": 1})),
    )
    other = a_service("other", spec)
    plans = plan_of(replace(snapshot, services=(*snapshot.services, other))).service_plans
    choice = plans[CHAT].choice
    assert choice is not None
    assert choice.offer.pool == "a100"


def test_a_sleeping_service_keeps_the_slice_that_is_planned_for_it_and_asks_for_no_speed() -> None:
    ground = a_mig_node(a_mig_gpu(0, "1g.10gb@0"))
    asleep = a_mig_service("chat", scaling=SLEEPER)
    fleet = a_fleet(asleep, mig_nodes=[ground], workloads=(a_workload(0),))
    demand = layout_problem_of(fleet, [ground]).demands[0]
    assert demand.service.min_replicas == 1
    in_use = a_fleet(
        asleep, mig_nodes=[ground], workloads=(a_workload(2),), demand={CHAT: GatewayDemand()}
    )
    assert layout_problem_of(in_use, [ground]).demands[0].service.min_replicas == 1


def test_a_service_that_sleeps_stays_asleep_when_its_planned_hardware_changes() -> None:
    ground = a_mig_node(a_mig_gpu(0, "2g.20gb@0"))
    service = a_mig_service("chat", scaling=SLEEPER)
    fleet = a_fleet(service, mig_nodes=[ground], workloads=(a_workload(0),))
    fleet = with_status(fleet, adopt_plan(fleet, [ground]).status)
    memory = PlanMemory(scaling_history={CHAT: ASLEEP})
    assert plan_of(fleet, memory=memory).service_plans[CHAT].scale.replicas == 0


def test_reports_of_gateways_are_added_until_they_are_old() -> None:
    reports = [
        GatewayReport(at=at(0), demand={CHAT: GatewayDemand(arrived=1, queued=2, in_flight=3)}),
        GatewayReport(at=at(-1), demand={CHAT: GatewayDemand(queued=5, predicted_seconds=0.5)}),
    ]
    total = GatewayDemand(arrived=1, queued=7, in_flight=3, predicted_seconds=0.5)
    assert fleet_demand(reports, NOW) == {CHAT: total}
    age = MAX_REPORT_AGE.total_seconds()
    assert fleet_demand(reports, at(age)) == {CHAT: reports[0].demand[CHAT]}
    assert fleet_demand(reports, at(age + 1)) is None
    assert fleet_demand([GatewayReport(at=NOW)], NOW) == {}


def test_the_rate_of_arrivals_is_that_of_the_last_minute() -> None:
    report = GatewayReport(at=at(0))
    for second in range(200):
        arrived = {CHAT: GatewayDemand(arrived=3)} if second >= 100 else {}
        report = report.followed_by(at(second), arrived)
        rates = fleet_demand([report], at(second))
        assert rates is not None
        if second < 15:
            assert rates == {}
    assert rates is not None
    assert rates[CHAT].arrivals_per_second == 3
    two = fleet_demand([report, GatewayReport(at=at(199))], at(199))
    assert two is not None
    assert two[CHAT].arrivals_per_second == 3


def test_arrivals_of_each_second_are_those_of_all_gateways() -> None:
    reports = [GatewayReport(at=at(0)), GatewayReport(at=at(0))]
    for second in range(100):
        arrived = {CHAT: GatewayDemand(arrived=second)}
        reports = [report.followed_by(at(second), arrived) for report in reports]
    rates = fleet_demand(reports, at(99))
    assert rates is not None
    assert rates[CHAT].arrivals == tuple(2 * second for second in range(40, 100))
    single = fleet_demand([reports[0], GatewayReport(at=at(99))], at(99))
    assert single is not None
    assert single[CHAT].arrivals == tuple(range(40, 100))
    later = reports[0].followed_by(at(130), {})
    assert later.arrivals_by_second()[CHAT] == (*range(71, 100), *[0] * 31)


def test_expected_tokens_are_those_of_the_last_minute_at_all_gateways() -> None:
    reports = [GatewayReport(at=at(0)), GatewayReport(at=at(0))]
    for second in range(200):
        tokens = ArrivedTokens(2, 200, 20 if second < 100 else 60, 30_000)
        demand = {CHAT: GatewayDemand(arrived=3, tokens=tokens)} if second < 150 else {}
        reports = [report.followed_by(at(second), demand) for report in reports]
        rates = fleet_demand(reports, at(second))
        assert rates is not None
        if second == 99:
            assert rates[CHAT].tokens == ArrivedTokens(240, 24_000, 2400, 3_600_000)
    assert rates is not None
    # Ten more seconds of the minute had requests.
    assert rates[CHAT].tokens == ArrivedTokens(40, 4000, 1200, 600_000)
    # Prompts of 50 and 150 tokens.
    assert rates[CHAT].tokens.prompt_variation == pytest.approx(0.5)
    reports = [report.followed_by(at(300), {}) for report in reports]
    assert reports[0].tokens == {}


def test_arrivals_before_the_clock_was_set_back_are_in_no_second() -> None:
    report = GatewayReport(at=at(0))
    for second in (0, 1, 2, -300, -299):
        report = report.followed_by(at(second), {CHAT: GatewayDemand(arrived=4)})
    assert report.arrivals_by_second()[CHAT] == (*[0] * 58, 4, 4)


def test_arrivals_are_forgotten_after_a_minute_or_a_long_silence() -> None:
    report = GatewayReport(at=at(0)).followed_by(at(0), {})
    for second in (*range(1, 20), *range(300, 320)):
        arrived = {CHAT: GatewayDemand(arrived=9)} if second < 20 else {}
        report = report.followed_by(at(second), arrived)
        rates = report.arrival_rates()
        if second == 19:
            assert rates == {CHAT: 9}
        if second >= 315:
            assert rates == {}
    assert len(report.arrivals) == 20


def test_arrivals_of_a_gateway_count_while_it_has_no_request_at_the_moment() -> None:
    report = GatewayReport(at=at(0))
    for second in range(60):
        arrived = {CHAT: GatewayDemand(arrived=1)} if second % 2 else {}
        report = report.followed_by(at(second), arrived)
        rates = fleet_demand([report], at(second))
        assert rates is not None
        assert second < 15 or rates[CHAT].arrivals_per_second == pytest.approx(0.5, abs=0.05)
