"""What a replica carries within the SLO, and that a service uses it with the policy `Capacity`."""

import itertools
import math
import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.explain.explain import explain
from tessera.domain.observed.demand import ArrivedTokens, GatewayDemand
from tessera.domain.observed.snapshot import (
    STEP_SECONDS,
    PodReading,
    Readings,
    Snapshot,
    SpeedReading,
    StepReading,
    TokenRates,
)
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.checks import shape_of
from tessera.domain.planning.plan import PlanMemory
from tessera.domain.scaling.load import ServiceReadings
from tessera.domain.scaling.policies.capacity.policy import (
    CapacityAssessment,
    headroom_of_estimates,
)
from tessera.domain.scaling.policies.capacity.variant_capacity import (
    VariantCapacity,
    computed_prompt_of,
    observed_capacity,
    variant_capacity,
)
from tessera.domain.scaling.state import ScalingHistory, ServiceLoad, TtftShares
from tessera.domain.scaling.target import ObservedVariant, queue_target
from tessera.domain.sizing.predicted_steps import predicted_steps
from tessera.domain.sizing.scheduler_limits import SchedulerLimits
from tessera.domain.status.service import service_status
from tessera_lab.engine import EngineCore, ServedRequest, Timeline
from tessera_lab.engine.requests import EngineLimits, EngineRequest
from tests.builders import (
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
SCALING = {"minReplicas": 1}


def a_fleet(scaling: dict[str, Any], **fields: Any) -> Snapshot:
    pods = fields.pop("pods", (a_pod("chat-0"),))
    service = a_service(spec=a_spec(scaling=scaling, **fields.pop("spec", {})))
    workload = (a_workload(len(pods)),)
    return a_snapshot(
        service, pods=pods, workloads=workload, **{"readings": readings_of(pods), **fields}
    )


def status_after(fleet: Snapshot) -> InferenceServiceStatus:
    return service_status(fleet, plan_of(fleet).service_plans[CHAT], None, None)


def capacity(reading: SpeedReading | None = None, **fields: Any) -> VariantCapacity:
    slo = fields.pop("slo", {"ttftP95": "1s"})
    spec = a_spec(slo=slo, context={"typicalInputTokens": 400, "typicalOutputTokens": 100})
    shape = shape_of(spec)
    assert shape is not None
    return variant_capacity(
        spec,
        shape,
        a_choice().fit,
        reading=reading or SpeedReading(),
        measured_ratio=fields.pop("measured_ratio", None),
        lead=timedelta(seconds=100),
        **fields,
    )


def arrivals(prompt: int, answer: int, variation: float = 0.284) -> ArrivedTokens:
    """Return requests whose prompts vary, by default like those of `attainment`."""
    squares = round(100 * prompt**2 * (1 + variation))
    return ArrivedTokens(100, 100 * prompt, 100 * answer, squares)


def a_choice() -> HardwareChoice:
    choice = plan_of(a_fleet(SCALING)).service_plans[CHAT].choice
    assert choice is not None
    return choice


def attainment(
    rate: float, carried: VariantCapacity, seconds: float = 400, cached_requests: float = 0.0
) -> float:
    """Return the share of requests with a first token in time, if they come at random.

    The prompts of `cached_requests` are in the prefix cache, the others are new.
    """
    fit, rng = a_choice().fit, random.Random(1)  # noqa: S311 - not a secret
    limits = EngineLimits(
        max_model_len=fit.max_model_len,
        max_num_seqs=fit.limits.max_num_seqs,
        max_num_batched_tokens=fit.limits.max_num_batched_tokens,
        blocks=fit.memory.kv_tokens // 16,
        prefix_cache=bool(cached_requests),
        shared_tokens=16,
    )
    timeline, served, moment = Timeline(EngineCore(limits, fit.step)), list[ServedRequest](), 0.0
    for number in itertools.count():
        moment += rng.expovariate(rate)
        served += timeline.advance(min(moment, seconds))
        if moment >= seconds:
            break
        prompt = max(1, int(carried.input_tokens * rng.lognormvariate(-0.125, 0.5)))
        first = 0 if rng.random() < cached_requests else (number + 1) * 10**4
        request = EngineRequest(
            id=number,
            prompt_tokens=prompt,
            output_tokens=carried.output_tokens,
            shared_prefixes=tuple(range(first, first + prompt // 16)) if cached_requests else (),
        )
        timeline.submit(request, moment)
    served += timeline.advance(math.inf)
    in_time = [each.ttft_seconds is not None and each.ttft_seconds <= 1 for each in served]
    return sum(in_time) / len(in_time)


@pytest.mark.parametrize(
    ("prompt", "answer", "too_many"),
    [(400, 100, 1.6), (1200, 250, 1.6), (3000, 50, 2.0), (200, 600, 1.6)],
)
def test_one_replica_keeps_the_objective_up_to_the_rate_that_needs_two(
    prompt: int, answer: int, too_many: float
) -> None:
    lengths = SpeedReading(requests=100, mean_input_tokens=prompt, mean_output_tokens=answer)
    carried = capacity(lengths, arrived=arrivals(prompt, answer))
    full = carried.requests_per_second
    rate = full / headroom_of_estimates(carried.lead)
    assert attainment(rate, carried) >= 0.95
    assert attainment(too_many * rate, carried) < 0.95


@pytest.mark.parametrize(("prompt", "answer"), [(400, 100), (1200, 250), (3000, 50)])
def test_what_is_cached_makes_room_for_as_many_more_requests_in_time(
    prompt: int, answer: int
) -> None:
    lengths = SpeedReading(requests=100, mean_input_tokens=prompt, mean_output_tokens=answer)
    arrived = arrivals(prompt, answer)
    carried = capacity(replace(lengths, cached_share=0.75), arrived=arrived)
    uncached = capacity(lengths, arrived=arrived)
    assert carried.requests_per_second > 1.05 * uncached.requests_per_second
    rate = carried.requests_per_second / headroom_of_estimates(carried.lead)
    assert attainment(rate, carried, cached_requests=0.75) >= 0.95
    assert attainment(1.1 * carried.requests_per_second, carried) < 0.95


def test_a_larger_cached_share_carries_more_and_no_engine_more_than_all() -> None:
    lengths = SpeedReading(requests=100, mean_input_tokens=1200, mean_output_tokens=250)

    def carried(share: float | None, requests: int = 100) -> VariantCapacity:
        return capacity(replace(lengths, cached_share=share, requests=requests))

    rates = [carried(tenth / 10).requests_per_second for tenth in range(11)]
    assert rates == sorted(rates)
    assert carried(None) == carried(0.0) == capacity(lengths)
    assert carried(0.5).cached_share == pytest.approx(0.5)
    # Few requests say nothing of the next ones.
    assert carried(0.5, requests=19).cached_share == 0


def test_replicas_together_carry_more_each_and_behind_a_gateway_most() -> None:
    lengths = SpeedReading(requests=100, mean_input_tokens=3000, mean_output_tokens=50)
    arrived = arrivals(3000, 50)
    alone, beside_others, behind_a_gateway = (
        capacity(lengths, arrived=arrived, replicas=replicas, servers=servers).requests_per_second
        for replicas, servers in ((1, 1), (4, 1), (4, 4))
    )
    assert alone <= beside_others < behind_a_gateway
    # Of few places more must be free for those that come at once.
    few = SpeedReading(requests=100, mean_input_tokens=50, mean_output_tokens=2000)
    assert capacity(few).requests_per_second < capacity(few, replicas=4).requests_per_second


def test_longer_answers_leave_fewer_requests_per_second() -> None:
    usual = capacity()
    long = capacity(SpeedReading(requests=100, mean_input_tokens=400, mean_output_tokens=400))
    assert usual.requests_per_second > 2 * long.requests_per_second
    assert (long.input_tokens, long.output_tokens) == (400, 400)
    few = capacity(SpeedReading(requests=19, mean_input_tokens=400, mean_output_tokens=400))
    assert few == usual


def test_a_replica_carries_more_requests_the_shorter_their_answers_are() -> None:
    rates = [
        capacity(
            SpeedReading(requests=100, mean_input_tokens=1000, mean_output_tokens=answer)
        ).requests_per_second
        for answer in range(100, 0, -1)
    ]
    assert all(1 < shorter / longer < 1.01 for longer, shorter in itertools.pairwise(rates))


def test_a_measured_speed_corrects_the_capacity() -> None:
    slow = capacity(measured_ratio=2.0)
    assert slow.requests_per_second < 0.6 * capacity().requests_per_second
    # Its largest step misses the objective of the ITL, and fewer requests would not mend that.
    rates = [capacity(measured_ratio=ratio).requests_per_second for ratio in (1.0, 1.3, 2.0)]
    assert all(slower > 0.6 * faster for faster, slower in itertools.pairwise(rates))


def test_requests_with_more_cached_tokens_are_carried_more_slowly() -> None:
    kv_tokens = a_choice().fit.memory.kv_tokens
    reading = SpeedReading(requests=100, mean_input_tokens=400, mean_output_tokens=100)

    def rate_with(cached: int, requests: int = 100) -> float:
        usage = 10 * cached / kv_tokens
        measured = replace(reading, running=10, kv_usage=usage, requests=requests)
        return capacity(measured).requests_per_second

    rates = [rate_with(cached) for cached in (600, 1_500, 6_000)]
    assert rates[0] > rates[1] > rates[2]
    # A request caches no less than its prompt and half of an answer, and few say nothing.
    assert rate_with(100) == pytest.approx(rate_with(450), rel=0.01)
    assert rate_with(6_000, requests=5) == rate_with(100, requests=5)


def test_prompts_that_are_late_alone_are_promised_no_rate_and_delay_the_others_as_before() -> None:
    arrived = arrivals(1200, 180, variation=2.0)
    few, many = (capacity(arrived=arrived, late_alone_share=share) for share in (0.05, 0.051))
    assert (few.meets_slo, few.late_alone_share) == (True, 0.0)
    assert (many.meets_slo, many.late_alone_share) == (False, 0.051)
    assert few == capacity(arrived=arrived)
    assert few.requests_per_second < many.requests_per_second < 1.5 * few.requests_per_second


def test_what_a_single_long_prompt_may_vary_by_counts_of_many_requests_alone() -> None:
    def rate(requests: int, variation: float) -> float:
        prompt, answer = 1200 * requests, 180 * requests
        squares = round(requests * 1200**2 * (1 + variation))
        arrived = ArrivedTokens(requests, prompt, answer, squares)
        return capacity(arrived=arrived).requests_per_second

    assert rate(100, 3.2) == rate(2000, 3.2) == rate(100, 2.0)
    assert rate(4000, 3.2) < 0.95 * rate(4000, 2.0)


def test_an_objective_that_no_request_meets_is_named_and_orders_no_fleet() -> None:
    missed = capacity(slo={"ttftP95": "1s", "itlP95": "1ms"})
    assert not missed.meets_slo
    assert missed.requests_per_second >= capacity().requests_per_second


# 4 requests at once with 100 tokens/s: an answer of 250 tokens ends every 2.5 s, and 60 tokens of a
# prompt are read in a step.
SLOW = SchedulerLimits(max_num_seqs=4, max_num_batched_tokens=64, tokens_per_second=100)
FAST = SchedulerLimits(max_num_seqs=128, max_num_batched_tokens=2048, tokens_per_second=6000)


@pytest.mark.parametrize(
    ("limits", "spec", "target"),
    [
        (FAST, {}, 4),
        (FAST, {"class": "Standard"}, 16),
        # (1 s - 20 steps of 33 ms) x 0.4 requests/s, less the tolerance of 10 %
        (SLOW, {}, 0.34 * 0.4 / 1.1),
        (SLOW, {"class": "Standard"}, 1.5 * 0.4 / 1.1),
        (SLOW, {"slo": {"ttftP95": "3s"}}, 2.34 * 0.4 / 1.1),
        (SLOW, {"slo": {"ttftP95": "600ms"}}, 0.1),
        (SLOW, {"scaling": {"queue": {"target": 9}}}, 9),
    ],
)
def test_without_a_target_as_many_may_wait_as_are_served_in_time(
    limits: SchedulerLimits, spec: dict[str, Any], target: float
) -> None:
    assert queue_target(a_spec(**spec), limits, 8192) == pytest.approx(target)


def test_by_default_a_service_follows_the_arrivals_at_the_gateway() -> None:
    rate = 3.1 * capacity_of_plan()
    demand = {CHAT: GatewayDemand(arrivals_per_second=rate)}
    scale = plan_of(a_fleet(SCALING, demand=demand)).service_plans[CHAT].scale
    assert scale.replicas > 3
    assert scale.reason == "DemandAboveCapacity"
    other = {"policy": "QueueAndActivity", "minReplicas": 1}
    usual = plan_of(a_fleet(other, demand=demand)).service_plans[CHAT].scale
    assert (usual.replicas, usual.assessment, usual.history.memory) == (1, None, None)


def capacity_of_plan() -> float:
    assessment = plan_of(a_fleet(SCALING)).service_plans[CHAT].scale.assessment
    assert isinstance(assessment, CapacityAssessment)
    return assessment.capacity.requests_per_second


def test_without_a_gateway_finished_requests_are_followed() -> None:
    pods = (a_pod("chat-0"),)
    readings = replace(readings_of(pods), finish_rates={CHAT: 3 * capacity_of_plan()})
    scale = plan_of(a_fleet(SCALING, pods=pods, readings=readings)).service_plans[CHAT].scale
    assert scale.replicas > 3
    assert "estimated from the engines" in scale.message


def test_requests_count_as_they_are_expected_when_they_come() -> None:
    short = SpeedReading(requests=1000, mean_input_tokens=800, mean_output_tokens=200)
    rate = capacity(short).requests_per_second
    pods = (a_pod("chat-0"),)
    readings = replace(readings_of(pods), speeds={CHAT: (short,)})

    def capacity_of(prompt: int, answer: int, requests: int = 60) -> VariantCapacity:
        tokens = ArrivedTokens(requests, prompt * requests, answer * requests)
        demand = {CHAT: GatewayDemand(arrivals_per_second=rate, tokens=tokens)}
        fleet = a_fleet(SCALING, pods=pods, readings=readings, demand=demand)
        assessment = plan_of(fleet).service_plans[CHAT].scale.assessment
        assert isinstance(assessment, CapacityAssessment)
        return assessment.capacity

    usual = capacity_of(800, 200)
    assert (usual.input_tokens, usual.output_tokens) == (800, 200)
    assert usual == capacity_of(10, 10, requests=49)
    assert capacity_of(800, 1000).requests_per_second < usual.requests_per_second / 2.5
    assert capacity_of(2400, 200).requests_per_second < usual.requests_per_second / 1.2
    # What ended is of another kind, and is no reason to wait until more has.
    assert capacity_of(400, 100).requests_per_second > 1.5 * usual.requests_per_second
    # Nothing is longer than the context.
    assert capacity_of(10**9, 10**9).input_tokens == 1


def test_prefixes_that_are_cached_no_more_count_within_the_minute() -> None:
    rate = 4 * capacity_of_plan()
    demand = {CHAT: GatewayDemand(arrivals_per_second=rate)}
    lengths = SpeedReading(requests=1000, mean_input_tokens=1600, mean_output_tokens=200)
    pods = (a_pod("chat-0"),)

    def replicas(cached: float, computed: float) -> int:
        rates = TokenRates(prompt=computed * rate, output=200 * rate)
        speeds = {CHAT: (replace(lengths, cached_share=cached),)}
        readings = replace(readings_of(pods), speeds=speeds, token_rates={CHAT: rates})
        fleet = a_fleet(SCALING, pods=pods, readings=readings, demand=demand)
        return plan_of(fleet).service_plans[CHAT].scale.replicas

    uncached = replicas(cached=0.0, computed=1600)
    assert replicas(cached=0.75, computed=400) < uncached
    assert replicas(cached=0.75, computed=1600) == uncached
    # More that is cached in one minute may be less in the next.
    assert replicas(cached=0.0, computed=400) == uncached


@pytest.mark.parametrize("prompt", [0.0, 0.4, 1e12])
@pytest.mark.parametrize("answer", [0.0, 0.4, 1e12])
@pytest.mark.parametrize("share", [None, 0.0, 1.0])
def test_absurd_lengths_of_an_engine_give_a_capacity(
    prompt: float, answer: float, share: float | None
) -> None:
    measured = SpeedReading(
        requests=500, mean_input_tokens=prompt, mean_output_tokens=answer, cached_share=share
    )
    carried = capacity(measured)
    assert 0 < carried.requests_per_second < math.inf
    assert 0 <= carried.cached_share <= 1


def test_a_cached_share_stays_while_it_is_not_measured() -> None:
    pods = (a_pod("chat-0"),)
    measured = SpeedReading(
        requests=500, mean_input_tokens=4000, mean_output_tokens=20, cached_share=0.75
    )
    readings = replace(readings_of(pods), speeds={CHAT: (measured,)})
    fleet = a_fleet(SCALING, pods=pods, readings=readings)
    before = plan_of(fleet)
    unread = replace(fleet, at=at(600), readings=Readings(at=at(600), problem="refused"))
    after = plan_of(unread, memory=PlanMemory(scaling_history=before.scaling_history))
    status = service_status(fleet, before.service_plans[CHAT], None, None)
    assert status.scaling is not None
    assert status.scaling.request_lengths is not None
    assert status.scaling.request_lengths.cached_input_tokens == 3000
    (service,) = fleet.services
    restarted = plan_of(replace(unread, services=(replace(service, status=status),)))
    for plan in (before, after, restarted):
        scale = plan.service_plans[CHAT].scale
        assert isinstance(scale.assessment, CapacityAssessment)
        assert scale.assessment.capacity.cached_share == 0.75


def test_the_tokens_of_few_requests_say_nothing_of_their_prompts() -> None:
    def computed(arrivals: float | None, finish_rate: float = 0.5) -> int:
        loaded = ServiceLoad(
            at=at(0),
            replicas=1,
            ready=1,
            waiting=0.0,
            running=0.0,
            activity=None,
            arrival_rate=arrivals,
            finish_rate=finish_rate,
            token_rates=TokenRates(prompt=900.0, output=300.0),
        )
        return computed_prompt_of(loaded)

    assert computed(1.0) == 900
    assert computed(2.0) == 450
    # A queue is worked off.
    assert computed(1.0, finish_rate=3.0) == 300
    assert [computed(0.5), computed(0.0), computed(None)] == [0] * 3


def test_time_alone_removes_replicas_although_no_reading_changes() -> None:
    pods = tuple(a_pod(f"chat-{index}") for index in range(3))
    readings = replace(readings_of(pods), finish_rates={CHAT: 0.0})
    fleet = a_fleet(SCALING, pods=pods, readings=readings)
    memory, replicas = PlanMemory(), 3
    for second in range(0, 500, 20):
        now = replace(fleet, at=at(second), readings=replace(readings, at=at(second)))
        plan = plan_of(now, memory=memory)
        memory = replace(memory, scaling_history=plan.scaling_history)
        replicas = plan.service_plans[CHAT].scale.replicas
        assert second >= 300 or replicas == 3
    assert replicas == 1


def test_explain_names_the_signal_the_capacity_and_the_number() -> None:
    demand = {CHAT: GatewayDemand(arrivals_per_second=0.5)}
    fleet = a_fleet(SCALING, demand=demand)
    decision = next(
        decision for decision in explain(fleet, plan_of(fleet), CHAT) if decision.topic == "scaling"
    )
    numbers = dict(decision.numbers)
    assert numbers["policy"] == "Capacity"
    assert numbers["arrivals"] == "0.50 requests/s at the gateway"
    assert numbers["needed"] == "1"
    assert f"{capacity_of_plan():.2f} requests/s per replica" in numbers["capacity"]
    assert any("may add replicas at once" in sentence for sentence in decision.would_change)


def test_explain_and_the_message_say_how_much_of_the_input_is_cached() -> None:
    pods = (a_pod("chat-0"),)
    lengths = SpeedReading(requests=500, mean_input_tokens=800, mean_output_tokens=200)

    def texts(share: float) -> tuple[str, str]:
        speeds = {CHAT: (replace(lengths, cached_share=share),)}
        readings = replace(readings_of(pods), speeds=speeds)
        demand = {CHAT: GatewayDemand(arrivals_per_second=0.5)}
        fleet = a_fleet(SCALING, pods=pods, readings=readings, demand=demand)
        plan = plan_of(fleet)
        numbers = next(
            decision.numbers
            for decision in explain(fleet, plan, CHAT)
            if decision.topic == "scaling"
        )
        return plan.service_plans[CHAT].scale.message, dict(numbers)["capacity"]

    message, numbers = texts(0.75)
    assert message.endswith("/s with 75% of the input cached")
    assert numbers.endswith("of 800 input and 200 output tokens, 75% of the input cached")
    assert not any("cached" in text for text in texts(0.004))


def test_explain_says_which_arrivals_would_add_replicas_where_none_come() -> None:
    fleet = a_fleet(SCALING, demand={CHAT: GatewayDemand(arrivals_per_second=0.0)})
    decision = next(
        decision for decision in explain(fleet, plan_of(fleet), CHAT) if decision.topic == "scaling"
    )
    assert decision.would_change[0].startswith(f"more than {capacity_of_plan():.2f} requests/s")
    assert "spec.scaling.minReplicas below 1" in decision.would_change[1]


def test_without_readings_requests_are_as_long_as_they_were() -> None:
    pods = (a_pod("chat-0"),)
    measured = SpeedReading(requests=500, mean_input_tokens=4000, mean_output_tokens=20)
    readings = replace(readings_of(pods), speeds={CHAT: (measured,)})
    fleet = a_fleet(SCALING, pods=pods, readings=readings)
    before = plan_of(fleet)
    later = Readings(at=at(600), problem="connection refused")
    after = plan_of(
        replace(fleet, at=at(600), readings=later),
        memory=PlanMemory(scaling_history=before.scaling_history),
    )
    for plan in (before, after):
        assessment = plan.service_plans[CHAT].scale.assessment
        assert isinstance(assessment, CapacityAssessment)
        carried = assessment.capacity
        assert (carried.input_tokens, carried.output_tokens) == (4000, 20)


def test_requests_are_as_long_as_another_variant_answers_them() -> None:
    """While reserved nodes are taken, the reference variant serves none."""
    idle = SpeedReading(variant="a100-1g-10gb", requests=0)
    busy = SpeedReading(
        variant="burst-1g-10gb", requests=500, mean_input_tokens=4000, mean_output_tokens=20
    )
    pods = (a_pod("chat-0"),)
    readings = replace(readings_of(pods), speeds={CHAT: (idle, busy)})
    fleet = a_fleet(SCALING, pods=pods, readings=readings)
    assessment = plan_of(fleet).service_plans[CHAT].scale.assessment
    assert isinstance(assessment, CapacityAssessment)
    carried = assessment.capacity
    assert (carried.input_tokens, carried.output_tokens) == (4000, 20)


def test_a_restarted_operator_without_readings_counts_with_the_lengths_of_the_status() -> None:
    """Seen: 4 replicas wanted 6 after a restart in an outage of Prometheus."""
    pods = (a_pod("chat-0"),)
    measured = SpeedReading(requests=500, mean_input_tokens=4000, mean_output_tokens=20)
    readings = replace(readings_of(pods), speeds={CHAT: (measured,)})
    fleet = a_fleet(SCALING, pods=pods, readings=readings)
    status = status_after(fleet)
    lost = Readings(at=at(600), problem="connection refused")
    (service,) = fleet.services
    restarted = replace(
        fleet, at=at(600), readings=lost, services=(replace(service, status=status),)
    )
    assessment = plan_of(restarted).service_plans[CHAT].scale.assessment
    assert isinstance(assessment, CapacityAssessment)
    carried = assessment.capacity
    assert (carried.input_tokens, carried.output_tokens) == (4000, 20)


@pytest.mark.parametrize(("output_tokens", "written"), [(24, False), (25, True)])
def test_lengths_are_written_when_they_differ_by_more_than_a_fifth(
    output_tokens: int, written: bool
) -> None:
    pods = (a_pod("chat-0"),)

    def fleet(tokens: int) -> Snapshot:
        measured = SpeedReading(requests=500, mean_input_tokens=4000, mean_output_tokens=tokens)
        readings = replace(readings_of(pods), speeds={CHAT: (measured,)})
        return a_fleet(SCALING, pods=pods, readings=readings)

    before = status_after(fleet(20))
    (service,) = fleet(output_tokens).services
    later = replace(fleet(output_tokens), services=(replace(service, status=before),))
    after = status_after(later)
    assert (after.scaling != before.scaling) == written


def test_without_readings_the_policy_removes_nothing() -> None:
    pods = tuple(a_pod(f"chat-{index}") for index in range(3))
    readings = Readings(at=at(0), problem="connection refused")
    scale = plan_of(a_fleet(SCALING, pods=pods, readings=readings)).service_plans[CHAT].scale
    assert (scale.replicas, scale.reason) == (3, "FailedGetMetrics")


LATE = TtftShares(at(600), in_time=0.9, early=0.8)


def observed(
    times: float,
    *,
    ready_at: float = 0,
    ttft: TtftShares | None = LATE,
    step_tokens: int | None = None,
) -> VariantCapacity:
    """Return what a replica carries whose device shows steps of so many times the predicted.

    Its engine may have another limit of a step's tokens than the next ones.
    """
    choice, reading = a_choice(), replace(a_speed_reading(), prompt_tokens=4000)
    limits = choice.fit.limits
    limits = replace(limits, max_num_batched_tokens=step_tokens or limits.max_num_batched_tokens)
    predicted = predicted_steps(replace(choice.fit, limits=limits), reading, 8.0, 200.0)
    assert predicted is not None
    steps = StepReading(
        steps=STEP_SECONDS / (predicted.mean * times),
        sequences=8.0,
        prefill_tokens=200.0,
        activity=1.0,
    )
    pod = replace(
        a_pod("chat-0"),
        ready_since=at(ready_at),
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=step_tokens,
    )
    readings = ServiceReadings(
        is_usable=True, pods={pod.ref: PodReading(steps=steps)}, speeds=(reading,)
    )
    service = a_service()
    assert service.spec is not None
    variant = ObservedVariant(
        service=service, spec=service.spec, choice=choice, pods=(pod,), readings=readings
    )
    load = ServiceLoad(
        at=at(600), replicas=1, ready=1, serving=1, waiting=0, running=4, activity=1.0, ttft=ttft
    )
    return observed_capacity(variant, load, ScalingHistory())


def test_slow_devices_carry_less_in_proportion_beyond_the_tolerance() -> None:
    usual, twice, thrice = (observed(times) for times in (1.0, 2.0, 3.0))
    assert usual.slow is None
    assert twice.slow is not None
    assert twice.slow.ratio == pytest.approx(2.0)
    assert twice.slow.source == "DeviceActivity"
    assert twice.requests_per_second < usual.requests_per_second * 1.15 / 2 * 1.001
    assert thrice.requests_per_second == pytest.approx(twice.requests_per_second * 2 / 3)
    assert thrice.prompts_per_second == pytest.approx(twice.prompts_per_second * 2 / 3)
    assert observed(1.14).requests_per_second == usual.requests_per_second


def test_steps_are_predicted_by_the_limits_of_the_engines_that_run() -> None:
    assert observed(1.1, step_tokens=8192).slow is None
    assert observed(1.2, step_tokens=8192).slow is not None


def test_a_replica_counts_once_all_of_two_minutes_are_its_own() -> None:
    assert observed(2.0, ready_at=600 - 150).slow is not None
    assert observed(2.0, ready_at=600 - 149).slow is None


def test_without_a_gateway_the_latency_between_tokens_corrects_alone() -> None:
    assert observed(2.0, ttft=None).slow is None
