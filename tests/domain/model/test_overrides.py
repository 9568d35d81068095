"""`--hf-overrides`: what they change of a configuration, and of a shape that was read without."""

from typing import Any

import pytest

from tessera.api.model_files import ModelShape
from tessera.domain.hardware.gpu_catalog import models
from tessera.domain.model.config import read_config
from tessera.domain.model.overrides import overridden_config, overridden_shape, uncounted_keys

QWEN = models()["Qwen/Qwen2.5-7B-Instruct"]
WITH_VISION = models()["mistralai/Mistral-Small-3.1-24B-Instruct-2503"]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
CONFIG: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
}


def lengths(shape: ModelShape) -> tuple[int, int | None]:
    return shape.max_position_embeddings, shape.derived_positions


@pytest.mark.parametrize(
    ("overrides", "longest", "derived"),
    [
        ({"rope_scaling": YARN}, 131_072, 32_768),
        ({"rope_parameters": YARN}, 131_072, 32_768),
        ({"rope_parameters": {**YARN, "rope_theta": 1e6}}, 131_072, 32_768),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 65_536, None),
        ({"text_config": {"rope_parameters": YARN}}, 32_768, None),
        ({"max_position_embeddings": 65_536}, 65_536, None),
        ({"rope_theta": 1e6}, 32_768, None),
        ({"rope_scaling": None}, 32_768, None),
        ({"max_position_embeddings": "long"}, 32_768, None),
    ],
)
def test_overrides_replace_the_context_of_a_shape(
    overrides: dict[str, Any], longest: int, derived: int | None
) -> None:
    shape = overridden_shape(QWEN, overrides)
    assert lengths(shape) == (longest, derived)
    context = {"max_position_embeddings": 0, "derived_positions": None}
    assert shape.model_copy(update=context) == QWEN.model_copy(update=context)


@pytest.mark.parametrize(
    ("overrides", "longest", "derived"),
    [
        ({"text_config": {"rope_parameters": YARN | {"factor": 8.0}}}, 262_144, 131_072),
        ({"text_config": {"max_position_embeddings": 65_536}}, 65_536, None),
        ({"rope_parameters": YARN | {"factor": 8.0}}, 131_072, None),
        ({"max_position_embeddings": 262_144}, 131_072, None),
    ],
)
def test_beside_parts_for_media_the_context_is_that_of_the_text(
    overrides: dict[str, Any], longest: int, derived: int | None
) -> None:
    assert lengths(overridden_shape(WITH_VISION, overrides)) == (longest, derived)


def test_overrides_replace_what_the_files_say_of_yarn() -> None:
    extended = overridden_shape(QWEN, {"rope_scaling": YARN})
    half = {**YARN, "factor": 2.0}
    assert lengths(overridden_shape(extended, {"rope_parameters": half})) == (65_536, 32_768)


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("before", ["rope_scaling", "rope_parameters"])
def test_a_configuration_with_overrides_is_read_as_the_engine_reads_it(
    spelling: str, before: str
) -> None:
    config = CONFIG | {before: {**YARN, "factor": 2.0}}
    shape = read_config(overridden_config(config, {spelling: YARN, "num_hidden_layers": 4}))
    assert isinstance(shape, ModelShape)
    assert (*lengths(shape), shape.layers) == (131_072, 32_768, 4)


def test_parts_are_merged_and_other_objects_replaced() -> None:
    config = {
        "text_config": {"a": 1, "rope_parameters": {"b": 1, "c": 1}},
        "quantization_config": {"bits": 4, "d": 1},
        "rope_scaling": {"e": 1},
    }
    overrides = {
        "text_config": {"rope_parameters": {"c": 2}},
        "quantization_config": {"bits": 8},
        "rope_scaling": {"f": 1},
    }
    assert overridden_config(config, overrides) == {
        "text_config": {"a": 1, "rope_parameters": {"b": 1, "c": 2}},
        "quantization_config": {"bits": 8},
        "rope_scaling": {"f": 1},
    }


def test_keys_that_may_change_memory_or_speed_are_named() -> None:
    overrides = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["no", "yes"],
        "rope_scaling": YARN,
        "num_hidden_layers": 4,
        "text_config": {"max_position_embeddings": 1, "sliding_window": 8},
    }
    assert list(uncounted_keys(overrides)) == ["num_hidden_layers", "text_config.sliding_window"]
