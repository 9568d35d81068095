"""Capacity in closed form, compared with the engine's state machine at the same arrivals."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.hardware.device import slice_hardware, whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.perf import StepTime, step_time
from tessera.domain.perf.capacity import LatencySlo, ReplicaLimits, RequestLength, capacity_at_slo
from tessera_lab.engine import EngineCore
from tessera_lab.engine.requests import EngineLimits, EngineRequest
from tests.builders import A100, H100

ALIKE = (RequestLength(input_tokens=1200, output_tokens=250),)
MIXED = (
    RequestLength(input_tokens=128, output_tokens=60, weight=3),
    RequestLength(input_tokens=600, output_tokens=200, weight=4),
    RequestLength(input_tokens=1500, output_tokens=300, weight=2),
    RequestLength(input_tokens=5000, output_tokens=400, weight=0.6),
)
TIGHT = LatencySlo(first_token=1.0, inter_token=0.033)
LOOSE = LatencySlo(first_token=2.0, inter_token=0.2)


def a_step(name: str, product: str, profile: str | None = None) -> StepTime:
    gpu = products()[product]
    hardware = slice_hardware(gpu, profile) if profile else whole_gpu_hardware(gpu, 1)
    assert hardware is not None
    return step_time(models()[name], None, hardware)


B8_H100 = a_step("meta-llama/Llama-3.1-8B-Instruct", H100)
B8_A100 = a_step("meta-llama/Llama-3.1-8B-Instruct", A100)
B1_SLICE = a_step("meta-llama/Llama-3.2-1B-Instruct", A100, "1g.10gb")
WIDE = ReplicaLimits(max_num_seqs=156, max_num_batched_tokens=1024, kv_tokens=440_000)
NARROW = ReplicaLimits(max_num_seqs=44, max_num_batched_tokens=256, kv_tokens=430_000)
SMALL = ReplicaLimits(max_num_seqs=39, max_num_batched_tokens=256, kv_tokens=150_000)


def simulated_percentiles(
    step: StepTime, limits: ReplicaLimits, lengths: tuple[RequestLength, ...], rate: float
) -> tuple[float, float]:
    """95th percentiles of first tokens and of gaps, of 700 requests that come by chance."""
    rng = random.Random(3)  # noqa: S311 - not a secret
    now, coming = 0.0, list[tuple[float, RequestLength]]()
    for _ in range(700):
        now += rng.expovariate(rate)
        coming.append((now, rng.choices(lengths, [length.weight for length in lengths])[0]))
    engine_limits = EngineLimits(
        max_model_len=8192,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        blocks=limits.kv_tokens // 16 + 1,
    )
    engine, now, number = EngineCore(engine_limits, step), 0.0, 0
    first, gaps = list[float](), list[float]()
    while number < len(coming) or not engine.idle:
        while number < len(coming) and coming[number][0] <= now:
            length = coming[number][1]
            engine.submit(
                EngineRequest(
                    id=number, prompt_tokens=length.input_tokens, output_tokens=length.output_tokens
                )
            )
            number += 1
        done = engine.step()
        if done is None:
            now = coming[number][0]
            continue
        now += done.seconds
        first += [now - coming[request_id][0] for request_id in done.first]
        if number < len(coming):
            gaps += [done.seconds] * (len(done.emitted) - len(done.first))
    return sorted(first)[int(0.95 * len(first))], sorted(gaps)[int(0.95 * len(gaps))]


@pytest.mark.parametrize(
    ("step", "room", "lengths", "promise"),
    [
        (B8_H100, WIDE, ALIKE, TIGHT),
        (B8_H100, WIDE, MIXED, LOOSE),
        (B8_A100, NARROW, ALIKE, LOOSE),
        (B8_A100, NARROW, MIXED, TIGHT),
        (B1_SLICE, SMALL, MIXED, TIGHT),
        (B1_SLICE, SMALL, ALIKE, LOOSE),
    ],
)
def test_four_fifths_of_the_capacity_meet_the_slo_and_five_quarters_break_it(
    step: StepTime, room: ReplicaLimits, lengths: tuple[RequestLength, ...], promise: LatencySlo
) -> None:
    rate = capacity_at_slo(step, room, lengths, promise).requests_per_second
    first, gap = simulated_percentiles(step, room, lengths, 0.8 * rate)
    assert first <= promise.first_token
    assert gap <= promise.inter_token
    first, gap = simulated_percentiles(step, room, lengths, 1.25 * rate)
    assert first > promise.first_token or gap > promise.inter_token


def test_output_tokens_are_requests_times_the_mean_answer() -> None:
    capacity = capacity_at_slo(B8_H100, WIDE, MIXED, TIGHT)
    mean = (3 * 60 + 4 * 200 + 2 * 300 + 0.6 * 400) / 9.6
    assert capacity.output_tokens_per_second == pytest.approx(mean * capacity.requests_per_second)


@pytest.mark.parametrize(
    ("room", "promise", "bound"),
    [
        (WIDE, LOOSE, "max_num_seqs"),
        (replace(WIDE, max_num_batched_tokens=8192), TIGHT, "itl"),
        (replace(NARROW, max_num_batched_tokens=128), LOOSE, "ttft"),
        (replace(WIDE, kv_tokens=20_000), LOOSE, "kv_cache"),
    ],
)
def test_the_bound_says_what_more_would_break(
    room: ReplicaLimits, promise: LatencySlo, bound: str
) -> None:
    assert capacity_at_slo(B8_A100, room, ALIKE, promise).limiting_factor == bound


def test_an_slo_that_no_request_meets_leaves_no_capacity() -> None:
    hopeless = LatencySlo(first_token=1.0, inter_token=0.005)
    capacity = capacity_at_slo(B8_A100, NARROW, ALIKE, hopeless)
    assert capacity.requests_per_second == pytest.approx(0, abs=0.01)
    assert capacity.limiting_factor == "itl"


def test_lengths_without_weight_are_refused() -> None:
    with pytest.raises(ValueError, match="weights"):
        capacity_at_slo(B8_A100, NARROW, (replace(ALIKE[0], weight=0),), TIGHT)


@given(
    ttft=st.floats(0.2, 5.0),
    gap=st.floats(0.015, 0.3),
    looser=st.floats(1.0, 3.0),
    shorter=st.integers(0, 1000),
)
def test_a_looser_slo_and_shorter_prompts_never_lower_the_capacity(
    ttft: float, gap: float, looser: float, shorter: int
) -> None:
    def rate(lengths: tuple[RequestLength, ...], times: float) -> float:
        promise = LatencySlo(first_token=ttft * times, inter_token=gap * times)
        return capacity_at_slo(B8_H100, WIDE, lengths, promise).requests_per_second

    usual = rate(ALIKE, 1)
    short = (replace(ALIKE[0], input_tokens=1200 - shorter),)
    assert rate(ALIKE, looser) >= usual * 0.99
    assert rate(short, 1) >= usual * 0.99
