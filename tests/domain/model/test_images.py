"""What the files of models say of images: sizes of published files, and others.

Expected are the rules of vLLM's models (`qwen2_vl`, `gemma3_mm`, `gemma4_mm`, `mllama4`,
`mistral3`) and of the processor beside Kimi K2.5.
"""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.model_files import MAX_IMAGE_TOKENS, ImageTokens, ModelShape
from tessera.domain.hardware.gpu_catalog import models
from tessera.domain.model.config import files_beside, read_files
from tessera.domain.model.images import image_tokens_of
from tests.domain.model.new_models import GEMMA4_31B, MODELS, QWEN25_VL_7B, QWEN35_27B

OLD, NEW = "preprocessor_config.json", "processor_config.json"
INDEX = "model.safetensors.index.json"
QWEN25_VISION = {"patch_size": 14, "spatial_merge_size": 2}
QWEN35_VISION = {"patch_size": 16, "spatial_merge_size": 2}
PIXTRAL = {"model_type": "pixtral", "patch_size": 14, "image_size": 1540}
LLAMA4_VISION = {"image_size": 336, "patch_size": 14, "pixel_shuffle_ratio": 0.5}
KIMI = {"patch_size": 14, "merge_kernel_size": 2, "in_patch_limit": 16_384}


def a_config(model_type: Any, vision: Any = None, **fields: Any) -> dict[str, Any]:
    return {"model_type": model_type, "vision_config": vision, **fields}


def bounds_of(config: Any, files: Mapping[str, Any]) -> tuple[int | None, int] | None:
    bounds = image_tokens_of(config, files.get)
    return None if bounds is None else (bounds.pixels_per_side, bounds.max_tokens)


QWEN25, QWEN35 = a_config("qwen2_5_vl", QWEN25_VISION), a_config("qwen3_5", QWEN35_VISION)
GEMMA3 = a_config("gemma3", {"image_size": 896, "patch_size": 14}, mm_tokens_per_image=256)
GEMMA4 = a_config("gemma4", {"default_output_length": 280})
LLAMA4 = a_config("llama4", LLAMA4_VISION)
MISTRAL3 = a_config("mistral3", PIXTRAL, spatial_merge_size=2)
# `size` counts pixels of the area there, and of a side with Pixtral.
AREA = {"size": {"longest_edge": 16_777_216, "shortest_edge": 65_536}}


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        # 12,845,056 pixels are 16,384 squares of 28.
        (QWEN25, {OLD: {"min_pixels": 3136, "max_pixels": 12_845_056}}, (28, 16_384)),
        (QWEN25, {OLD: {"max_pixels": 1_003_520, **AREA}}, (28, 1280)),
        (QWEN25, {OLD: {"size": {"longest_edge": 1_003_520}}}, (28, 1280)),
        (QWEN35, {OLD: AREA}, (32, 16_384)),
        (a_config("qwen3_vl", QWEN35_VISION), {OLD: AREA}, (32, 16_384)),
        (a_config("qwen3_5_moe", QWEN35_VISION), {NEW: {"image_processor": AREA}}, (32, 16_384)),
        (GEMMA3, {}, (None, 256)),
        (GEMMA4, {}, (None, 280)),
        (GEMMA4, {NEW: {"image_processor": {"max_soft_tokens": 560}}}, (None, 560)),
        # 24 x 24 patches, of which 4 make a token, in 16 tiles and the whole.
        (LLAMA4, {OLD: {"max_patches": 16}}, (None, 17 * 144)),
        # 55 rows of 55, each with its end.
        (MISTRAL3, {OLD: {"size": {"longest_edge": 1540}}}, (28, 55 * 56)),
        (
            a_config("llava", PIXTRAL | {"patch_size": 16}),
            {OLD: {"size": {"longest_edge": 1024}}},
            (16, 64 * 65),
        ),
        (a_config("kimi_k25"), {OLD: {"media_proc_cfg": KIMI}}, (28, 4096)),
    ],
)
def test_files_bound_an_image(config: Any, files: Any, expected: tuple[int | None, int]) -> None:
    assert bounds_of(config, files) == expected


