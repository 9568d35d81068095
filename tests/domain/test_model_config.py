"""`config.json` files, cut to the keys that count, against the shapes that are shipped."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.inference_service import ModelShape
from tessera.domain.catalog import models
from tessera.domain.model.config import Puzzle, read


def config(hidden: int, inner: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {"hidden_size": hidden, "intermediate_size": inner, "vocab_size": vocabulary, **more}


def of(model: str, **keys: Any) -> dict[str, Any]:
    """The other numbers are those of the shipped shape, as the hub has them."""
    known = models()[model]
    return {
        "num_hidden_layers": known.layers,
        "num_attention_heads": known.attention_heads,
        "num_key_value_heads": known.kv_heads,
        "max_position_embeddings": known.max_position_embeddings,
        **keys,
    }


LLAMA = config(4096, 14336, 128256, model_type="llama", tie_word_embeddings=False)
KNOWN = {
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA,
    "meta-llama/Llama-3.1-70B-Instruct": config(8192, 28672, 128256, model_type="llama"),
    "meta-llama/Llama-3.2-1B-Instruct": config(
        2048, 8192, 128256, model_type="llama", head_dim=64, tie_word_embeddings=True
    ),
    "meta-llama/Llama-3.2-3B-Instruct": config(
        3072, 8192, 128256, model_type="llama", head_dim=128, tie_word_embeddings=True
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": config(4096, 14336, 32768, model_type="mistral"),
    "Qwen/Qwen2.5-0.5B-Instruct": config(
        896, 4864, 151936, model_type="qwen2", tie_word_embeddings=True
    ),
    "Qwen/Qwen2.5-7B-Instruct": config(3584, 18944, 152064, model_type="qwen2"),
    "Qwen/Qwen2.5-14B-Instruct": config(5120, 13824, 152064, model_type="qwen2"),
    "Qwen/Qwen3-8B": config(4096, 12288, 151936, model_type="qwen3", head_dim=128),
    "Qwen/Qwen3-32B": config(5120, 25600, 151936, model_type="qwen3", head_dim=128),
}
MIXTRAL = {
    "model_type": "mixtral",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    **config(4096, 14336, 32000),
}
QWEN_MOE = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    **config(2048, 6144, 151936),
}


def as_shipped(model: str) -> dict[str, Any]:
    return models()[model].model_dump(exclude={"model"})


def shape(found: ModelShape | Puzzle) -> ModelShape:
    assert isinstance(found, ModelShape), found
    return found


@pytest.mark.parametrize("model", KNOWN)
def test_a_config_gives_the_shape_that_is_shipped_to_the_weight(model: str) -> None:
    assert shape(read(of(model, **KNOWN[model]))).model_dump() == as_shipped(model)


@pytest.mark.parametrize(
    ("found", "billions", "active"), [(MIXTRAL, 46.7, 12.9), (QWEN_MOE, 30.5, 3.3)]
)
def test_of_a_mixture_the_weights_of_one_token_are_counted_apart(
    found: dict[str, Any], billions: float, active: float
) -> None:
    got = shape(read(found))
    assert got.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert (got.active_parameters or 0) / 1e9 == pytest.approx(active, rel=0.03)


@pytest.mark.parametrize(
    ("quantised", "bits"),
    [
        ({"quant_method": "awq", "bits": 4}, 4),
        ({"quant_method": "gptq", "bits": 8}, 8),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "mxfp4"}, 4),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8}}},
            },
            8,
        ),
        ({"quant_method": "hqq"}, 16),
    ],
)
def test_quantised_weights_have_their_bits(quantised: dict[str, Any], bits: int) -> None:
    found = of("Qwen/Qwen3-8B", **KNOWN["Qwen/Qwen3-8B"], quantization_config=quantised)
    assert shape(read(found)).bits_per_weight == bits


def test_the_index_decides_how_many_bytes_the_weights_take() -> None:
    found = of("Qwen/Qwen3-8B", **KNOWN["Qwen/Qwen3-8B"])
    got = shape(read({**found, "quantization_config": {"bits": 4}}, 6_100_000_000))
    assert got.parameters * got.bits_per_weight // 8 == 6_100_000_000


def test_32_bit_files_are_loaded_with_16_bits() -> None:
    found = of("Qwen/Qwen3-8B", **KNOWN["Qwen/Qwen3-8B"], torch_dtype="float32")
    got = shape(read(found, 8_190_735_360 * 4))
    assert (got.parameters, got.bits_per_weight) == (8_190_735_360, 16)


def test_the_language_part_of_a_larger_model_counts_with_the_size_of_all() -> None:
    found = {"vision_config": {}, "text_config": of("Qwen/Qwen3-8B", **KNOWN["Qwen/Qwen3-8B"])}
    got = shape(read(found, 18_000_000_000))
    assert (got.layers, got.parameters) == (36, 9_000_000_000)
    assert "no index" in told(read(found))


def told(found: ModelShape | Puzzle) -> str:
    assert isinstance(found, Puzzle)
    return found.message


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([], "not an object"),
        ({}, "num_attention_heads is missing"),
        ({**MIXTRAL, "kv_lora_rank": 512}, "kv_lora_rank means latent attention"),
        ({**MIXTRAL, "vocab_size": "many"}, "vocab_size is missing"),
        ({**MIXTRAL, "num_experts_per_tok": None}, "num_experts_per_tok is missing"),
        ({**MIXTRAL, "num_attention_heads": 5000}, "attention_heads"),
        ({"text_config": 3}, "num_attention_heads is missing"),
    ],
)
def test_what_is_not_understood_is_said(found: object, words: str) -> None:
    assert words in told(read(found))


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
def test_no_config_of_a_stranger_raises(found: dict[str, Any]) -> None:
    for whole in (found, {**MIXTRAL, **found}):
        assert isinstance(read(whole, 10**9), ModelShape | Puzzle)
