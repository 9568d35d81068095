"""Models whose layers differ in what they keep of a request."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.model_files import ModelShape
from tessera.domain.model.config import UnsupportedConfig, read_config
from tessera.domain.perf.footprint import (
    cache_bytes,
    cache_bytes_per_token,
    resident_bytes,
    state_bytes,
)
from tessera.domain.sizing.tensor_parallel import can_shard
from tests.domain.model.new_models import MODELS
from tests.domain.model.test_config import error_message, expect_shape

GEMMA_31B, GEMMA_E2B = "google/gemma-4-31B-it", "google/gemma-4-E2B-it"
GEMMA_26B = "google/gemma-4-26B-A4B-it"
QWEN35, QWEN35_MOE = "Qwen/Qwen3.5-27B", "Qwen/Qwen3.5-35B-A3B"
NEMOTRON = "nvidia/NVIDIA-Nemotron-Nano-9B-v2"
NEMOTRON_MOE = "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"
V32, M2 = "deepseek-ai/DeepSeek-V3.2", "MiniMaxAI/MiniMax-M2"
VL = "Qwen/Qwen2.5-VL-7B-Instruct"
VL3, VL3_MOE = "Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3-VL-30B-A3B-Instruct"
GLM5, GLM52 = "zai-org/GLM-5", "zai-org/GLM-5.2"
V4_FLASH, V4_PRO = "deepseek-ai/DeepSeek-V4-Flash", "deepseek-ai/DeepSeek-V4-Pro"
SMALL_4 = "mistralai/Mistral-Small-4-119B-2603"
MINISTRAL = "mistralai/Ministral-3-3B-Instruct-2512-BF16"


def shape_of(model: str) -> ModelShape:
    return expect_shape(read_config(*MODELS[model]))


@pytest.mark.parametrize(
    ("model", "billions", "active"),
    [
        (VL, 8.29, None),
        (VL3, 8.77, None),
        (VL3_MOE, 31.07, 3.35),
        (MINISTRAL, 3.85, None),
        (QWEN35, 27.8, None),
        (QWEN35_MOE, 36.0, 3.5),
        (GEMMA_31B, 31.3, None),
        (GEMMA_26B, 25.8, 3.8),
        (GEMMA_E2B, 5.12, None),
        (NEMOTRON, 8.888, None),
        (NEMOTRON_MOE, 31.58, 3.6),
        (V32, 671.9, 38.4),
        (M2, 228.7, 11.0),
        (V4_FLASH, 284.3, 13.8),
        (V4_PRO, 1573, 49.7),
        (GLM5, 744, 41.5),
        (GLM52, 744, 41.5),
        (SMALL_4, 119, 6.6),
    ],
)
def test_weights_are_counted(model: str, billions: float, active: float | None) -> None:
    shape = shape_of(model)
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.003)
    counted = shape.active_parameters
    assert (counted and counted / 1e9) == (active and pytest.approx(active, rel=0.02))


@pytest.mark.parametrize(
    ("model", "token_bytes"),
    [
        (VL, 28 * 2 * 4 * 128 * 2),
        (VL3, 36 * 2 * 8 * 128 * 2),
        (VL3_MOE, 48 * 2 * 4 * 128 * 2),
        (MINISTRAL, 26 * 2 * 8 * 128 * 2),
        (QWEN35, 16 * 2 * 4 * 256 * 2),
        (QWEN35_MOE, 10 * 2 * 2 * 256 * 2),
        (GEMMA_31B, 10 * 2 * 4 * 512 * 2 + 50 * 2 * 16 * 256 * 2),
        (GEMMA_26B, 5 * 2 * 2 * 512 * 2 + 25 * 2 * 8 * 256 * 2),
        # 20 of 35 layers take the cache of another one.
        (GEMMA_E2B, 3 * 2 * 1 * 512 * 2 + 12 * 2 * 1 * 256 * 2),
        (NEMOTRON, 4 * 2 * 8 * 128 * 2),
        (NEMOTRON_MOE, 6 * 2 * 2 * 128 * 2),
        # Beside the latent vector 128 values of 8 bits, and their scale of 32.
        (V32, 61 * (576 * 2 + 128 + 4)),
        (M2, 62 * 2 * 8 * 128 * 2),
        # A window in each layer, and what is left of 4 or of 128 tokens.
        (V4_FLASH, 2 * (43 * 512 + 21 * (512 + 128) // 4 + 20 * 512 // 128)),
        (V4_PRO, 2 * (61 * 512 + 30 * (512 + 128) // 4 + 31 * 512 // 128)),
        (GLM5, 78 * (576 * 2 + 128 + 4)),
        (GLM52, 78 * (576 * 2 + 128 + 4)),
        (SMALL_4, 36 * (256 + 64) * 2),
    ],
)
def test_a_token_has_the_cache_of_the_layers_that_keep_one(model: str, token_bytes: int) -> None:
    assert cache_bytes_per_token(shape_of(model), 1) == token_bytes


@pytest.mark.parametrize(
    ("model", "layers", "state"),
    [
        # Three rows of queries, keys and values, and a matrix of 32 bits for each head.
        (QWEN35, 48, 3 * (2 * 16 + 48) * 128 * 2 + 48 * 128 * 128 * 4),
        (QWEN35_MOE, 30, 3 * (2 * 16 + 32) * 128 * 2 + 32 * 128 * 128 * 4),
        (NEMOTRON, 27, 3 * (128 * 80 + 2 * 8 * 128) * 2 + 128 * 80 * 128 * 4),
        (NEMOTRON_MOE, 23, 3 * (64 * 64 + 2 * 8 * 128) * 2 + 64 * 64 * 128 * 4),
    ],
)
def test_states_are_as_large_as_the_engine_keeps_them(model: str, layers: int, state: int) -> None:
    shape = shape_of(model)
    assert (shape.state_layers, shape.state_bytes) == (layers, state)
    assert state_bytes(shape, 1) == layers * state
    assert state_bytes(shape, 2) == layers * state // 2


def test_a_request_has_two_states_beside_its_blocks() -> None:
    row = 2 * 4 * 256 * 2
    # A block holds 784 tokens, the fewest multiple of 16 as large as a state of 3,207,168 bytes.
    block = 784 * row
    assert 768 * row < 3_207_168 <= block
    # 16 layers of attention, and three groups of 16 with states.
    expected = [block * (16 * blocks + 2 * 48) for blocks in (1, 1, 2, 11)]
    shape = shape_of(QWEN35)
    assert [cache_bytes(shape, tokens, 1) for tokens in (1, 784, 785, 8192)] == expected


def test_a_request_of_compressed_attention_has_what_the_engine_publishes() -> None:
    """vLLM names 9.62 GiB for a million tokens of DeepSeek-V4-Pro at 16 bits."""
    shape = shape_of(V4_PRO)
    assert cache_bytes(shape, 2**20, 1) / 2**30 == pytest.approx(9.62, rel=0.002)
    assert cache_bytes(shape, 2**20, 8) == cache_bytes(shape, 2**20, 1)
    # At 8 bits an entry of 512 values has 584 bytes.
    entry, indexed = 584, 128 + 4
    counted = 2**20 * (30 * (entry + indexed) // 4 + 31 * entry // 128) + 61 * 128 * entry
    assert counted <= cache_bytes(shape, 2**20, 1, kv_bits=8) < 1.03 * counted


def test_experts_of_four_bits_count_apart_from_matrices_of_eight() -> None:
    shape = shape_of(V4_FLASH)
    assert (shape.quantization, shape.bits_per_weight) == ("mxfp4", 4)
    assert resident_bytes(shape, None) / 1e9 == pytest.approx(277 * 4.25 / 8 + 7.3 * 2, rel=0.01)
    fp8 = {key: value for key, value in MODELS[V4_FLASH][0].items() if key != "expert_dtype"}
    assert expect_shape(read_config(fp8)).quantization == "fp8"


def test_kinds_of_compression_by_name_are_those_by_ratio() -> None:
    config, names = MODELS[V4_FLASH][0], {0: "sliding", 4: "compressed_sparse"}
    kinds = [
        f"{names.get(ratio, 'heavily_compressed')}_attention"
        for ratio in config["compress_ratios"][:43]
    ]
    named = config | {"layer_types": kinds, "compress_ratios": None}
    assert expect_shape(read_config(named)) == shape_of(V4_FLASH)


@pytest.mark.parametrize("ratios", [None, [], [4] * 42, [4] * 42 + [16], [4] * 42 + [[]]])
def test_layers_of_an_unknown_compression_are_refused(ratios: Any) -> None:
    message = error_message(read_config(MODELS[V4_FLASH][0] | {"compress_ratios": ratios}))
    assert "compress_ratios has no 0, 4 or 128 for each of num_hidden_layers 43" in message


def test_a_latent_head_is_as_wide_as_its_two_parts_whatever_the_files_call_its_width() -> None:
    assert shape_of(GLM5).head_dim == 192 + 64
    assert shape_of(SMALL_4).head_dim == 64 + 64


def test_sparse_attention_without_an_indexer_is_refused() -> None:
    config = MODELS[GLM52][0] | {"model_type": "deepseek_v3"}
    assert "deepseek_sparse_attention, whose cache" in error_message(read_config(config))


def test_blocks_of_fewer_layers_than_the_model_has_are_refused() -> None:
    config = MODELS[GLM52][0] | {"mlp_layer_types": ["dense"] * 3}
    assert "mlp_layer_types names 3 layers" in error_message(read_config(config))


def test_a_state_grows_no_request_by_its_length() -> None:
    shape = shape_of(NEMOTRON)
    short, long = cache_bytes(shape, 8192, 1), cache_bytes(shape, 65_536, 1)
    assert long - short == pytest.approx(57_344 * cache_bytes_per_token(shape, 1), rel=0.02)


def test_windows_and_wider_heads_of_the_other_layers_count_apart() -> None:
    shape = shape_of(GEMMA_31B)
    assert cache_bytes(shape, 32_768, 1) == 2**13 * 10 * 32_768 + 2**14 * 50 * 1024
    assert cache_bytes(shape, 32_768, 8, step_tokens=1024) == 2**11 * (10 * 32_768 + 50 * 2048)


def test_heads_of_all_layers_have_to_be_sharded() -> None:
    shape = shape_of(GEMMA_31B)
    assert [devices for devices in range(1, 17) if can_shard(shape, devices)] == [1, 2, 4, 8, 16]
    odd = shape.model_copy(update={"full_kv_heads": 3})
    assert not can_shard(odd, 2)


def test_eight_bits_of_sparse_latent_attention_keep_scales_and_positions() -> None:
    shape = shape_of(V32)
    assert cache_bytes_per_token(shape, 1, kv_bits=8) == 61 * (656 + 132)
    assert cache_bytes_per_token(shape, 8) == cache_bytes_per_token(shape, 1)


def test_a_model_of_images_without_the_size_of_its_parts_is_refused_with_the_way_out() -> None:
    assert "model.safetensors.index.json beside it" in error_message(read_config(MODELS[VL][0]))


@pytest.mark.parametrize("key", ["linear_num_key_heads", "ssm_cfg", "mamba_d_state"])
def test_a_state_of_another_architecture_is_refused_with_what_to_write(key: str) -> None:
    message = error_message(read_config(MODELS[M2][0] | {key: 16}))
    assert "give spec.model.shape with cachedLayers, stateLayers and stateBytes" in message


_junk = st.none() | st.integers(-3, 10**12) | st.text(max_size=3) | st.lists(st.integers())


@given(st.sampled_from(sorted(MODELS)), st.data())
def test_no_number_of_a_stranger_raises(model: str, data: Any) -> None:
    config, total_size = MODELS[model]
    language = config.get("text_config", config)
    key = data.draw(st.sampled_from(sorted(language)))
    changed = {**language, key: data.draw(_junk)}
    whole = config | {"text_config": changed} if "text_config" in config else changed
    shape = read_config(whole, total_size)
    assert isinstance(shape, ModelShape | UnsupportedConfig)
    if isinstance(shape, ModelShape):
        assert cache_bytes(shape, 4096, 2) >= 0
