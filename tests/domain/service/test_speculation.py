"""Speculation is on while it gains, is switched off with a reason, and does not flap."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import Speculating
from tessera.api.service_status import SpeculationStatus
from tessera.domain.aspects.speculation import decode_share
from tessera.domain.explain.explain import explain
from tessera.domain.hardware.device import whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.observed.drafts import DraftCounts, TemperatureClass
from tessera.domain.observed.snapshot import Ref, SpeedReading
from tessera.domain.perf.engine_terms import engine_terms
from tessera.domain.perf.speculation import expected_tokens
from tessera.domain.perf.step import StepTime
from tessera.domain.placement.checks import check, shape_of
from tessera.domain.scaling.policies.capacity.variant_capacity import variant_capacity
from tessera.domain.service.speculation import (
    LOSING_TIME,
    OFF_TIME,
    break_even_sequences,
    measured_speculation,
    next_speculation_status,
    speculation_verdict,
    without_losing_speculation,
)
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import ReplicaFit, size
from tests.builders import (
    A100,
    H100,
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    at,
    plan_of,
    readings_of,
)

B70, B8 = "hf://meta-llama/Llama-3.1-70B-Instruct", "hf://meta-llama/Llama-3.1-8B-Instruct"
DRAFTED = {"speculation": {"method": "DraftModel", "model": {"uri": B8}}}
N_GRAMS = {"speculation": {"method": "NGram", "tokens": 3}}
SMALL_DRAFT = {
    "speculation": {
        "method": "DraftModel",
        "model": {"uri": "hf://meta-llama/Llama-3.2-1B-Instruct"},
    }
}
CHAT, H100_VARIANT = Ref("team-a", "chat"), "h100-1gpu"
RESIDENT = 1500
FEW, MANY = 4.0, 200.0


def a_speculating_spec(**engine: Any) -> InferenceServiceSpec:
    return a_spec(B70, engine=engine or DRAFTED)


def fit_of(spec: InferenceServiceSpec) -> ReplicaFit:
    shape = shape_of(spec)
    assert shape is not None
    demand = Demand(
        shape=shape,
        precision=None,
        max_model_len=8192,
        input_tokens=1200,
        output_tokens=250,
        ttft=timedelta(seconds=10),
        inter_token=timedelta(seconds=1),
        engine=engine_terms(spec.engine),
    )
    fit = size(demand, whole_gpu_hardware(products()[A100], 4))
    assert isinstance(fit, ReplicaFit)
    return fit


SPEC = a_speculating_spec()
FIT = fit_of(SPEC)


def a_reading(acceptance: float, running: float = FEW, tokens: int = 5, **fields: Any) -> Any:
    """Five minutes in which every sequence of every step drafted `tokens` tokens."""
    sequences = 30_000.0
    accepted = sequences * (expected_tokens(acceptance, tokens) - 1)
    return SpeedReading(
        **{
            "median_running": running,
            "drafts": sequences,
            "drafted_tokens": sequences * tokens,
            "accepted_tokens": accepted,
            "tokens_per_second": (sequences + accepted) / 300,
            "running": running,
            "kv_usage": running * RESIDENT / 100_000,
            "kv_tokens": 100_000,
            **fields,
        }
    )


def after(
    *readings: tuple[float, SpeedReading],
    status: SpeculationStatus | None = None,
    spec: InferenceServiceSpec = SPEC,
) -> SpeculationStatus:
    """Return the status after readings at these minutes."""
    for minute, reading in readings:
        planned = without_losing_speculation(spec, status)
        status = next_speculation_status(planned, FIT, reading, status, at(minute * 60))
    assert status is not None
    return status


def minutes(span: timedelta) -> float:
    return span / timedelta(minutes=1)


LOSING = minutes(LOSING_TIME)
LOW = a_reading(0.4)
GOOD = a_reading(0.7)
BUSY = a_reading(0.7, MANY)


def test_the_acceptance_is_assumed_and_said_so_until_it_is_measured() -> None:
    status = after((0, SpeedReading()))
    assert (status.enabled, status.reason, status.acceptance) == (
        *(True, Speculating.ACCEPTANCE_ASSUMED),
        None,
    )
    assert "assume an acceptance of 0.61" in status.message


def test_the_acceptance_is_that_of_one_token_not_the_share_of_all() -> None:
    measurement = measured_speculation(FIT.step, GOOD, RESIDENT)
    assert measurement is not None
    assert measurement.acceptance == pytest.approx(0.7, abs=1e-6)
    assert measurement.accepted_tokens / measurement.drafted_tokens == pytest.approx(
        0.388, abs=1e-3
    )
    assert measurement.tokens_per_step == pytest.approx(2.9412, abs=1e-4)


@pytest.mark.parametrize(
    ("reading", "reason"),
    [
        (GOOD, Speculating.FASTER),
        (a_reading(0.61), Speculating.FASTER),
        (a_reading(0.59), Speculating.LOSING),
        (BUSY, Speculating.LOSING),
        (a_reading(0.4, drafted_tokens=999.0), Speculating.ACCEPTANCE_ASSUMED),
        (a_reading(0.4, median_running=None), Speculating.ACCEPTANCE_ASSUMED),
        (a_reading(0.4, drafts=0.0), Speculating.ACCEPTANCE_ASSUMED),
    ],
)
def test_a_first_reading_switches_nothing_off(reading: SpeedReading, reason: Speculating) -> None:
    status = after((0, reading))
    assert (status.enabled, status.reason) == (True, reason)


@pytest.mark.parametrize(
    ("reading", "reason"),
    [(LOW, Speculating.LOW_ACCEPTANCE), (BUSY, Speculating.HIGH_CONCURRENCY)],
)
def test_readings_that_agree_for_15_minutes_switch_it_off(
    reading: SpeedReading, reason: Speculating
) -> None:
    assert after((0, reading), (LOSING - 1, reading)).enabled
    status = after((0, reading), (LOSING, reading))
    assert (status.enabled, status.reason) == (False, reason)
    assert "spec.engine.speculation" in status.message
    assert not speculation_verdict(status).reason.is_true


@pytest.mark.parametrize("between", [GOOD, SpeedReading()])
def test_a_reading_that_disagrees_starts_the_15_minutes_again(between: SpeedReading) -> None:
    assert after((0, LOW), (10, between), (LOSING, LOW), (LOSING + 10, LOW)).enabled
    assert not after((0, LOW), (10, between), (LOSING, LOW), (2 * LOSING, LOW)).enabled


def test_switched_off_it_drafts_no_tokens_until_an_edit() -> None:
    status = after((0, LOW), (LOSING, LOW))
    planned = without_losing_speculation(SPEC, status).engine
    assert (engine_terms(planned).draft_tokens, engine_terms(planned).draft) == (0, None)
    edited = a_speculating_spec(
        speculation={"method": "DraftModel", "tokens": 3, "model": {"uri": B8}}
    )
    assert without_losing_speculation(edited, status) is edited
    assert after((99, SpeedReading()), status=status, spec=edited).enabled


def test_another_model_is_tried_again() -> None:
    off = after((0, LOW), (LOSING, LOW))
    other = a_spec("hf://meta-llama/Llama-3.3-70B-Instruct", engine=DRAFTED)
    assert without_losing_speculation(other, off) is other


def test_a_low_acceptance_stays_off_however_few_requests_run() -> None:
    off = after((0, LOW), (LOSING, LOW))
    assert after((10 * minutes(OFF_TIME), a_reading(0.9, 1.0)), status=off) is off


@pytest.mark.parametrize(
    ("later", "running", "enabled"),
    [
        (OFF_TIME - timedelta(minutes=1), 1.0, False),
        (OFF_TIME, 1.0, True),
        (OFF_TIME, MANY, False),
    ],
)
def test_after_a_day_with_few_requests_it_is_on_again(
    later: timedelta, running: float, enabled: bool
) -> None:
    off = after((0, BUSY), (LOSING, BUSY))
    reading = SpeedReading(median_running=running)
    assert after((LOSING + minutes(later), reading), status=off).enabled is enabled


def test_just_below_the_break_even_it_stays_off() -> None:
    off = after((0, BUSY), (LOSING, BUSY))
    assert off.break_even is not None
    reading = SpeedReading(median_running=off.break_even - 1.0)
    assert not after((LOSING + minutes(OFF_TIME), reading), status=off).enabled


def test_load_around_the_break_even_changes_it_once_a_day_at_most() -> None:
    status, changes = None, 0
    for minute in range(0, 7 * 24 * 60, 5):
        reading = BUSY if (minute // 60) % 2 else a_reading(0.7, 1.0)
        last = status
        status = after((minute, reading), status=status)
        changes += last is not None and last.enabled is not status.enabled
    assert changes <= 14


def test_readings_that_vary_little_write_no_status() -> None:
    status = after((0, GOOD))
    assert after((5, a_reading(0.72, 5.0)), status=status) is status
    assert after((5, a_reading(0.78, 5.0)), status=status) is not status


def test_without_speculation_in_the_spec_there_is_no_status() -> None:
    status = after((0, GOOD))
    assert next_speculation_status(a_spec(B70), FIT, GOOD, status, at(60)) is None


def test_the_break_even_is_where_the_gain_ends() -> None:
    count = break_even_sequences(FIT.step, RESIDENT)
    gains = [FIT.step.decode_gain(each, each * RESIDENT) for each in (count - 1, count)]
    assert gains[0] >= 1 > gains[1]


# A rule of thumb has speculation off from 50 running requests on. What is computed depends on the
# draft and its acceptance: a draft that costs next to nothing gains for longer.
@pytest.mark.parametrize(("acceptance", "count"), [(0.6, 37), (0.7, 62), (0.8, 105)])
def test_the_break_even_is_around_the_rule_of_thumb(acceptance: float, count: int) -> None:
    step: StepTime = FIT.step.with_accepted(expected_tokens(acceptance, 5) - 1)
    assert break_even_sequences(step, RESIDENT) == count


@pytest.mark.parametrize(
    "counted",
    [
        {"accepted_tokens": 1e12},
        {"drafted_tokens": 1e12, "accepted_tokens": 1e12},
        {"drafts": 1e-3, "accepted_tokens": 1e12},
        {"tokens_per_second": 0.0},
    ],
)
def test_what_engines_count_yields_no_more_than_was_asked_for(counted: dict[str, float]) -> None:
    measurement = measured_speculation(FIT.step, replace(GOOD, **counted), RESIDENT)
    assert measurement is not None
    assert 0 <= measurement.acceptance <= 1
    assert 1 <= measurement.tokens_per_step <= 6


def test_n_grams_that_draft_for_few_sequences_cost_as_little() -> None:
    spec = a_speculating_spec(**N_GRAMS)
    step = fit_of(spec).step
    always = a_reading(0.7, 40.0, tokens=3)
    seldom = replace(always, tokens_per_second=10 * (always.tokens_per_second or 0))
    dense, sparse = (measured_speculation(step, each, RESIDENT) for each in (always, seldom))
    assert dense is not None
    assert sparse is not None
    assert sparse.acceptance == dense.acceptance
    assert 1 < sparse.tokens_per_step < 1.2 < dense.tokens_per_step
    assert 0.95 < sparse.gain < dense.gain


def test_memory_holds_the_draft_and_limits_leave_room_for_its_tokens() -> None:
    plain, drafted = fit_of(a_spec(B70)), FIT
    assert drafted.memory.reserve_mib > plain.memory.reserve_mib
    assert drafted.memory.kv_tokens < plain.memory.kv_tokens
    limits = drafted.limits
    assert limits.max_num_seqs * 6 < limits.max_num_batched_tokens
    assert limits.max_num_seqs < plain.limits.max_num_seqs
    assert limits.decode_tokens == 6


def test_switched_off_it_is_planned_as_if_it_were_not_asked_for() -> None:
    status = after((0, LOW), (LOSING, LOW))
    assert fit_of(without_losing_speculation(SPEC, status)) == fit_of(a_spec(B70))


def test_the_measured_acceptance_decides_the_capacity() -> None:
    def rate(tokens_per_step: float | None) -> float:
        shape = shape_of(SPEC)
        assert shape is not None
        return variant_capacity(
            SPEC,
            shape,
            FIT,
            reading=SpeedReading(),
            measured_ratio=None,
            tokens_per_step=tokens_per_step,
            lead=timedelta(seconds=60),
        ).requests_per_second

    assumed = FIT.step.tokens_per_step
    assert rate(1.2) < rate(None) == rate(assumed) < rate(4.0)


@pytest.mark.parametrize(
    ("dtype", "size", "is_gateway_read"),
    [("Auto", "32768 bytes", True), ("fp8", "16384 bytes", False)],
)
def test_explain_has_cost_gain_and_the_acceptance_by_temperature(
    dtype: str, size: str, is_gateway_read: bool
) -> None:
    pods = (a_pod("chat-0", variant=H100_VARIANT),)
    drafts = (
        DraftCounts(
            temperature=TemperatureClass.GREEDY,
            drafts=1000,
            drafted_tokens=5000,
            accepted_tokens=5000,
        ),
        DraftCounts(
            temperature=TemperatureClass.HIGH, drafts=1000, drafted_tokens=5000, accepted_tokens=200
        ),
    )
    readings = readings_of(
        pods,
        speeds={CHAT: (a_reading(0.7, variant=H100_VARIANT),)},
        speeds_at=at(0),
        drafts={CHAT: drafts} if is_gateway_read else {},
    )
    fleet = a_snapshot(
        a_service(spec=a_spec(B8, replicas=1, engine={**SMALL_DRAFT, "kvCacheDtype": dtype})),
        pods=pods,
        pools=(a_pool("h100"),),
        nodes=(a_node("h100", whole=1, product=H100),),
        readings=readings,
    )
    (decision,) = [
        each for each in explain(fleet, plan_of(fleet), CHAT) if each.topic == "speculation"
    ]
    numbers = dict(decision.numbers)
    assert decision.reason == "FasterDecoding"
    assert "assumed" in numbers["planned"]
    assert "running request" in numbers["planned gain"]
    assert f"a token {size} of its KV cache" in numbers["draft model"]
    if is_gateway_read:
        assert numbers["acceptance at temperature 0"].startswith("1.00, of 5000 drafted tokens")
        assert numbers["acceptance at temperatures above 0.8"].startswith("0.17, of 5000 ")
        assert decision.would_change[-1].endswith("requests at temperatures above 0.8")
    else:
        assert "the gateway alone" in decision.would_change[-1]


@pytest.mark.parametrize(("answer", "advised"), [(20, True), (2000, False)])
def test_where_prompts_take_the_time_explain_says_so(answer: int, advised: bool) -> None:
    reading = SpeedReading(
        mean_input_tokens=4000.0, mean_output_tokens=float(answer), median_running=4.0
    )
    assert (decode_share(SPEC, FIT, reading) < 0.5) is advised


def placed(spec: InferenceServiceSpec, gpus: int = 1) -> tuple[str, str]:
    fleet = a_snapshot(
        a_service(spec=spec),
        pools=(a_pool("h100"),),
        nodes=(a_node("h100", whole=gpus, product=H100),),
    )
    verdict = plan_of(fleet).service_plans[CHAT].placement.verdict
    return verdict.reason, verdict.message


def test_drafts_that_make_steps_too_long_are_named() -> None:
    slow = {"speculation": {"method": "DraftModel", "tokens": 8, "model": {"uri": B8}}}
    spec = a_spec(B8, replicas=1, slo={"itlP95": "40ms"}, engine=slow)
    reason, message = placed(spec)
    assert reason == "EngineLimitsUnmet"
    assert message.startswith("spec.engine.speculation: ")
    assert "8 drafted tokens" in message


def test_a_step_must_hold_the_drafted_tokens_of_all_sequences() -> None:
    options = {**N_GRAMS, "maxNumSeqs": 100, "maxNumBatchedTokens": 400}
    ((field, message),) = [
        (each.field, each.message) for each in check(a_spec(B8, engine=options), {})
    ]
    assert field == "spec.engine.maxNumBatchedTokens"
    assert "3 drafted tokens each" in message
    assert "401" in message
