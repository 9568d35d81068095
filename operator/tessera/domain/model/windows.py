"""Which layers look back over a sliding window only."""

from tessera.domain.model.config_keys import Keys, UnsupportedConfigError
from tessera.domain.model.families import ModelFamily

_BOUNDED = {"sliding_attention", "chunked_attention"}
_UNBOUNDED = "full_attention"


def window_of(keys: Keys, family: ModelFamily) -> tuple[int, int] | None:
    """The window in tokens and how many layers have it; None when all layers keep all tokens."""
    layers = keys["num_hidden_layers"]
    window = keys.get("sliding_window", "attention_chunk_size")
    count = _layers_from_types(keys, layers)
    if count is None:
        count = _layers_from_family(keys, family, layers)
    if not window or window >= keys["max_position_embeddings"] or count < 1:
        return None
    return window, count


def _layers_from_types(keys: Keys, layers: int) -> int | None:
    """As `layer_types` says, where it is there."""
    kinds = keys.values.get("layer_types")
    if not isinstance(kinds, list):
        return None
    unknown = sorted({str(kind) for kind in kinds} - _BOUNDED - {_UNBOUNDED})
    if unknown:
        raise UnsupportedConfigError(
            f"layer_types has {unknown[0]}, whose cache is not supported; give spec.model.shape"
        )
    if len(kinds) != layers:
        raise UnsupportedConfigError(
            f"layer_types names {len(kinds)} layers and num_hidden_layers {layers}; take both from "
            "the model's own config.json"
        )
    return sum(kind in _BOUNDED for kind in kinds)


def _layers_from_family(keys: Keys, family: ModelFamily, layers: int) -> int:
    """As the family has it."""
    if family.window == "all":
        return layers
    if family.window in ("every", "chunk"):
        interval = (
            keys.get("sliding_window_pattern", "no_rope_layer_interval") or family.window_interval
        )
        return layers - layers // max(1, interval)
    if family.window == "asked" and keys.flag("use_sliding_window"):
        return layers - max(0, keys.get("max_window_layers") or 0)
    return 0
