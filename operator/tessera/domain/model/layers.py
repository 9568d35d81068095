"""What the layers of a model are: what each keeps of a request, and its feed-forward block."""

from collections.abc import Sequence
from dataclasses import dataclass

from tessera.domain.model.config_keys import Keys, UnsupportedConfigError
from tessera.domain.model.families import ModelFamily

# Kinds of layers, as configurations name them.
_WINDOWED = {"sliding_attention", "chunked_attention"}
_FULL = {"full_attention", "attention"}
# Attention to tokens that an indexer selects, of which every one is cached.
_SELECTED = {"deepseek_sparse_attention"}
_RECURRENT = {"linear_attention", "mamba"}
_DENSE, _SPARSE = {"mlp"}, {"moe"}
_BY_LETTER = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
STATE_FIELDS = "cachedLayers, stateLayers and stateBytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """How many layers of a model are of each kind."""

    full: int
    """With attention to every token."""
    windowed: int = 0
    """With attention to the tokens of a window."""
    recurrent: int = 0
    """With a state instead of attention."""
    dense: int
    """With a feed-forward block without experts."""
    sparse: int = 0
    """With a mixture of experts."""
    cached_full: int
    """With attention to every token, and a cache of their own."""
    cached_windowed: int = 0


def layers_of(keys: Keys, family: ModelFamily) -> Layers:
    """Count the layers; UnsupportedConfigError where one has an unknown kind of cache."""
    if family.compressed:
        layers = keys["num_hidden_layers"]
        sparse = _sparse_layers(keys, layers)
        return Layers(
            full=0,
            windowed=layers,
            dense=layers - sparse,
            sparse=sparse,
            cached_full=0,
            cached_windowed=layers,
        )
    kinds = _kinds(keys, family)
    if kinds is not None and family.one_block_per_layer:
        full = _count(kinds, _FULL)
        return Layers(
            full=full,
            recurrent=_count(kinds, _RECURRENT),
            dense=_count(kinds, _DENSE),
            sparse=_count(kinds, _SPARSE),
            cached_full=full,
        )
    layers = keys["num_hidden_layers"]
    sparse = _sparse_layers(keys, layers)
    # The last layers take the cache of one before them.
    cached = layers - min(layers, max(0, keys.get("num_kv_shared_layers") or 0))
    if kinds is None:
        windowed = _windowed_by_family(keys, family, layers)
        return Layers(
            full=layers - windowed,
            windowed=windowed,
            dense=layers - sparse,
            sparse=sparse,
            cached_full=cached - windowed * cached // layers,
            cached_windowed=windowed * cached // layers,
        )
    return Layers(
        full=_count(kinds, _FULL | _SELECTED),
        windowed=_count(kinds, _WINDOWED),
        recurrent=_count(kinds, _RECURRENT),
        dense=layers - sparse,
        sparse=sparse,
        cached_full=_count(kinds[:cached], _FULL | _SELECTED),
        cached_windowed=_count(kinds[:cached], _WINDOWED),
    )


def experts_of(keys: Keys) -> int:
    """Return the routed experts of a layer; 0 without any."""
    return keys.get("num_local_experts", "num_experts", "n_routed_experts") or 0


def _kinds(keys: Keys, family: ModelFamily) -> Sequence[str] | None:
    """Return the kind of each layer; None where the configuration leaves it to the family."""
    values, layers = keys.values, keys.get("num_hidden_layers")
    kinds = values.get("layers_block_type") or values.get("layer_types")
    pattern = values.get("hybrid_override_pattern")
    if not isinstance(kinds, list) and isinstance(pattern, str) and family.one_block_per_layer:
        kinds = [_BY_LETTER.get(letter, letter) for letter in pattern]
    if not isinstance(kinds, list):
        if not family.recurrent:
            return None
        interval = max(1, keys.get("full_attention_interval") or 4)
        ordinals = range(1, keys["num_hidden_layers"] + 1)
        return ["linear_attention" if number % interval else "attention" for number in ordinals]
    known = _WINDOWED | _FULL | (_RECURRENT if family.recurrent else set())
    known |= _SELECTED if family.indexer else set()
    known |= _DENSE | _SPARSE if family.one_block_per_layer else set()
    if unknown := sorted({str(kind) for kind in kinds} - known):
        raise UnsupportedConfigError(
            f"layer_types has {unknown[0]}, whose cache is not known for model_type "
            f"{keys.model_type}; give spec.model.shape, with {STATE_FIELDS} for layers that keep "
            "a state"
        )
    if layers is not None:
        _require_as_many("layer_types", kinds, layers)
    return [str(kind) for kind in kinds]


def _require_as_many(key: str, kinds: Sequence[object], layers: int) -> None:
    if len(kinds) != layers:
        raise UnsupportedConfigError(
            f"{key} names {len(kinds)} layers and num_hidden_layers {layers}; take both from the "
            "model's own config.json"
        )


def _count(kinds: Sequence[str], of: set[str]) -> int:
    return sum(kind in of for kind in kinds)


def _sparse_layers(keys: Keys, layers: int) -> int:
    if not experts_of(keys):
        return 0
    blocks = keys.values.get("mlp_layer_types")
    if isinstance(blocks, list):
        _require_as_many("mlp_layer_types", blocks, layers)
        return layers - blocks.count("dense")
    first = min(layers, max(0, keys.get("first_k_dense_replace") or 0))
    step = keys.get("interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_freq") or 1
    dense_layers = keys.values.get("mlp_only_layers")
    dense_count = len(dense_layers) if isinstance(dense_layers, list) else 0
    return max(0, (layers - first) // max(1, step) - dense_count)


def _windowed_by_family(keys: Keys, family: ModelFamily, layers: int) -> int:
    if family.window == "all":
        return layers
    if family.window in ("every", "chunk"):
        interval = (
            keys.get("sliding_window_pattern", "no_rope_layer_interval") or family.window_interval
        )
        return layers - layers // max(1, interval)
    if family.window == "optional" and keys.flag("use_sliding_window"):
        return max(0, layers - max(0, keys.get("max_window_layers") or 0))
    return 0
