"""What fits where, and what it then gives."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.hardware.device import Hardware, slice_hardware, whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import (
    ReplicaFit,
    ReplicaMisfit,
    attainable_objectives,
    plan_device_memory,
    size,
)
from tests.builders import A100, H100

B1 = "meta-llama/Llama-3.2-1B-Instruct"
B8 = "meta-llama/Llama-3.1-8B-Instruct"
B70 = "meta-llama/Llama-3.1-70B-Instruct"


def a_slice(profile: str, product: str = A100) -> Hardware:
    hardware = slice_hardware(products()[product], profile)
    assert hardware is not None
    return hardware


def demand(model: str, precision: str | None = None, length: int = 8192, ms: int = 33) -> Demand:
    return Demand(
        shape=models()[model],
        precision=precision,
        max_model_len=length,
        input_tokens=1200,
        output_tokens=250,
        ttft=timedelta(seconds=1),
        inter_token=timedelta(milliseconds=ms),
    )


@pytest.mark.parametrize(
    ("model", "hardware", "fits"),
    [
        (B1, a_slice("1g.10gb"), True),
        (B8, a_slice("1g.10gb"), False),
        (B8, a_slice("2g.20gb"), False),
        (B8, a_slice("3g.40gb"), True),
        (B8, whole_gpu_hardware(products()[H100], 1), True),
        (B70, whole_gpu_hardware(products()[H100], 1), False),
        (B70, whole_gpu_hardware(products()[H100], 4), True),
    ],
)
def test_a_model_fits_where_weights_reserve_and_one_long_request_go_in(
    model: str, hardware: Hardware, fits: bool
) -> None:
    assert isinstance(size(demand(model), hardware), ReplicaFit) is fits


def test_a_70b_in_fp8_with_long_context_needs_two_h100() -> None:
    single, pair = (whole_gpu_hardware(products()[H100], count) for count in (1, 2))
    assert isinstance(size(demand(B70, "fp8", 16384), single), ReplicaMisfit)
    assert isinstance(size(demand(B70, "fp8", 16384), pair), ReplicaFit)


def test_a_misfit_says_which_context_and_which_device_would_do() -> None:
    fit = size(demand(B8), a_slice("2g.20gb"))
    assert isinstance(fit, ReplicaMisfit)
    assert fit.kv_tokens == 7616
    larger = replace(a_slice("2g.20gb"), memory_mib=fit.needed_mib)
    assert isinstance(size(demand(B8, ms=100), larger), ReplicaFit)


def test_a_model_that_fits_but_misses_the_slo_is_a_misfit_without_missing_memory() -> None:
    fit = size(demand(B8, ms=15), a_slice("3g.40gb"))
    assert isinstance(fit, ReplicaMisfit)
    assert (fit.needed_mib, round(fit.inter_token_ms)) == (0, 23)


@pytest.mark.parametrize(
    ("asked", "hardware", "pairs"),
    [
        (demand(B8, ms=15), a_slice("3g.40gb"), 1),
        (demand(B70, ms=15), whole_gpu_hardware(products()[H100], 4), 1),
        # Either objective alone is possible.
        (replace(demand(B8, ms=30), ttft=timedelta(milliseconds=500)), a_slice("3g.40gb"), 2),
        # Prompts take too long for the ITL as well.
        (replace(demand(B8, length=32768), input_tokens=30_000), a_slice("3g.40gb"), 1),
    ],
)
def test_a_replica_that_is_too_slow_keeps_the_named_objectives_and_none_tighter(
    asked: Demand, hardware: Hardware, pairs: int
) -> None:
    def fits(ttft: timedelta, inter_token: timedelta) -> bool:
        relaxed = replace(asked, ttft=ttft, inter_token=inter_token)
        return isinstance(size(relaxed, hardware), ReplicaFit)

    attainable = attainable_objectives(asked, hardware)
    assert len(attainable) == pairs
    millisecond = timedelta(milliseconds=1)
    for ttft, inter_token in attainable:
        assert fits(ttft, inter_token)
        if inter_token != asked.inter_token:
            assert not fits(ttft, inter_token - millisecond)
        if ttft != asked.ttft:
            assert not fits(ttft - millisecond, inter_token)


def test_a_model_of_one_token_of_context_has_no_room_for_a_prompt_and_is_planned() -> None:
    hour = timedelta(hours=1)
    shortest = replace(demand(B1, length=1), input_tokens=0, output_tokens=1, ttft=hour)
    assert shortest.resident_tokens == 1
    assert isinstance(size(shortest, a_slice("1g.10gb")), ReplicaFit)


@given(
    model=st.sampled_from([name for name, shape in sorted(models().items()) if not shape.pooling]),
    profile=st.sampled_from(["1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"]),
    product=st.sampled_from([A100, H100]),
    milliseconds=st.integers(5, 200),
    length=st.integers(256, 32768),
)
def test_a_fit_keeps_memory_context_and_slo(
    model: str, profile: str, product: str, milliseconds: int, length: int
) -> None:
    wanted, hardware = demand(model, None, length, milliseconds), a_slice(profile, product)
    fit = size(wanted, hardware)
    plan = plan_device_memory(wanted.shape, None, hardware, context=length)
    if isinstance(fit, ReplicaMisfit):
        assert (fit.needed_mib > 0) is (plan.kv_tokens < length)
    else:
        assert plan.weights_mib + plan.reserve_mib + plan.cache_mib <= plan.usable_mib
        assert plan.kv_tokens >= length
        limits = fit.limits
        assert 1 <= limits.max_num_seqs < limits.max_num_batched_tokens
        full = fit.step.seconds(
            decoding=limits.max_num_seqs,
            kv_tokens=limits.max_num_seqs * wanted.resident_tokens,
            prefill_tokens=limits.max_num_batched_tokens - limits.max_num_seqs,
        )
        assert full * 1e3 <= milliseconds + 1e-6
        assert limits.tokens_per_second > 0


@given(mib=st.integers(4_000, 80_000), more=st.integers(1, 40_000))
def test_more_memory_never_holds_fewer_tokens(mib: int, more: int) -> None:
    small = replace(a_slice("3g.40gb"), memory_mib=mib)
    large = replace(small, memory_mib=mib + more)
    shape = models()[B8]
    assert (
        plan_device_memory(shape, None, small).kv_tokens
        <= plan_device_memory(shape, None, large).kv_tokens
    )
