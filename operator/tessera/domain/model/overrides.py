"""What flags change of a model: keys of its `config.json`, and the parts that are loaded."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tessera.api.model_files import ModelShape
from tessera.domain.model.config_keys import Keys, UnsupportedConfigError, part
from tessera.domain.model.rope import factor_fault, positions_of

_TEXT = "text_config"
_ROPES = ("rope_scaling", "rope_parameters")
_LENGTHS = ("max_position_embeddings", "model_max_length", "original_max_position_embeddings")
# Keys that change the longest context, which is all of them that a shape can take over.
_CONTEXT = frozenset((*_ROPES, *_LENGTHS))
# Keys that change neither memory nor the work of a step; `--max-model-len` is set beside them.
_UNSIZED = frozenset(
    (
        "architectures",
        "attn_temperature_tuning",
        "bos_token_id",
        "classifier_from_token",
        "eos_token_id",
        "head_dtype",
        "id2label",
        "is_matryoshka",
        "is_original_qwen3_reranker",
        "label2id",
        "matryoshka_dimensions",
        "max_model_len",
        "method",
        "num_labels",
        "pad_token_id",
        "problem_type",
        "rope_theta",
        "use_pad_token",
    )
)


def overridden_config(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration as the engine reads it: its parts are merged, other keys replaced.

    vLLM merges what transformers makes a configuration of its own of, and all that is in it.
    """
    return _merged(config, overrides, _is_part)


def _is_part(key: str) -> bool:
    return key.endswith("_config") and key != "quantization_config"


def _merged(
    section: Mapping[str, Any], overrides: Mapping[str, Any], is_merged: Callable[[str], bool]
) -> dict[str, Any]:
    merged = dict(section)
    for rope in _ROPES:
        # The other spelling would be read beside it.
        if rope not in overrides and any(other in overrides for other in _ROPES):
            merged.pop(rope, None)
    for key, value in overrides.items():
        previous = section.get(key)
        if is_merged(key) and isinstance(value, Mapping) and isinstance(previous, Mapping):
            merged[key] = _merged(previous, value, lambda _: True)
        else:
            merged[key] = value
    return merged


def overridden_shape(shape: ModelShape, overrides: Mapping[str, Any]) -> ModelShape:
    """Return the shape with the context of the overrides, which a shape was read without.

    Of a model with parts for media the engine reads those of `text_config`, else those beside it.
    """
    texts = overrides if shape.media_parameters is None else part(overrides, _TEXT)
    if _CONTEXT.isdisjoint(texts):
        return shape
    # What the files say of YaRN is in the longest context alone, and the overrides replace it.
    declared = {"max_position_embeddings": shape.derived_positions or shape.max_position_embeddings}
    try:
        positions = positions_of(Keys({**declared, **texts}), {**declared, **overrides})
    except UnsupportedConfigError:
        return shape
    update = {
        "max_position_embeddings": positions.longest,
        "derived_positions": positions.derived if positions.derived < positions.longest else None,
    }
    return shape.model_copy(update=update)


def without_media(shape: ModelShape) -> ModelShape:
    """Return the shape of the language model alone, as far as the parts beside it are known."""
    parameters = shape.parameters - (shape.media_parameters or 0)
    return shape.model_copy(update={"parameters": parameters, "media_parameters": None})


def context_fault(overrides: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the context of the overrides; None if an engine reads it."""
    text = part(overrides, _TEXT)
    for section in (overrides, text):
        for key in _LENGTHS:
            if key in section and (Keys(section).get(key) or 0) < 1:
                return f"{key} {repr(section[key])[:40]} is no whole number above 0"
    return factor_fault(overrides) or factor_fault(text)


def uncounted_keys(overrides: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys that change more of a shape than its context, or may do so."""
    for key, value in overrides.items():
        if key == _TEXT and isinstance(value, Mapping):
            yield from (f"{_TEXT}.{nested}" for nested in uncounted_keys(value))
        elif key not in _CONTEXT | _UNSIZED:
            yield key
