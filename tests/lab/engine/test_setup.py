"""Setups of an engine that run, and the sentences about those that cannot."""

from dataclasses import replace
from typing import Any

import pytest

from tessera.domain.hardware.device import slice_hardware, whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.perf.footprint import resident_bytes
from tessera.domain.sizing.sizing import MIB
from tessera_lab.engine.requests import Allocator
from tessera_lab.engine.setup import EngineSetup, EngineSetupError, KvCache
from tessera_lab.engine.speculation import Speculation

SMALL = models()["meta-llama/Llama-3.1-8B-Instruct"]
LARGE = models()["meta-llama/Llama-3.3-70B-Instruct"]
A100 = products()["NVIDIA-A100-SXM4-80GB"]
ONE, TWO = whole_gpu_hardware(A100, 1), whole_gpu_hardware(A100, 2)
DRAFTING = Speculation(acceptance=0.7, draft_tokens=5, draft_cost=0.1)


def a_setup(**options: Any) -> EngineSetup:
    defaults: dict[str, Any] = {"shape": SMALL, "hardware": ONE}
    return EngineSetup(**(defaults | options))


REFUSED: dict[str, dict[str, Any]] = {
    "write a number from 2 to 131072": {"max_model_len": 200_000},
    "cannot be sharded over 3 GPUs": {"hardware": whole_gpu_hardware(A100, 3)},
    "write fp8, int8, awq-int4, gptq-int4, nvfp4, or leave it out": {"precision": "int9"},
    "set the size of a batch": {"kv_cache": KvCache.NONE},
    "a static batch of 0": {"static_batch": 0},
    "a prefix cache needs continuous batching": {"static_batch": 8, "prefix_cache": True},
    "speculation needs continuous batching": {"static_batch": 8, "speculation": DRAFTING},
    "a prefix cache needs a paged": {"kv_cache": KvCache.CONTIGUOUS, "prefix_cache": True},
    "a draft model without speculation": {"draft": SMALL},
    "write a multiple of 16": {"shared_tokens": 100},
    "max_num_seqs 0": {"max_num_seqs": 0},
    "below the 1 of a step": {"max_num_batched_tokens": 255},
    "below the 6 of a step": {"max_num_batched_tokens": 1535, "speculation": DRAFTING},
    "has to be at least max_model_len 8192": {
        "chunked_prefill": False,
        "max_num_batched_tokens": 8191,
    },
    "take more or larger GPUs": {"shape": LARGE},
    "lower it, or take": {"shape": LARGE, "hardware": TWO, "max_model_len": 65536},
    "lower either": {"static_batch": 64, "kv_cache": KvCache.CONTIGUOUS},
}


@pytest.mark.parametrize(("sentence", "options"), REFUSED.items(), ids=REFUSED)
def test_a_setup_that_cannot_run_says_what_to_change(
    sentence: str, options: dict[str, Any]
) -> None:
    with pytest.raises(EngineSetupError) as refusal:
        a_setup(**options)
    assert sentence in str(refusal.value)


def test_without_a_kv_cache_the_weights_alone_have_to_fit() -> None:
    tight = {"shape": LARGE, "hardware": TWO, "max_model_len": 65536}
    assert a_setup(**tight, static_batch=1, kv_cache=KvCache.NONE).slots == 1


def test_a_narrow_kv_cache_holds_twice_as_much_and_is_read_in_half_the_time() -> None:
    wide, narrow = a_setup(), a_setup(kv_bits=8)
    assert narrow.limits.blocks == pytest.approx(2 * wide.limits.blocks, rel=0.001)
    assert narrow.step_time == replace(wide.step_time, kv_token=wide.step_time.kv_token / 2)


def test_a_draft_model_takes_its_weights_and_its_cache_from_the_requests() -> None:
    target = a_setup(shape=LARGE, precision="awq-int4", hardware=TWO, speculation=DRAFTING)
    both = replace(target, draft=SMALL)
    weights = resident_bytes(SMALL, None) / 2 / MIB
    assert both.memory.reserve_mib - target.memory.reserve_mib == pytest.approx(weights, abs=1)
    assert both.memory.kv_tokens < target.memory.kv_tokens
    tokens_per_mib = target.memory.kv_tokens / target.memory.cache_mib
    # 32 layers of cache beside 80.
    assert both.memory.kv_tokens / both.memory.cache_mib == pytest.approx(
        tokens_per_mib * 80 / 112, rel=0.001
    )


def test_a_slice_is_hardware_like_any_other() -> None:
    slice_of_seven = slice_hardware(A100, "3g.40gb")
    assert slice_of_seven is not None
    whole, part = a_setup(), a_setup(hardware=slice_of_seven)
    assert part.memory.kv_tokens < whole.memory.kv_tokens
    assert part.step_time.weights == pytest.approx(2 * whole.step_time.weights)


def test_contiguous_slots_are_given_out_by_the_engine() -> None:
    assert a_setup(kv_cache=KvCache.CONTIGUOUS).limits.allocator is Allocator.CONTIGUOUS
    assert a_setup().limits.allocator is Allocator.PAGED
