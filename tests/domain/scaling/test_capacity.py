"""The policy `Capacity`: replicas follow arrivals, and go when the load does."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.inference_service import Scaling as ScalingSpec
from tessera.api.reasons import ScalingReason
from tessera.api.service_status import ScalingStatus
from tessera.domain.observed.demand import ArrivedTokens
from tessera.domain.scaling.policies.capacity.demand import DemandHistory, next_late_alone
from tessera.domain.scaling.policies.capacity.hold import Lulls
from tessera.domain.scaling.policies.capacity.pace import Pace
from tessera.domain.scaling.policies.capacity.policy import (
    CapacityAssessment,
    replicas_for,
    scale_by_capacity,
)
from tessera.domain.scaling.policies.capacity.step_speed import StepSpeed
from tessera.domain.scaling.policies.capacity.variant_capacity import VariantCapacity
from tessera.domain.scaling.state import (
    NONE_LATE,
    LateAlone,
    ScaleDecision,
    ScalingHistory,
    ServiceLoad,
    TimestampedReplicas,
    TtftShares,
)
from tessera.domain.scaling.target import ScaleTarget
from tessera.domain.status.scaling import scaling_status
from tests.builders import a_service, a_snapshot, at, compute_service_plan

CAPACITY = VariantCapacity(
    requests_per_second=2.0,
    fewer_requests_per_second=2.0,
    concurrent=20,
    input_tokens=1200,
    output_tokens=250,
    prompts_per_second=5.0,
    queue_time=timedelta(seconds=1),
    lead=timedelta(seconds=100),
)


def policy(**fields: Any) -> ScaleTarget:
    spec = ScalingSpec.model_validate({"policy": "Capacity", "minReplicas": 1, **fields})
    return ScaleTarget(spec=spec, queue_target=4, max_num_seqs=20)


def load(seconds: float, **fields: Any) -> ServiceLoad:
    """Build a load of two replicas that serve, with metrics of all of them."""
    serving = fields.pop("serving", 2)
    waiting, running = fields.pop("waiting", 0.0), fields.pop("running", 0.0)
    known = waiting is not None and running is not None
    return ServiceLoad(
        **{
            "at": at(seconds),
            "replicas": serving,
            "ready": serving,
            "serving": serving,
            "waiting": waiting,
            "running": running,
            "activity": 1.0,
            "known_waiting": waiting or 0.0,
            "known_requests": waiting + running if known else None,
            "with_counts": serving if known else 0,
            "finish_rate": 0.0,
            **fields,
        }
    )


def unknown(seconds: float, **fields: Any) -> ServiceLoad:
    return load(seconds, waiting=None, running=None, activity=None, finish_rate=None, **fields)


def play(
    spec: ScaleTarget,
    loads: Sequence[ServiceLoad],
    memory: ScalingHistory | None = None,
    capacity: VariantCapacity = CAPACITY,
) -> list[ScaleDecision]:
    decisions = []
    memory = memory or ScalingHistory()
    for service_load in loads:
        decisions.append(scale_by_capacity(spec, capacity, service_load, memory))
        memory = decisions[-1].history
    return decisions


def follow(
    course: Callable[[int, int], ServiceLoad], seconds: range, start: int, lead: float
) -> list[ScaleDecision]:
    """Decide over a course of loads, which depend on the replicas that serve."""
    memory, decisions, replicas = steady(start), list[ScaleDecision](), start
    capacity = replace(CAPACITY, lead=timedelta(seconds=lead))
    for second in seconds:
        service_load = course(second, replicas)
        decisions.append(scale_by_capacity(policy(), capacity, service_load, memory))
        memory, replicas = decisions[-1].history, decisions[-1].replicas
    return decisions


def steady(replicas: int) -> ScalingHistory:
    return ScalingHistory(decisions=(TimestampedReplicas(at(-1000), replicas),))


def changes_of(decisions: Sequence[ScaleDecision]) -> int:
    counts = [decision.replicas for decision in decisions]
    return sum(after != before for before, after in itertools.pairwise(counts))


@pytest.mark.parametrize(("alone", "replicas"), [(1.75, 1), (1.5, 2)])
def test_a_replica_stays_where_the_others_would_not_carry_its_load(
    alone: float, replicas: int
) -> None:
    # Of a queue with one server less, each carries less.
    capacity = replace(CAPACITY, fewer_requests_per_second=alone)
    loads = [load(second, arrival_rate=1.3) for second in range(0, 1800, 30)]
    assert play(policy(), loads, steady(2), capacity)[-1].replicas == replicas


def test_the_pace_begins_again_once_slow_steps_are_measured() -> None:
    memory = DemandHistory(pace=Pace(0.7, at(-30)))
    history = replace(steady(2), memory=memory)
    slow = CAPACITY.slowed(StepSpeed(2.3, "DeviceActivity"))
    decisions = play(
        policy(), [load(second, arrival_rate=1.8) for second in (0, 30)], history, slow
    )
    paces = [
        decision.history.memory.pace.factor
        for decision in decisions
        if isinstance(decision.history.memory, DemandHistory)
    ]
    assert paces == [1.0, 1.0]
    assert "a replica carries 1.00/s, steps take 2.30 times as long (DeviceActivity)" in (
        decisions[-1].message
    )
    again = play(policy(), [load(60, arrival_rate=1.8)], decisions[-1].history)[-1]
    assert "steps take" not in again.message


@pytest.mark.parametrize(("minutes", "pace"), [(59, 0.7), (60, 1.0)])
def test_steps_about_as_slow_as_the_tolerance_change_no_pace_each_time(
    minutes: int, pace: float
) -> None:
    memory = DemandHistory(pace=Pace(0.7, at(-30)), slow_at=at(-60 * minutes))
    slow = CAPACITY.slowed(StepSpeed(1.2, "DeviceActivity"))
    history = replace(steady(2), memory=memory)
    [decision] = play(policy(), [load(0, arrival_rate=1.8)], history, slow)
    assert isinstance(decision.history.memory, DemandHistory)
    assert decision.history.memory.pace.factor == pace


def test_prompts_that_are_late_alone_are_named_and_order_no_replica() -> None:
    capacity = replace(CAPACITY, meets_slo=False, late_alone_share=0.152)
    loads = [load(second, arrival_rate=3.0) for second in (0, 5)]
    decision = play(policy(), loads, steady(2), capacity)[-1]
    assert (decision.replicas, decision.reason) == (2, "LatePrompts")
    assert decision.message.endswith(
        "a replica carries 2.00/s, while 15.2% of the prompts take longer than spec.slo.ttftP95 by "
        "themselves (at most 5% may)"
    )


def test_the_share_that_is_late_alone_follows_ten_minutes() -> None:
    def after(before: LateAlone, counts: Sequence[tuple[int, int]], start: int = 0) -> LateAlone:
        for number, (requests, late) in enumerate(counts):
            tokens = ArrivedTokens(requests, late_alone=late)
            before = next_late_alone(before, load(start + 5 * number, arrived_tokens=tokens))
        return before

    known = after(NONE_LATE, [(100, 4)] * 20)
    assert known.share == pytest.approx(0.04)
    # One minute with a few more is no reason, ten of them are.
    assert after(known, [(100, 7)] * 12, 100).share < 0.045
    assert after(known, [(100, 7)] * 120, 100).share > 0.055
    # Few requests say nothing, nor does a clock that was set back.
    assert after(known, [(49, 49), (0, 0)], 100) == known
    assert after(known, [(100, 100)], -500).share == known.share
    many = after(NONE_LATE, [(100, 8)])
    assert after(many, [(49, 0)], 3595) == many
    assert after(many, [(49, 0)], 3600) == NONE_LATE
    assert after(known, [(100, 100)], 10_000).share == 1.0


def test_a_status_names_at_once_what_slow_steps_are_measured_by() -> None:
    plan = compute_service_plan(a_snapshot(a_service()))

    def status(previous: ScalingStatus | None, capacity: VariantCapacity) -> ScalingStatus:
        [decision] = play(policy(), [load(0, arrival_rate=1.8)], steady(2), capacity)
        return scaling_status(replace(plan, scale=decision), previous, at(0))

    usual = status(None, CAPACITY)
    device = status(usual, CAPACITY.slowed(StepSpeed(2.3, "DeviceActivity")))
    assert device.message.endswith("steps take 2.30 times as long (DeviceActivity)")
    assert status(device, CAPACITY.slowed(StepSpeed(2.4, "DeviceActivity"))) == device
    steps = status(device, CAPACITY.slowed(StepSpeed(2.4, "EngineSteps")))
    assert steps.message.endswith("steps take 2.40 times as long (EngineSteps)")
    assert status(steps, CAPACITY) == steps


def test_arrivals_at_the_gateway_beyond_the_capacity_add_replicas_at_once() -> None:
    decision = play(policy(), [load(0, arrival_rate=6.5, running=40.0)])[0]
    assert (decision.replicas, decision.reason) == (4, "DemandAboveCapacity")
    assert "6.50 requests/s at the gateway, a replica carries 2.00/s" in decision.message


@pytest.mark.parametrize(
    ("rate", "serving", "shares", "replicas", "factor"),
    # The factor stays where a replica is added for it.
    [(5.6, 3, (1.0, 1.0), 3, 1.07), (7.4, 4, (0.9, 0.8), 5, 0.90)],
)
def test_a_replica_is_given_what_the_attained_ttft_shows(
    rate: float, serving: int, shares: tuple[float, float], replicas: int, factor: float
) -> None:
    spec = policy(scaleDown={"stabilizationWindow": "1m"})
    loads = [
        load(
            second,
            arrival_rate=rate,
            serving=serving,
            running=20.0,
            ttft=TtftShares(at(second), *shares),
        )
        for second in range(0, 1200 if shares[0] == 1 else 480, 30)
    ]
    usual = play(spec, [replace(each, ttft=None) for each in loads], steady(4))[-1]
    assert isinstance(usual.assessment, CapacityAssessment)
    assert (usual.replicas, usual.assessment.pace) == (4, 1.0)
    paced = play(spec, loads, steady(4))[-1]
    assert isinstance(paced.assessment, CapacityAssessment)
    assert (paced.replicas, round(paced.assessment.pace, 2)) == (replicas, factor)


@pytest.mark.parametrize(("rate", "factor"), [(7.4, 0.9), (8.4, 1.0)])
def test_what_is_late_while_replicas_carry_more_than_they_can_lowers_nothing(
    rate: float, factor: float
) -> None:
    loads = [
        load(
            second,
            arrival_rate=rate,
            serving=4,
            running=20.0,
            ttft=TtftShares(at(second), 0.9, 0.8),
        )
        for second in range(0, 480, 30)
    ]
    decision = play(policy(maxReplicas=4), loads, steady(4))[-1]
    assert isinstance(decision.assessment, CapacityAssessment)
    assert (decision.replicas, decision.assessment.pace) == (4, factor)


def test_arrivals_that_rise_at_the_gateway_add_replicas_before_the_minute_is_full() -> None:
    risen = play(policy(), [load(0, arrival_rate=3.0, arrivals=(*[0] * 45, *[10] * 15))])[0]
    assert isinstance(risen.assessment, CapacityAssessment)
    assert (risen.replicas, risen.reason) == (4, "DemandAboveCapacity")
    assert risen.assessment.arrivals.rate == pytest.approx((150 - 3 * math.sqrt(150)) / 15)


@pytest.mark.parametrize("rate", [0.2, 2.0, 20.0])
def test_more_arrivals_within_seconds_than_in_the_minute_by_chance_add_nothing(rate: float) -> None:
    mean = 15 * rate
    by_chance = play(
        policy(),
        [load(0, arrival_rate=rate, arrivals=(math.floor(mean + 3 * math.sqrt(mean)),))],
    )[0]
    assert isinstance(by_chance.assessment, CapacityAssessment)
    assert by_chance.assessment.arrivals.rate == pytest.approx(rate)


def burst(second: int, size: int = 30, rate: float = 0.5) -> ServiceLoad:
    """Build a load of one replica in whose last minute so many requests came at once."""
    return load(second, serving=1, arrival_rate=rate, arrivals=(*[0] * 50, size, *[0] * 9))


def calm(second: int, rate: float = 0.5) -> ServiceLoad:
    return load(second, serving=1, arrival_rate=rate)


def observed(replicas: int, *, returned: bool = False) -> ScalingHistory:
    """Return the history of a service that has been observed for its longest hold."""
    first = TimestampedReplicas(at(-400), replicas)
    return replace(steady(replicas), memory=DemandHistory(lulls=Lulls(first, returned)))


def test_a_burst_adds_the_replicas_that_would_have_read_its_prompts_in_time() -> None:
    (decision,) = play(policy(), [burst(0)], steady(1))
    # Half of 30 prompts wait for a second where 15 are read in it.
    assert (decision.replicas, decision.reason) == (2, "DemandAboveCapacity")
    assert "bursts need 2" in decision.message
    assert play(policy(), [burst(0, size=19)], steady(1))[-1].replicas == 1
    assert play(policy(), [burst(0, size=60)], steady(1))[-1].replicas == 4


def test_the_first_burst_after_a_long_time_adds_none() -> None:
    first, second = play(policy(), [burst(0), burst(300)], observed(1))
    assert (first.replicas, first.reason) == (1, "Steady")
    assert (second.replicas, second.reason) == (2, "DemandAboveCapacity")


def test_a_burst_that_lasts_counts_again_after_two_minutes() -> None:
    decisions = play(policy(), [burst(second) for second in range(0, 150, 30)], observed(1))
    assert [decision.replicas for decision in decisions] == [1, 1, 1, 1, 2]


def test_what_two_bursts_needed_stays_for_half_an_hour_while_as_many_requests_come() -> None:
    spec = policy(scaleDown={"stabilizationWindow": "1m"})
    once = [burst(0), *(calm(second) for second in range(60, 1500, 60))]
    assert play(spec, once, steady(1))[-1].replicas == 1
    twice = [burst(0), burst(300), *(calm(second) for second in range(360, 1500, 60))]
    assert play(spec, twice, steady(1))[-1].replicas == 2
    fewer = [*twice[:2], *(calm(second, rate=0.2) for second in range(360, 1500, 60))]
    assert play(spec, fewer, steady(1))[-1].replicas == 1
    forgotten = [*twice, *(calm(second) for second in range(1500, 2600, 60))]
    assert play(spec, forgotten, steady(1))[-1].replicas == 1


def test_requests_that_become_more_in_engines_count_after_half_a_minute() -> None:
    loads = [load(second, finish_rate=4.0) for second in range(0, 65, 5)]
    loads += [
        load(second, finish_rate=4.0, running=6.0 * (second - 60)) for second in range(65, 95, 5)
    ]
    decision = play(policy(), loads)[-1]
    assert isinstance(decision.assessment, CapacityAssessment)
    assert decision.assessment.arrivals.rate == pytest.approx(4.0 + 6.0, abs=1.0)


def test_arrivals_are_estimated_from_what_engines_finish_and_hold() -> None:
    """While full engines finish no more, what they hold grows by the rest of the arrivals."""
    loads = [load(second, finish_rate=4.0, running=2.0 * second) for second in range(0, 65, 5)]
    decision = play(policy(), loads)[-1]
    assert isinstance(decision.assessment, CapacityAssessment)
    assert decision.assessment.arrivals.rate == pytest.approx(6.0)
    assert decision.assessment.arrivals.source == "estimated from the engines"
    calm = play(policy(), [load(second, finish_rate=2.0) for second in range(0, 65, 5)])[-1]
    assert (calm.replicas, calm.reason) == (2, "EstimatedArrivals")


def test_a_service_without_any_request_is_idle_by_the_gateway_and_not_estimated() -> None:
    idle = play(policy(minReplicas=2), [load(second, queued=0) for second in range(0, 65, 5)])[-1]
    assert (idle.replicas, idle.reason) == (2, "Steady")
    assert idle.message.startswith("2 replicas; 0.00 requests/s at the gateway")
    others = [load(second, queued=0, finish_rate=2.0) for second in range(0, 65, 5)]
    assert play(policy(minReplicas=2), others)[-1].reason == "EstimatedArrivals"


def test_engines_with_other_clients_than_the_gateway_are_believed() -> None:
    decision = play(policy(), [load(0, arrival_rate=1.0, finish_rate=6.0)])[0]
    assert (decision.replicas, decision.reason) == (4, "DemandAboveCapacity")


def test_a_queue_that_takes_longer_than_the_objective_adds_replicas_at_once() -> None:
    short = play(policy(), [load(0, waiting=4.0, arrival_rate=2.1)])[0]
    assert (short.replicas, short.reason) == (2, "Steady")
    decision = play(policy(), [load(0, waiting=150.0, arrival_rate=2.1)])[0]
    assert (decision.replicas, decision.reason) == (3, "BacklogAboveTarget")


@pytest.mark.parametrize("activity", [None, 0.2, 1.0])
@pytest.mark.parametrize("floor", [1, 2])
def test_two_streams_keep_no_replica_beyond_the_floor(activity: float | None, floor: int) -> None:
    loads = [
        load(second, serving=8, running=2.0, finish_rate=0.2, activity=activity)
        for second in range(0, 900, 5)
    ]
    decisions = play(policy(minReplicas=floor), loads, steady(8))
    assert decisions[-1].replicas == floor
    assert changes_of(decisions) <= 2
    assert {decision.reason for decision in decisions} >= {
        "ScaleDownStabilized",
        "CapacityAboveDemand",
    }


def test_after_one_of_two_replicas_is_lost_the_others_carry_the_load() -> None:
    loads = [load(second, serving=6, arrival_rate=3.6) for second in range(0, 1200, 5)]
    retained = play(policy(minReplicas=2), loads, steady(6))[-1].replicas
    assert (retained - 1) * CAPACITY.requests_per_second >= 3.6
    assert play(policy(minReplicas=1), loads, steady(6))[-1].replicas <= retained


def test_by_estimates_a_replica_stays_as_long_as_its_start_would_cost() -> None:
    def removed(lead: float, window: str, **rate: float) -> datetime:
        loads = [load(second, serving=4, **rate) for second in range(0, 700, 5)]
        capacity = replace(CAPACITY, lead=timedelta(seconds=lead))
        spec = policy(scaleDown={"stabilizationWindow": window})
        decisions = play(spec, loads, steady(4), capacity)
        return next(
            load.at
            for load, decision in zip(loads, decisions, strict=True)
            if decision.replicas < 4
        )

    by_estimates = [removed(lead, "1m", finish_rate=0.5) for lead in (10, 100, 180)]
    assert by_estimates == [at(60), at(400), at(600)]


@pytest.mark.parametrize(
    ("history", "seconds"),
    # Only begun to be observed; the load stayed away; it came back.
    [(steady(2), 400), (observed(2), 300), (observed(2, returned=True), 400)],
)
def test_known_arrivals_hold_a_replica_for_longer_where_the_load_may_come_back(
    history: ScalingHistory, seconds: int
) -> None:
    loads = [load(second, arrival_rate=0.5) for second in range(0, 600, 5)]
    decisions = zip(loads, play(policy(), loads, history), strict=True)
    assert next(each.at for each, decision in decisions if decision.replicas < 2) == at(seconds)


def test_a_replica_that_was_removed_too_early_stays_in_the_next_lulls() -> None:
    loads = [
        load(second, arrival_rate=3.5 if second % 410 >= 350 else 0.5)
        for second in range(0, 1640, 5)
    ]
    counts = [decision.replicas for decision in play(policy(), loads, observed(2))]
    assert counts[300 // 5 : 350 // 5] == [1] * 10
    assert set(counts[350 // 5 :]) == {2}
    loads += [load(second, arrival_rate=0.5) for second in range(1640, 2100, 5)]
    assert play(policy(), loads, observed(2))[-1].replicas == 1


def test_a_starting_replica_that_is_not_needed_any_more_is_withdrawn() -> None:
    busy = [load(second, arrival_rate=6.5) for second in range(0, 60, 5)]
    calm = [load(second, arrival_rate=1.0) for second in range(60, 200, 5)]
    decisions = play(policy(), [*busy, *calm])
    assert decisions[11].replicas == 4
    withdrawn = next(decision for decision in decisions if decision.replicas == 2)
    assert withdrawn.reason == "StartingReplicaWithdrawn"
    assert withdrawn.history.decisions[-1].at < at(130)


def test_full_replicas_that_carry_less_than_predicted_correct_the_prediction() -> None:
    loads = [load(second, waiting=2.0, running=40.0, finish_rate=2.4) for second in range(0, 90, 5)]
    decision = play(policy(), loads)[-1]
    assert isinstance(decision.history.memory, DemandHistory)
    assert decision.history.memory.correction == pytest.approx(0.6)
    assert decision.replicas > 2
    later = [load(second, finish_rate=2.4) for second in range(90, 90 + 1500, 15)]
    forgotten = play(policy(), later, decision.history)[-1].history.memory
    assert isinstance(forgotten, DemandHistory)
    assert forgotten.correction == 1
    idle_devices = [replace(each, activity=0.1, running=39.0) for each in loads]
    assert play(policy(), idle_devices)[-1].replicas == 2


# 0.5 is the mean of two GPUs of which one is not profiled, 0.43 a slice of 3 of 7 that is full.
@pytest.mark.parametrize("activity", [0.5, 0.43, 0.1])
def test_a_queue_behind_full_engines_removes_no_replica_whatever_devices_show(
    activity: float,
) -> None:
    loads = [
        load(second, waiting=20.0, running=40.0, finish_rate=1.2, activity=activity)
        for second in range(0, 900, 5)
    ]
    decisions = play(policy(maxReplicas=8), loads)
    assert min(decision.replicas for decision in decisions) == 2
    assert "a replica carries 1.00/s" in decisions[-1].message


@pytest.mark.parametrize("activity", [1.0, None, 0.0, 0.02])
def test_a_profiler_that_reports_idle_devices_beside_requests_is_not_believed(
    activity: float | None,
) -> None:
    loads = [
        load(
            second,
            waiting=20.0,
            running=40.0,
            finish_rate=1.2,
            activity=activity,
            idle_replicas=2 if activity is not None and activity < 0.03 and second >= 300 else 0,
        )
        for second in range(0, 900, 5)
    ]
    last = play(policy(maxReplicas=8), loads)[-1]
    assert last.replicas == 2
    assert "a replica carries 1.00/s" in last.message
    contradicts = activity is not None and activity < 0.03
    assert (last.reason is ScalingReason.INCONSISTENT_METRICS) == contradicts
    assert ("activity below 3% on 2 replicas with running requests" in last.message) == contradicts


def test_an_idle_device_is_believed_while_no_request_runs() -> None:
    decision = play(policy(minReplicas=2), [load(0, activity=0.0)])[-1]
    assert decision.reason is ScalingReason.ESTIMATED_ARRIVALS


def test_one_missed_reading_changes_nothing() -> None:
    loads = [load(second, serving=4, arrival_rate=None) for second in range(0, 400, 5)]
    missed = [
        unknown(100, serving=4) if service_load.at == at(100) else service_load
        for service_load in loads
    ]
    replicas = [decision.replicas for decision in play(policy(), loads, steady(4))]
    decisions = play(policy(), missed, steady(4))
    assert [decision.replicas for decision in decisions] == replicas
    assert decisions[20].reason == "FailedGetMetrics"


def test_without_engine_metrics_arrivals_decide_about_reductions_after_five_minutes() -> None:
    loads = [load(0, serving=4, arrival_rate=0.5)]
    loads += [unknown(second, serving=4, arrival_rate=0.5) for second in range(5, 900, 5)]
    decisions = play(policy(), loads, steady(4))
    assert {decision.replicas for decision in decisions[:60]} == {4}
    assert {decision.reason for decision in decisions[1:60]} == {"FailedGetMetrics"}
    assert (decisions[-1].replicas, decisions[-1].reason) == (1, "MetricsPartial")
    raised = play(policy(), [unknown(0, arrival_rate=6.5)])[0]
    assert (raised.replicas, raised.reason) == (4, "DemandAboveCapacity")


def test_a_replica_without_metrics_may_be_full() -> None:
    """Of four replicas one has no metrics for long: it keeps its place, the others do not."""
    loads = [
        unknown(second, serving=4, with_counts=3, known_requests=1.0)
        for second in range(0, 1500, 5)
    ]
    decisions = play(policy(), loads, steady(4))
    assert (decisions[-1].replicas, decisions[-1].reason) == (2, "MetricsPartial")


def test_requests_that_wait_at_the_gateway_without_any_replica_start_some() -> None:
    loads = [
        load(second, serving=0, waiting=90.0, running=0.0, arrival_rate=0.5, finish_rate=0.0)
        for second in range(0, 120, 5)
    ]
    decisions = play(policy(), loads, steady(0))
    assert decisions[0].replicas == 1
    assert decisions[1].replicas == 1


def test_with_no_signal_at_all_the_number_stays() -> None:
    decisions = play(policy(), [unknown(second) for second in range(0, 3600, 10)], steady(6))
    assert {(decision.replicas, decision.reason) for decision in decisions} == {
        (6, "FailedGetMetrics")
    }


def test_more_than_the_maximum_says_so() -> None:
    decision = play(policy(maxReplicas=2), [load(0, arrival_rate=60.0)])[0]
    assert (decision.replicas, decision.reason) == (2, "TooManyReplicas")
    assert "spec.scaling.maxReplicas is 2" in decision.message


rates = st.floats(0, 40)
readings = st.lists(
    st.tuples(
        st.integers(1, 40),
        st.one_of(st.none(), st.floats(0, 40)),
        st.one_of(st.none(), st.floats(0, 500)),
        st.one_of(st.none(), st.floats(0, 1)),
    ),
    min_size=1,
    max_size=60,
)


@given(course=readings, floor=st.integers(1, 3), most=st.integers(3, 12))
def test_every_decision_is_within_the_bounds(course: list[Any], floor: int, most: int) -> None:
    spec = policy(minReplicas=floor, maxReplicas=most)
    second, memory = 0, ScalingHistory()
    for pause, rate, waiting, activity in course:
        second += pause
        service_load = load(
            second, arrival_rate=rate, waiting=waiting, running=waiting, activity=activity
        )
        decision = scale_by_capacity(spec, CAPACITY, service_load, memory)
        assert floor <= decision.replicas <= most
        assert isinstance(decision.assessment, CapacityAssessment)
        assert math.isfinite(decision.assessment.arrivals.rate)
        memory = decision.history


@given(rate=rates, more=rates)
def test_more_arrivals_never_need_fewer_replicas(rate: float, more: float) -> None:
    assert replicas_for(rate + more, 2.0, 1.15) >= replicas_for(rate, 2.0, 1.15)


@given(
    course=st.lists(st.tuples(st.integers(1, 40), st.floats(0, 40)), min_size=1, max_size=60),
    more=rates,
)
def test_a_course_of_more_arrivals_never_has_fewer_replicas(
    course: list[tuple[int, float]], more: float
) -> None:
    spec, second = policy(), 0
    less_memory, more_memory = ScalingHistory(), ScalingHistory()
    for pause, rate in course:
        second += pause
        # All replicas serve, so that none is withdrawn.
        loads = [load(second, serving=8, arrival_rate=each) for each in (rate, rate + more)]
        less = scale_by_capacity(spec, CAPACITY, loads[0], less_memory)
        greater = scale_by_capacity(spec, CAPACITY, loads[1], more_memory)
        assert greater.replicas >= less.replicas
        less_memory, more_memory = less.history, greater.history


@given(
    before=rates,
    peak=st.integers(2, 8),
    activity=st.sampled_from([None, 1.0]),
    by_gateway=st.booleans(),
    lead=st.floats(5, 900),
)
def test_without_load_the_floor_is_reached_within_15_minutes(
    before: float, peak: int, activity: float | None, by_gateway: bool, lead: float
) -> None:
    def course(second: int, replicas: int) -> ServiceLoad:
        left = second >= 300
        rate = 0.2 if left else before
        return load(
            second,
            serving=replicas,
            running=2.0 if left else rate * 10,
            finish_rate=rate,
            arrival_rate=rate if by_gateway else None,
            activity=activity,
        )

    decisions = follow(course, range(0, 300 + 900, 10), peak, lead)
    assert decisions[-1].replicas == 1


@given(
    rate=rates,
    waiting=st.sampled_from([0.0, 1.0, 30.0]),
    running=st.floats(0, 200),
    activity=st.sampled_from([None, 0.3, 1.0]),
    start=st.integers(1, 8),
    lead=st.floats(5, 900),
)
def test_a_constant_load_changes_the_number_at_most_six_times_an_hour(
    rate: float, waiting: float, running: float, activity: float | None, start: int, lead: float
) -> None:
    def course(second: int, replicas: int) -> ServiceLoad:
        return load(
            second,
            serving=replicas,
            waiting=waiting,
            running=running,
            finish_rate=min(rate, 2.0 * replicas),
            activity=activity,
        )

    assert changes_of(follow(course, range(0, 3600, 20), start, lead)) <= 6


@pytest.mark.parametrize(("arrivals", "headroom"), [("arrival_rate", 1.0), ("finish_rate", 1.14)])
def test_only_estimated_arrivals_have_a_headroom(arrivals: str, headroom: float) -> None:
    loads = [load(30 * index, **{arrivals: 2.0}) for index in range(20)]
    assessment = play(policy(), loads)[-1].assessment
    assert isinstance(assessment, CapacityAssessment)
    assert assessment.headroom == pytest.approx(headroom)


def test_what_is_enough_is_said_with_when_the_others_go() -> None:
    """An on-call needs the number, until when, and no rate that froze five minutes ago."""
    loads = [load(second, serving=4, arrival_rate=6.5) for second in range(0, 60, 10)]
    loads += [load(second, serving=4, arrival_rate=0.7) for second in range(60, 370, 10)]
    spec = policy(scaleDown={"stabilizationWindow": "5m"})
    *decisions, last = play(spec, loads, observed(4))
    assert last.replicas == 1
    assert all(each.reason == ScalingReason.SCALE_DOWN_STABILIZED for each in decisions[6:])
    assert decisions[-1].message == (
        "4 replicas; 1 is enough since 12:01:00 UTC, so 3 go at 12:06:00 UTC"
    )
    assert len({each.message for each in decisions[6:]}) <= 2
