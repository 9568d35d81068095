"""What a model that generates no text needs, and how many tokens it then reads."""

from dataclasses import replace
from datetime import timedelta

import pytest

from tessera.api.model_files import ModelShape
from tessera.domain.hardware.device import Hardware, slice_hardware, whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.perf.engine_terms import EngineTerms
from tessera.domain.perf.sources import step_time
from tessera.domain.sizing import pooling
from tessera.domain.sizing.oversized import memory_share
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import ReplicaFit, ReplicaMisfit, attainable_objectives, size
from tests.builders import A100, H100

ENCODER = ModelShape(
    parameters=567_754_752,
    layers=24,
    attention_heads=16,
    kv_heads=16,
    head_dim=64,
    max_position_embeddings=8192,
    unquantized_parameters=264_716_288,
    embedding_parameters=264_393_728,
    pooling="Embed",
    encoder_only=True,
)
DECODER = ENCODER.model_copy(update={"encoder_only": None})
GPU = whole_gpu_hardware(products()[H100], 1)


def a_slice() -> Hardware:
    hardware = slice_hardware(products()[A100], "1g.10gb")
    assert hardware is not None
    return hardware


def demand(shape: ModelShape = ENCODER, **fields: object) -> Demand:
    base = Demand(
        shape=shape,
        precision=None,
        max_model_len=8192,
        input_tokens=512,
        output_tokens=0,
        ttft=timedelta(seconds=1),
        inter_token=timedelta(milliseconds=33),
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def fit(needed: Demand, hardware: Hardware = GPU) -> ReplicaFit:
    sizing = size(needed, hardware)
    assert isinstance(sizing, ReplicaFit), sizing
    return sizing


def test_an_encoder_fits_with_its_weights_alone() -> None:
    memory = fit(demand(), a_slice()).memory
    assert (memory.cache_mib, memory.kv_tokens) == (0, 0)
    assert memory_share(demand(), fit(demand(), a_slice())) < 0.4
    huge = ENCODER.model_copy(update={"parameters": 10**11})
    misfit = size(demand(huge), a_slice())
    assert isinstance(misfit, ReplicaMisfit)
    # Its weights and a reserve in a share of 92 %.
    assert misfit.needed_mib > 200_000


def test_a_decoder_that_pools_needs_a_cache_for_its_longest_text() -> None:
    memory = fit(demand(DECODER), a_slice()).memory
    assert memory.kv_tokens >= 8192


def test_a_step_holds_the_longest_text_since_an_encoder_reads_it_whole() -> None:
    for length in (64, 8192, 32_768):
        needed = demand(max_model_len=length, ttft=timedelta(seconds=20))
        assert fit(needed).limits.max_num_batched_tokens >= length


def test_limits_that_the_spec_sets_are_those_of_the_engine() -> None:
    terms = EngineTerms(max_num_seqs=4, max_num_batched_tokens=16_384)
    limits = fit(demand(engine=terms)).limits
    assert (limits.max_num_seqs, limits.max_num_batched_tokens) == (4, 16_384)
    assert limits.tokens_per_second < fit(demand()).limits.tokens_per_second
    misfit = size(demand(engine=terms, ttft=timedelta(milliseconds=12)), a_slice())
    assert isinstance(misfit, ReplicaMisfit)


@pytest.mark.parametrize("shape", [ENCODER, DECODER])
def test_many_texts_at_once_take_no_memory_for_logits(shape: ModelShape) -> None:
    few = demand(shape, max_model_len=512, input_tokens=64)
    many = replace(few, engine=EngineTerms(max_num_seqs=2048))
    assert fit(many).memory.reserve_mib == fit(few).memory.reserve_mib


def test_the_objective_of_the_answer_bounds_the_step_and_that_of_tokens_does_not() -> None:
    relaxed = fit(demand(max_model_len=512))
    tight = fit(demand(max_model_len=512, ttft=timedelta(milliseconds=12)))
    assert tight.limits.tokens_per_second < relaxed.limits.tokens_per_second
    assert fit(demand(max_model_len=512, inter_token=timedelta(microseconds=1))) == relaxed
    assert pooling.longest_reading(tight.limits, 512) <= timedelta(milliseconds=12)


def test_a_long_text_does_not_make_typical_ones_late() -> None:
    """The step holds it, and fewer texts at once keep the objective of the others."""
    limits = fit(demand(ttft=timedelta(milliseconds=12))).limits
    assert limits.max_num_batched_tokens == 8192
    assert limits.max_num_seqs * 512 < 8192
    assert pooling.longest_reading(limits, 512) <= timedelta(milliseconds=12)


def test_an_objective_that_cannot_be_kept_is_named_with_the_one_that_can() -> None:
    hopeless = demand(ttft=timedelta(milliseconds=1))
    misfit = size(hopeless, GPU)
    assert isinstance(misfit, ReplicaMisfit)
    assert (misfit.needed_mib, misfit.inter_token_ms) == (0, 0)
    [objectives] = attainable_objectives(hopeless, GPU)
    assert isinstance(size(replace(hopeless, ttft=objectives.ttft), GPU), ReplicaFit)
    assert misfit.prefill_ms == pytest.approx(objectives.ttft.total_seconds() * 1e3, abs=1.01)


def test_attention_of_all_tokens_to_all_takes_twice_that_of_a_causal_mask() -> None:
    encoder, decoder = (step_time(shape, None, GPU) for shape in (ENCODER, DECODER))
    assert encoder.pair == 2 * decoder.pair
    assert (encoder.kv_token, encoder.token) == (0, decoder.token)
    assert decoder.kv_token > 0


def test_texts_that_come_at_random_leave_a_part_of_the_engine_idle() -> None:
    needed = demand()
    replica = fit(needed)
    limits, step = replica.limits, replica.step
    sustained = pooling.sustained_load(needed, step, limits)
    assert sustained.meets_slo
    assert 0.5 < sustained.tokens_per_second / limits.tokens_per_second <= 0.95
    assert sustained.prompts_per_second == pytest.approx(limits.tokens_per_second / 512)
    tight = replace(needed, ttft=1.1 * pooling.longest_reading(limits, 512))
    alone, shared = (
        pooling.sustained_load(tight, step, limits, servers=servers) for servers in (1, 8)
    )
    assert alone.tokens_per_second < shared.tokens_per_second < limits.tokens_per_second
    late = replace(needed, ttft=timedelta(milliseconds=1))
    assert not pooling.sustained_load(late, step, limits).meets_slo
