"""`config.json` files of every shipped model against the shapes that are shipped."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.model_files import ModelShape
from tessera.domain.hardware.gpu_catalog import models
from tessera.domain.model.config import UnsupportedConfig, read_config
from tessera.domain.model.images import image_tokens_of
from tessera.domain.model.pooling import SentenceTransformersFiles
from tessera.domain.perf.footprint import resident_bytes
from tessera.domain.service.preparation.claims import ClaimUsers, model_claims
from tests.builders import a_service, a_snapshot, a_spec

FILE = json.loads(Path(__file__).with_name("model_configs.json").read_text(encoding="utf-8"))
CONFIGS = {model_config["model"]: model_config for model_config in FILE["configs"]}
PUBLISHED: dict[str, int] = FILE["published"]
QWEN = "Qwen/Qwen3-8B"
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}


def config_of(model: str, **keys: Any) -> dict[str, Any]:
    """The configuration of a shipped model, with the keys around it that the hub has."""
    beside = {"architectures": ["ForCausalLM"], "torch_dtype": "bfloat16", "use_cache": True}
    return {**beside, **CONFIGS[model]["config"], **keys}


MIXTRAL = config_of("mistralai/Mixtral-8x7B-Instruct-v0.1")
DEEPSEEK = config_of("deepseek-ai/DeepSeek-V3")


def as_shipped(model: str) -> dict[str, Any]:
    return models()[model].model_dump(exclude={"model"})


def expect_shape(result: ModelShape | UnsupportedConfig) -> ModelShape:
    assert isinstance(result, ModelShape), result
    return result


@pytest.mark.parametrize("model", sorted(models()))
def test_a_config_gives_the_shape_that_is_shipped_to_the_weight(model: str) -> None:
    entry = CONFIGS[model]
    files = SentenceTransformersFiles(modules=entry.get("modules"), settings=entry.get("settings"))
    config = config_of(model)
    shape = expect_shape(read_config(config, entry.get("totalSize"), files))
    image = image_tokens_of(config, {"preprocessor_config.json": entry.get("processor")}.get)
    assert shape.model_copy(update={"image": image}).model_dump() == as_shipped(model)


@pytest.mark.parametrize("model", sorted(models()))
def test_the_claim_of_a_known_model_has_room_for_its_files(model: str) -> None:
    """Files have the bits of a weight that the published configuration says, or are quantized."""
    config, shape = config_of(model), models()[model]
    stored = shape.parameters * (4 if config["torch_dtype"] == "float32" else 2)
    if shape.quantization is not None:
        stored = resident_bytes(shape, None)
    spec = a_spec(f"hf://{model}", model={"cache": {"type": "PersistentVolumeClaim"}})
    snapshot = a_snapshot(a_service(spec=spec))
    (claim,) = model_claims(snapshot, snapshot.services[0], spec, ClaimUsers())
    assert claim.gib * 2**30 > 1.1 * max(stored, CONFIGS[model].get("totalSize", 0))


@pytest.mark.parametrize(("model", "weights"), sorted(PUBLISHED.items()))
def test_counted_weights_are_those_that_the_repositories_publish(model: str, weights: int) -> None:
    assert models()[model].parameters == weights


def test_the_catalogue_holds_every_model_that_has_a_config_and_no_other() -> None:
    assert len(models()) >= 60
    assert sorted(models()) == sorted(CONFIGS)


@pytest.mark.parametrize(
    ("model", "billions", "active"),
    [
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 46.7, 12.9),
        ("Qwen/Qwen3-30B-A3B", 30.5, 3.3),
        ("Qwen/Qwen3-235B-A22B", 235, 22),
        ("Qwen/Qwen2-57B-A14B-Instruct", 57.4, 14.2),
        ("deepseek-ai/DeepSeek-V2-Lite-Chat", 15.7, 2.65),
        ("deepseek-ai/DeepSeek-V2-Chat", 236, 21.4),
        ("deepseek-ai/DeepSeek-V3", 671, 37.5),
        ("moonshotai/Kimi-K2-Instruct", 1026, 32.9),
        ("openai/gpt-oss-20b", 20.9, 4.19),
        ("openai/gpt-oss-120b", 116.8, 5.71),
        ("zai-org/GLM-4.5-Air", 106.9, 13.5),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 108.6, 17.2),
        ("microsoft/Phi-3.5-MoE-instruct", 41.9, 6.6),
        ("allenai/OLMoE-1B-7B-0924-Instruct", 6.9, 1.28),
    ],
)
def test_of_a_mixture_the_weights_of_one_token_are_counted_apart(
    model: str, billions: float, active: float
) -> None:
    shape = models()[model]
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert (shape.active_parameters or 0) / 1e9 == pytest.approx(active, rel=0.03)


@pytest.mark.parametrize(
    ("model", "window", "layers"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.1", 4096, 32),
        ("mistralai/Mistral-7B-Instruct-v0.3", None, None),
        ("google/gemma-2-9b-it", 4096, 21),
        ("google/gemma-3-27b-it", 1024, 52),
        ("openai/gpt-oss-20b", 128, 12),
        ("CohereForAI/c4ai-command-r7b-12-2024", 4096, 24),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 8192, 36),
        ("Qwen/Qwen2.5-7B-Instruct", None, None),
        ("microsoft/Phi-3.5-mini-instruct", None, None),
    ],
)
def test_layers_with_a_window_are_counted(
    model: str, window: int | None, layers: int | None
) -> None:
    shape = models()[model]
    assert (shape.sliding_window, shape.sliding_layers) == (window, layers)


def test_the_latent_vector_of_deepseek_is_512_and_64_wide() -> None:
    assert models()["deepseek-ai/DeepSeek-V3"].latent_dim == 576


@pytest.mark.parametrize(
    ("quantised", "bits"),
    [
        ({"quant_method": "awq", "bits": 4}, 4),
        ({"quant_method": "gptq", "bits": 8}, 8),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "mxfp4"}, 4),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4),
        ({"quant_method": "fbgemm_fp8"}, 8),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8}}},
            },
            8,
        ),
    ],
)
def test_quantised_weights_have_their_bits(quantised: dict[str, Any], bits: int) -> None:
    config = config_of(QWEN, quantization_config=quantised)
    assert expect_shape(read_config(config)).bits_per_weight == bits


def test_the_index_decides_how_many_bytes_the_weights_take() -> None:
    shape = expect_shape(read_config(config_of(QWEN, quantization_config=AWQ), 6_100_000_000))
    assert (shape.parameters, resident_bytes(shape, None)) == (8_190_735_360, 6_100_000_000)


@pytest.mark.parametrize(
    ("quantised", "form", "group"),
    [
        (AWQ, "awq", 128),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "gptq", 32),
        ({**GPTQ, "group_size": -1, "desc_act": True}, "gptq", None),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", None),
        ({"quant_method": "mxfp4"}, "mxfp4", 32),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "fp8",
            None,
        ),
    ],
)
def test_the_format_and_its_groups_are_recorded(
    quantised: dict[str, Any], form: str, group: int | None
) -> None:
    shape = expect_shape(read_config(config_of(QWEN, quantization_config=quantised)))
    assert (shape.quantization, shape.group_size) == (form, group)


def test_32_bit_files_are_loaded_with_16_bits() -> None:
    config = config_of(QWEN, torch_dtype="float32")
    shape = expect_shape(read_config(config, 8_190_735_360 * 4))
    assert (shape.parameters, shape.bits_per_weight) == (8_190_735_360, 16)


def test_the_language_part_of_a_larger_model_counts_with_the_size_of_all() -> None:
    config = {"vision_config": {}, "text_config": config_of(QWEN)}
    shape = expect_shape(read_config(config, 18_000_000_000))
    assert (shape.layers, shape.parameters) == (36, 9_000_000_000)
    assert "no index" in error_message(read_config(config))


def error_message(result: ModelShape | UnsupportedConfig) -> str:
    assert isinstance(result, UnsupportedConfig)
    return result.message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ([], "not an object"),
        ({}, "model_type is missing"),
        ({"model_type": "mpnet"}, "mpnet is none of the"),
        ({"model_type": "llama"}, "num_attention_heads is missing"),
        ({**MIXTRAL, "kv_lora_rank": 512}, "qk_rope_head_dim is missing"),
        ({**MIXTRAL, "mamba_d_state": 16}, "mamba_d_state means state-space layers"),
        ({**MIXTRAL, "num_attention_heads": 30}, "num_key_value_heads 8 does not divide"),
        ({**MIXTRAL, "num_key_value_heads": 64}, "num_key_value_heads 64 does not divide"),
        ({**MIXTRAL, "hidden_size": 4100}, "does not divide hidden_size 4100"),
        ({**MIXTRAL, "num_experts_per_tok": 9}, "num_experts_per_tok 9 is more than the 8"),
        ({**DEEPSEEK, "v_head_dim": None}, "v_head_dim is missing"),
        ({**MIXTRAL, "layer_types": ["linear_attention"] * 32}, "layer_types has linear_attention"),
        ({**MIXTRAL, "layer_types": ["full_attention"]}, "layer_types names 1 layers"),
        ({**MIXTRAL, "quantization_config": {"quant_method": "bitsandbytes"}}, "FP8 or AWQ"),
        ({**MIXTRAL, "quantization_config": {"quant_method": "gguf"}}, "safetensors"),
        ({**MIXTRAL, "quantization_config": {"quant_method": "hqq"}}, "hqq is not supported"),
        ({**MIXTRAL, "quantization_config": {"bits": 4}}, "is missing and is not supported"),
        (
            {**MIXTRAL, "quantization_config": {"quant_method": "gptq", "bits": 3}},
            "has 3 bits; engines serve 4 and 8",
        ),
        ({**MIXTRAL, "quantization_config": {**GPTQ, "sym": False}}, "take a checkpoint with sym"),
        (
            {**MIXTRAL, "quantization_config": {**GPTQ, "desc_act": True}},
            "desc_act true of gptq with group_size 128 is not supported: vLLM 0.30 to 0.33 do not",
        ),
        ({**MIXTRAL, "vocab_size": "many"}, "vocab_size is missing"),
        ({**MIXTRAL, "num_experts_per_tok": None}, "num_experts_per_tok is missing"),
        ({**MIXTRAL, "head_dim": 128, "num_attention_heads": 5000}, "attention_heads"),
        ({"text_config": 3}, "text_config 3 is no object"),
        ({**MIXTRAL, "text_config": "see above"}, "text_config 'see above' is no object"),
        ({**MIXTRAL, "quantization_config": "fp8"}, "quantization_config 'fp8' is no object"),
        ({**MIXTRAL, "quantization_config": [{}]}, "quantization_config [{}] is no object"),
        ({**MIXTRAL, "compression_config": True}, "compression_config True is no object"),
    ],
)
def test_what_is_not_supported_is_reported(config: object, words: str) -> None:
    assert words in error_message(read_config(config))


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.dictionaries(st.sampled_from([*MIXTRAL, "text_config"]), inner),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from([*MIXTRAL, "quantization_config", "text_config", "torch_dtype"]), _anything
    )
)
def test_no_config_of_a_stranger_raises(config: dict[str, Any]) -> None:
    for whole in (config, {**MIXTRAL, **config}):
        assert isinstance(read_config(whole, 10**9), ModelShape | UnsupportedConfig)
