"""The bytes of files against the parts that a configuration describes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.hardware.gpu_catalog import models
from tessera.domain.model.config import read_config
from tessera.domain.perf.footprint import hidden_size
from tests.domain.model.new_models import MODELS
from tests.domain.model.test_config import CONFIGS, config_of, error_message, expect_shape
from tests.domain.model.test_quantization import KIMI_BYTES, kimi_k25

QWEN = "Qwen/Qwen3-8B"
QWEN_BYTES = 2 * 8_190_735_360
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}


def test_experts_whose_quantization_is_in_no_known_place_are_refused_with_both_numbers() -> None:
    config = kimi_k25()
    config["text_config"]["other_quantization"] = config["text_config"].pop("quantization_config")
    message = error_message(read_config(config, KIMI_BYTES))
    assert "its files have 595.1 GB of weights" in message
    assert "1026.4 billion weights of 16 bits need at least 2050.5 GB" in message


@pytest.mark.parametrize(
    ("config", "total", "words"),
    [
        (config_of(QWEN), QWEN_BYTES // 2, "8.2 billion weights of 16 bits need at least"),
        (config_of(QWEN), 3 * QWEN_BYTES // 2, "explain at most"),
        (config_of(QWEN, quantization_config=AWQ), QWEN_BYTES, "weights in awq) explain at most"),
        (config_of(QWEN, quantization_config=AWQ), 2 * 10**9, "weights in awq need at least"),
        (config_of(QWEN, torch_dtype="float32"), QWEN_BYTES // 2, "of 32 bits need at least"),
        (MODELS["google/gemma-4-E2B-it"][0], 16 * 10**9, "(language, vision, audio; "),
    ],
)
def test_too_few_and_too_many_bytes_are_refused_with_both_numbers(
    config: dict[str, Any], total: int, words: str
) -> None:
    message = error_message(read_config(config, total))
    assert f"its files have {total / 1e9:.1f} GB of weights" in message
    assert words in message
    assert "take " in message


@pytest.mark.parametrize(
    ("dtype", "total", "parameters"),
    [
        ("bfloat16", 2 * QWEN_BYTES, QWEN_BYTES // 2),
        ("float32", 2 * QWEN_BYTES, QWEN_BYTES // 2),
        ("float32", QWEN_BYTES, QWEN_BYTES // 2),
        ("bfloat16", QWEN_BYTES, QWEN_BYTES // 2),
    ],
)
def test_the_width_of_stored_weights_follows_from_their_bytes(
    dtype: str, total: int, parameters: int
) -> None:
    assert expect_shape(read_config(config_of(QWEN, torch_dtype=dtype), total)).parameters == (
        parameters
    )


def test_layers_that_predict_further_tokens_are_part_of_the_files() -> None:
    config = config_of("deepseek-ai/DeepSeek-V3")
    published = 688_586_727_753  # with a layer of 11.5 billion weights that drafts
    assert expect_shape(read_config(config, published)).weight_bytes == published
    twice = 2 * published
    assert "explain at most" in error_message(read_config(config, twice))


@pytest.mark.parametrize("model", [model for model, (_, total) in MODELS.items() if total])
def test_published_bytes_are_within_what_the_parts_explain(model: str) -> None:
    config, total = MODELS[model]
    assert total is not None
    expect_shape(read_config(config, total))
    assert "need at least" in error_message(read_config(config, total // 2))
    assert "explain at most" in error_message(read_config(config, 3 * total))


# Models of 16 bits by their configuration whose embedding, which files may have twice, is a small
# part of them.
PLAIN = [
    model
    for model, shape in sorted(models().items())
    if "totalSize" not in CONFIGS[model]
    and shape.quantization is None
    and config_of(model).get("torch_dtype") != "float32"
    and (shape.vocab_size or 0) * hidden_size(shape) < shape.parameters / 5
]


@given(st.sampled_from(PLAIN), st.floats(1.4, 1.6))
def test_bytes_between_those_of_16_and_of_32_bits_are_explained_by_nothing(
    model: str, share: float
) -> None:
    total = int(share * 2 * models()[model].parameters)
    assert "explain at most" in error_message(read_config(config_of(model), total))


def test_the_weights_of_media_are_what_files_have_beside_language_and_predictions() -> None:
    def media(name: str) -> int | None:
        return expect_shape(read_config(*MODELS[name])).media_parameters

    assert media("Qwen/Qwen2.5-VL-7B-Instruct") == 676_383_488
    assert media("Qwen/Qwen3.5-27B") is None, "its extra layers may be as large"
    assert expect_shape(read_config(config_of(QWEN), QWEN_BYTES)).media_parameters is None