@pytest.mark.parametrize(
    ("config", "files"),
    [
        (QWEN25, {}),
        (QWEN25, {OLD: []}),
        (QWEN25, {OLD: {"max_pixels": 0}}),
        (QWEN25, {OLD: {"max_pixels": -1}}),
        (QWEN25, {OLD: {"max_pixels": 100}}),
        (QWEN25, {OLD: {"max_pixels": "12845056"}}),
        (a_config("qwen2_5_vl"), {OLD: {"max_pixels": 12_845_056}}),
        (a_config("qwen2_5_vl", {**QWEN25_VISION, "patch_size": 0}), {OLD: AREA}),
        (a_config("qwen2_5_vl", {**QWEN25_VISION, "patch_size": 10**12}), {OLD: AREA}),
        (a_config("gemma3"), {}),
        (a_config("gemma3", mm_tokens_per_image=0), {}),
        (LLAMA4, {OLD: {"max_patches": -3}}),
        *(
            (
                a_config("llama4", {**LLAMA4_VISION, "pixel_shuffle_ratio": ratio}),
                {OLD: {"max_patches": 16}},
            )
            for ratio in (0.0, 1e-200, float("nan"), float("inf"), "0.5", None)
        ),
        (a_config("llava", {"model_type": "clip_vision_model", "patch_size": 14}), {OLD: AREA}),
        (a_config("kimi_k25"), {OLD: {"media_proc_cfg": None}}),
        # Of these no rule is known.
        (a_config("qwen3", QWEN25_VISION), {OLD: AREA}),
        (a_config([]), {OLD: AREA}),
        ([], {}),
        (None, {}),
    ],
)
def test_without_a_number_that_can_be_an_image_is_counted_as_before(
    config: Any, files: Any
) -> None:
    assert bounds_of(config, files) is None


def test_a_number_beyond_all_models_counts_as_the_largest() -> None:
    for config, files in (
        (QWEN25, {OLD: {"max_pixels": 10**12}}),
        (a_config("gemma3", mm_tokens_per_image=10**12), {}),
        (LLAMA4, {OLD: {"max_patches": 10**400}}),
        (a_config("llama4", {**LLAMA4_VISION, "image_size": 10**400}), {OLD: {"max_patches": 16}}),
    ):
        bounds = image_tokens_of(config, files.get)
        assert bounds is not None
        assert bounds.max_tokens == MAX_IMAGE_TOKENS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
NAMES = ("max_pixels", "size", "max_patches", "max_soft_tokens", "media_proc_cfg")
VISION = ("patch_size", "spatial_merge_size", "image_size", "pixel_shuffle_ratio", "model_type")


@given(
    st.sampled_from(["qwen2_5_vl", "gemma3", "gemma4", "llama4", "mistral3", "llava", "kimi_k25"]),
    JSON | st.dictionaries(st.sampled_from(VISION), JSON),
    JSON | st.dictionaries(st.sampled_from(NAMES), JSON),
)
def test_no_file_is_an_error(model_type: str, vision: Any, processor: Any) -> None:
    bounds = image_tokens_of(a_config(model_type, vision), {OLD: processor}.get)
    assert bounds is None or 1 <= bounds.max_tokens <= MAX_IMAGE_TOKENS


def shape_with(
    config: dict[str, Any], vision: dict[str, Any], size: int | None, **files: Any
) -> Any:
    whole = {**config, "vision_config": {**config["vision_config"], **vision}}
    index = {"metadata": {"total_size": size}}
    return read_files({"config.json": whole, INDEX: index, **files}.get)


def test_the_shape_of_a_model_has_the_bounds_of_its_images() -> None:
    for name, config, vision, files, expected in (
        (
            "Qwen/Qwen2.5-VL-7B-Instruct",
            QWEN25_VL_7B,
            QWEN25_VISION,
            {OLD: {"max_pixels": 12_845_056}},
            ImageTokens(max_tokens=16_384, pixels_per_side=28),
        ),
        (
            "Qwen/Qwen3.5-27B",
            QWEN35_27B,
            QWEN35_VISION,
            {OLD: AREA},
            ImageTokens(max_tokens=16_384, pixels_per_side=32),
        ),
        (
            "google/gemma-4-31B-it",
            GEMMA4_31B,
            {"default_output_length": 280},
            {},
            ImageTokens(max_tokens=280),
        ),
        ("google/gemma-4-31B-it", GEMMA4_31B, {}, {}, None),
    ):
        shape = shape_with(config, vision, MODELS[name][1], **files)
        assert isinstance(shape, ModelShape), shape
        assert shape.image == expected


def test_files_of_images_are_read_where_they_say_something() -> None:
    assert {OLD, NEW} <= set(files_beside(QWEN25))
    for config in ({"model_type": "qwen3"}, {}, None):
        assert {OLD, NEW}.isdisjoint(files_beside(config))


def test_known_models_that_read_images_have_their_bounds() -> None:
    known = {name: shape.image for name, shape in models().items() if shape.media_parameters}
    assert all(known.values()), known
    assert known["google/gemma-3-27b-it"] == ImageTokens(max_tokens=256)
    assert known["meta-llama/Llama-4-Scout-17B-16E-Instruct"] == ImageTokens(max_tokens=17 * 144)
    assert known["mistralai/Mistral-Small-3.1-24B-Instruct-2503"] == ImageTokens(
        max_tokens=55 * 56, pixels_per_side=28
    )
