"""How many tokens a model takes for an image, as its files say.

Understood are the models of several parts whose language model is sized; what their image processor
does is that of transformers and vLLM, by the `model_type` of the whole.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from tessera.api.model_files import MAX_IMAGE_TOKENS, ImageTokens
from tessera.domain.model.config_keys import Keys, UnsupportedConfigError, part

# What the image processor does: new files have it as a part of the first, which goes before.
_PROCESSOR, _IMAGE_PROCESSOR = "processor_config.json", "preprocessor_config.json"
IMAGE_FILES = (_PROCESSOR, _IMAGE_PROCESSOR)


def has_image_rule(config: object) -> bool:
    """Return whether the files of the image processor say something of this model."""
    return _model_type(config) in _RULES


def image_tokens_of(config: object, read: Callable[[str], object]) -> ImageTokens | None:
    """Return the bounds of an image, by files that `read` returns; None where they do not say it.

    Of a number beyond all models the largest counts.
    """
    rule = _RULES.get(_model_type(config))
    if rule is None or not isinstance(config, Mapping):
        return None
    processor = part(_mapping(read(_PROCESSOR)), "image_processor")
    if not processor:
        processor = _mapping(read(_IMAGE_PROCESSOR))
    vision = Keys(part(config, "vision_config"))
    try:
        side, most = rule(Keys(config), vision, Keys(processor))
        return ImageTokens(max_tokens=min(most, MAX_IMAGE_TOKENS), pixels_per_side=side)
    except (UnsupportedConfigError, ValidationError):
        return None


def _model_type(config: object) -> str:
    return str(_mapping(config).get("model_type"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _qwen(_: Keys, vision: Keys, processor: Keys) -> tuple[int | None, int]:
    """An image beyond so many pixels is scaled down to them."""
    side = vision["patch_size"] * vision["spatial_merge_size"]
    size = Keys(part(processor.values, "size"))
    pixels = processor.get("max_pixels") or size["longest_edge"]
    return side, pixels // side**2


def _gemma3(config: Keys, *_: Keys) -> tuple[int | None, int]:
    """Every image is scaled to one size."""
    return None, config["mm_tokens_per_image"]


def _gemma4(_: Keys, vision: Keys, processor: Keys) -> tuple[int | None, int]:
    """Every image is scaled to about as many tokens, whatever its sides."""
    return None, processor.get("max_soft_tokens") or vision["default_output_length"]


def _llama4(_: Keys, vision: Keys, processor: Keys) -> tuple[int | None, int]:
    """An image is cut into tiles, with one of the whole beside several."""
    ratio = vision.values.get("pixel_shuffle_ratio")
    if not isinstance(ratio, float) or not 0.01 <= ratio <= 1:
        raise UnsupportedConfigError("pixel_shuffle_ratio is no number from 0.01 to 1")
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    return None, patches // round(ratio**-2) * (processor["max_patches"] + 1)


def _pixtral(config: Keys, vision: Keys, processor: Keys) -> tuple[int | None, int]:
    """An image is scaled down to its longest side, and each row has a token more."""
    if vision.model_type != "pixtral":
        raise UnsupportedConfigError("only Pixtral's images are known")
    merged = config["spatial_merge_size"] if config.model_type == "mistral3" else 1
    side = vision["patch_size"] * merged
    rows = -(-Keys(part(processor.values, "size"))["longest_edge"] // side)
    return side, rows * (rows + 1)


def _kimi(_: Keys, __: Keys, processor: Keys) -> tuple[int | None, int]:
    """An image is scaled down to so many patches, of which some make a token."""
    media = Keys(part(processor.values, "media_proc_cfg"))
    merged = media["merge_kernel_size"]
    return media["patch_size"] * merged, media["in_patch_limit"] // merged**2


# They return the pixels of a side that a token stands for, where it is so, and the most tokens.
_RULES: Mapping[str, Callable[[Keys, Keys, Keys], tuple[int | None, int]]] = {
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "qwen3_vl_moe": _qwen,
    "qwen3_5": _qwen,
    "qwen3_5_moe": _qwen,
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    "llama4": _llama4,
    "mistral3": _pixtral,
    "llava": _pixtral,
    "kimi_k25": _kimi,
}
