"""Where files say how their weights and their KV cache are quantized."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.model_files import ModelShape
from tessera.domain.model.config import CONFIG, UnsupportedConfig, read_config, read_files
from tessera.domain.model.quantization import QUANTIZATION_FILE, read_quantization
from tessera.domain.model.weight_files import INDEX
from tessera.domain.perf.footprint import resident_bytes
from tests.domain.model.new_models import QWEN35_35B_A3B
from tests.domain.model.test_config import config_of, error_message, expect_shape

QWEN = "Qwen/Qwen3-8B"
MIXTURE = "Qwen/Qwen3-30B-A3B"
FP8_CACHE = {"dynamic": False, "num_bits": 8, "type": "float"}
# As moonshotai/Kimi-K2.5 publishes it: int4 experts in `text_config`, the rest in 16 bits.
KIMI_QUANTIZATION = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "kv_cache_scheme": None,
    "ignore": [
        "lm_head",
        "re:.*self_attn.*",
        "re:.*shared_experts.*",
        r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    ],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "group_size": 32, "strategy": "group"},
        }
    },
}
KIMI_BYTES = 595_148_192_000


def kimi_k25() -> dict[str, Any]:
    text = config_of("moonshotai/Kimi-K2-Instruct") | {"quantization_config": KIMI_QUANTIZATION}
    return {
        "architectures": ["KimiK25ForConditionalGeneration"],
        "model_type": "kimi_k25",
        "text_config": text,
        "vision_config": {"hidden_size": 1152},
    }


def test_quantized_experts_of_a_nested_configuration_are_seen() -> None:
    shape = expect_shape(read_config(kimi_k25(), KIMI_BYTES))
    assert (shape.quantization, shape.bits_per_weight, shape.group_size) == ("int4", 4, 32)
    assert round(shape.parameters / 1e9) == 1026
    assert resident_bytes(shape, None) == KIMI_BYTES


def compressed(bits: int = 8, **keys: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "float" if bits == 8 else "int", "group_size": 128}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": weights}},
        **keys,
    }


SECTIONS = st.sampled_from(
    [
        {"quant_method": "awq", "bits": 4, "group_size": 64},
        {"quant_method": "gptq", "bits": 8, "group_size": 128},
        {"quant_method": "fp8"},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        compressed(4),
        compressed(8),
    ]
)


@given(SECTIONS)
def test_every_place_says_the_same(section: dict[str, Any]) -> None:
    places: list[tuple[dict[str, Any], object]] = [
        ({"quantization_config": section}, None),
        ({"compression_config": section}, None),
        ({"text_config": {"quantization_config": section}}, None),
        ({"text_config": {"compression_config": section}}, None),
        ({}, section),
    ]
    expected = read_quantization({"quantization_config": section})
    assert expected is not None
    assert [read_quantization(*place) for place in places] == [expected] * len(places)


def test_the_outer_section_comes_before_the_nested_one() -> None:
    config = {"quantization_config": {"quant_method": "fp8"}, "text_config": kimi_k25()}
    quantization = read_quantization(config)
    assert quantization is not None
    assert quantization.format == "fp8"


# nvidia/Llama-3.1-8B-Instruct-FP8 has it beside a `config.json` without any quantization.
HF_QUANT_CONFIG = {
    "producer": {"name": "modelopt", "version": "0.23.0"},
    "quantization": {
        "quant_algo": "FP8",
        "kv_cache_quant_algo": "FP8",
        "exclude_modules": ["lm_head"],
    },
}


def test_the_separate_file_of_modelopt_is_read() -> None:
    files = {
        CONFIG: config_of("meta-llama/Llama-3.1-8B-Instruct"),
        INDEX: {"metadata": {"total_size": 9_080_000_000}},
        QUANTIZATION_FILE: HF_QUANT_CONFIG,
    }
    shape = expect_shape(read_files(files.get))
    assert (shape.quantization, shape.kv_cache_bits) == ("fp8", 8)
    assert shape.parameters == 8_030_261_248


MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8"}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}


@pytest.mark.parametrize(
    ("section", "bits"),
    [
        (MODELOPT, None),
        (MODELOPT | {"kv_cache_scheme": FP8_CACHE}, 8),
        (MODELOPT | {"kv_cache_scheme": FP8_CACHE | {"dynamic": True}}, None),
        (MODELOPT | {"kv_cache_scheme": FP8_CACHE | {"num_bits": 4}}, None),
        (MODELOPT | {"kv_cache_quant_algo": "FP8"}, 8),
        (MODELOPT | {"kv_cache_quant_algo": "NVFP4"}, None),
        (MODELOPT | {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "fp8"}}, 8),
        (compressed(), None),
        (compressed(kv_cache_scheme=FP8_CACHE), 8),
        (compressed(4, kv_cache_scheme={"num_bits": 8, "type": "float"}), 8),
        ({"quant_method": "fp8", "kv_cache_scheme": FP8_CACHE}, None),
    ],
)
def test_the_cache_has_the_bits_that_the_engine_takes_from_the_files(
    section: dict[str, Any], bits: int | None
) -> None:
    shape = expect_shape(read_config(config_of(QWEN, quantization_config=section)))
    assert shape.kv_cache_bits == bits


@pytest.mark.parametrize(
    ("section", "bits"),
    [(MODELOPT | {"kv_cache_scheme": FP8_CACHE}, None), (compressed(kv_cache_scheme=FP8_CACHE), 8)],
)
def test_of_a_nested_section_the_engine_takes_one_kind_of_scheme(
    section: dict[str, Any], bits: int | None
) -> None:
    config = {"text_config": config_of(QWEN, quantization_config=section)}
    assert expect_shape(read_config(config, 9_500_000_000)).kv_cache_bits == bits


def test_latent_attention_of_compressed_tensors_keeps_16_bits() -> None:
    section = compressed(kv_cache_scheme=FP8_CACHE)
    config = config_of("deepseek-ai/DeepSeek-V3", quantization_config=section)
    assert expect_shape(read_config(config)).kv_cache_bits is None


def test_a_scheme_that_stops_the_engine_is_refused() -> None:
    section = compressed(kv_cache_scheme={"num_bits": 8, "type": "int"})
    message = error_message(read_config(config_of(QWEN, quantization_config=section)))
    assert "num_bits 8 of type float" in message


# Targets of a mixture, as strangers write them: names of layers, patterns and a class.
ATTENTION = ["model.layers.0.self_attn.q_proj", r"re:.*self_attn\.o_proj$", "Linear"]
EXPERTS = ["model.layers.0.mlp.experts", r"re:.*mlp\.experts\..*", "re:.*experts.*_proj"]
# Targets that say nothing of the layers.
BESIDE = ["lm_head", "model.visual.blocks.0.mlp", "mtp.layers.0.mlp.experts", "re:.*embed.*"]
MODELOPT_FORMATS: dict[Any, dict[str, Any]] = {
    "fp8": {"quant_algo": "FP8"},
    "nvfp4": {"quant_algo": "NVFP4", "group_size": 16},
}
COMPRESSED_FORMATS: dict[Any, dict[str, Any]] = {
    "fp8": {"num_bits": 8, "type": "float"},
    "nvfp4": {"num_bits": 4, "type": "float", "group_size": 16},
}


def mixed_modelopt(formats: dict[str, str]) -> dict[str, Any]:
    layers = {target: MODELOPT_FORMATS[form] for target, form in formats.items()}
    return {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "kv_cache_scheme": FP8_CACHE,
        "quantized_layers": layers,
    }


def mixed_compressed(formats: dict[str, str]) -> dict[str, Any]:
    groups = {
        f"group_{number}": {"targets": [target], "weights": COMPRESSED_FORMATS[form]}
        for number, (target, form) in enumerate(formats.items())
    }
    activations = {"targets": ["re:.*attn"], "weights": None}
    return {
        "quant_method": "compressed-tensors",
        "kv_cache_scheme": FP8_CACHE,
        "config_groups": {"a": activations, **groups},
    }


@pytest.mark.parametrize("section_of", [mixed_modelopt, mixed_compressed])
@given(st.sampled_from(ATTENTION), st.sampled_from(EXPERTS), st.data())
def test_of_several_formats_the_experts_have_their_own_wherever_it_stands(
    section_of: Callable[[dict[str, str]], dict[str, Any]],
    attention: str,
    experts: str,
    data: st.DataObject,
) -> None:
    formats = {attention: "fp8", experts: "nvfp4", **dict.fromkeys(BESIDE, "fp8")}
    targets = data.draw(st.permutations(list(formats)))
    section = section_of({target: formats[target] for target in targets})
    config = config_of(MIXTURE, quantization_config=section)
    shape = expect_shape(read_config(config))
    form = (shape.quantization, shape.bits_per_weight, shape.group_size, shape.kv_cache_bits)
    assert form == ("nvfp4", 4, 16, 8)
    # Attention of 8 bits takes a share of 16 bits beside the 4.5 of the experts.
    plain = expect_shape(read_config(config_of(MIXTURE, quantization_config=NVFP4)))
    dense = 48 * (2 * 2048 * 32 * 128 + 2 * 2048 * 4 * 128)
    added = resident_bytes(shape, None) - resident_bytes(plain, None)
    assert dense * 3.5 / 8 <= added <= dense * 4 / 8


@pytest.mark.parametrize("section_of", [mixed_modelopt, mixed_compressed])
def test_files_of_several_formats_take_the_bytes_of_their_index(
    section_of: Callable[[dict[str, str]], dict[str, Any]],
) -> None:
    section = section_of({ATTENTION[0]: "fp8", EXPERTS[0]: "nvfp4"})
    config = config_of(MIXTURE, quantization_config=section)
    assert resident_bytes(expect_shape(read_config(config, 18_500_000_000)), None) == 18_500_000_000
    # Some layers of experts in 8 bits, which a search of the best format chooses.
    section = section_of(
        {f"layers.{number}.mlp.experts": "fp8" if number else "nvfp4" for number in range(3)}
    )
    for total_size in (18_500_000_000, 30_500_000_000):
        shape = read_config(config_of(MIXTURE, quantization_config=section), total_size)
        assert expect_shape(shape).quantization == "fp8"


def test_a_mixture_with_images_has_8_bits_in_attention_and_4_in_experts() -> None:
    layers = "model.language_model.layers"
    formats = {
        f"{layers}.0.linear_attn.in_proj_qkv": "fp8",
        f"{layers}.0.mlp.experts": "nvfp4",
        f"{layers}.0.mlp.shared_expert.up_proj": "nvfp4",
        f"{layers}.1.self_attn.q_proj": "fp8",
        f"{layers}.1.mlp.experts": "nvfp4",
    }
    section = mixed_modelopt(formats) | {"ignore": ["lm_head", "model.visual*", "mtp*"]}
    text = QWEN35_35B_A3B["text_config"] | {
        **{"hidden_size": 512, "num_hidden_layers": 2, "num_experts": 8, "vocab_size": 1024},
        "layer_types": ["linear_attention", "full_attention"],
    }
    config = QWEN35_35B_A3B | {"text_config": text, "quantization_config": section}
    quantization = read_quantization(config)
    assert quantization is not None
    assert (quantization.format, quantization.dense_bits) == ("nvfp4", 8)
    shape = expect_shape(read_config(config, 30_000_000))
    assert (shape.quantization, shape.group_size, shape.kv_cache_bits) == ("nvfp4", 16, 8)
    assert shape.weight_bytes == 30_000_000


def test_experts_of_which_nothing_else_is_quantized_leave_attention_its_16_bits() -> None:
    config = config_of(MIXTURE, quantization_config=mixed_modelopt({EXPERTS[0]: "nvfp4"}))
    dense = 48 * (2 * 2048 * 32 * 128 + 2 * 2048 * 4 * 128)
    assert (expect_shape(read_config(config)).unquantized_parameters or 0) > dense


def test_without_experts_the_format_is_that_of_feed_forward_blocks() -> None:
    formats = {ATTENTION[0]: "fp8", "model.layers.0.mlp.up_proj": "nvfp4"}
    for section_of in (mixed_modelopt, mixed_compressed):
        config = config_of(QWEN, quantization_config=section_of(formats))
        assert expect_shape(read_config(config)).quantization == "nvfp4"


def test_a_pattern_that_excludes_the_output_layer_counts() -> None:
    section = mixed_compressed({"re:^(?!.*lm_head).*": "fp8"})
    config = config_of(QWEN, quantization_config=section)
    assert expect_shape(read_config(config)).quantization == "fp8"


@pytest.mark.parametrize(
    ("layers", "words"),
    [({}, "needs quantized_layers"), ({"mlp": {"quant_algo": "W4A8_AWQ"}}, "w4a8_awq is not")],
)
def test_several_formats_that_are_not_known_are_refused(layers: dict[str, Any], words: str) -> None:
    section = mixed_modelopt({}) | {"quantized_layers": layers}
    assert words in error_message(read_config(config_of(QWEN, quantization_config=section)))


_KEYS = "quant_method quant_algo quantization kv_cache_scheme ignore config_groups quantized_layers"
_words = st.sampled_from([*_KEYS.split(), "targets", "weights", "num_bits"])
_values = st.recursive(
    st.none()
    | st.integers()
    | st.sampled_from(
        ["modelopt", "fp8", "mixed_precision", "compressed-tensors", "re:(a+)+$", "*self_attn*"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(_words, _values), _values)
def test_no_section_of_a_stranger_raises(section: dict[str, Any], separate: object) -> None:
    config = config_of(QWEN, quantization_config=section)
    read = read_config(config, quantization=separate)
    assert isinstance(read, ModelShape | UnsupportedConfig)
