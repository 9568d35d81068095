"""The bytes of a model's files, set against the parts that its configuration describes.

Files that have too few or too many bytes are of another model, incomplete, or quantized in a way
that was not seen: what is sized by them would be wrong.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tessera.domain.model.config_keys import Keys, UnsupportedConfigError
from tessera.domain.model.quantization import Quantization
from tessera.domain.model.weights import Weights

_FEWER, _MORE = 0.98, 1.05
# Parts of a model are known roughly: by their width, and by these where they name no number.
_PART_LAYERS, _PART_ROWS = 64, 32_768
_LAYER_KEYS = ("num_hidden_layers", "depth", "num_layers", "encoder_layers", "layers")
_WIDTH_KEYS = ("hidden_size", "d_model", "embed_dim", "width")
_PREDICTION_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")
_LANGUAGE = ("text_config", "quantization_config", "compression_config")


def said_bits(config: Mapping[str, Any], keys: Keys) -> int:
    """Return the bits of an unquantized weight in the files, as the configuration says."""
    return 32 if "float32" in _dtypes(config, keys) else 16


def stored_bits(
    config: Mapping[str, Any],
    keys: Keys,
    weights: Weights,
    quantization: Quantization | None,
    total_size: int,
) -> int:
    """Return the bits of an unquantized weight in the files, of which the engine keeps 16.

    It is what the configuration says, unless the files have the bytes of the other width. Raises
    UnsupportedConfigError where they have neither.
    """
    said = said_bits(config, keys)
    for bits in (said, 48 - said) if quantization is None else (16,):
        least, most = _bounds(config, keys, weights, quantization, bits)
        if _FEWER * least <= total_size <= _MORE * most:
            return bits
    least, most = _bounds(config, keys, weights, quantization, said if quantization is None else 16)
    form = f"of {said} bits" if quantization is None else f"in {quantization.format}"
    if total_size < least:
        raise UnsupportedConfigError(
            f"its files have {_gigabytes(total_size)} of weights, and "
            f"{weights.total / 1e9:.1f} billion weights {form} need at least {_gigabytes(least)}; "
            "take all files of one model, with the config.json of these files"
        )
    raise UnsupportedConfigError(
        f"its files have {_gigabytes(total_size)} of weights, and all its parts "
        f"({', '.join(['language', *_parts(config)])}; the language model has "
        f"{weights.total / 1e9:.1f} billion weights {form}) explain at most {_gigabytes(most)}; "
        "take the files of one model, with the config.json of these files"
    )


def _bounds(
    config: Mapping[str, Any],
    keys: Keys,
    weights: Weights,
    quantization: Quantization | None,
    bits: int,
) -> tuple[int, int]:
    """Return the fewest and the most bytes of the files, with plain weights of so many bits."""
    experts = weights.expert * weights.experts
    # A file may have the output layer although it is the embedding.
    embeddings = weights.unquantized + weights.embedding
    further = prediction_weights(keys, weights) + sum(_parts(config).values())
    if quantization is None:
        plain = bits // 8
        most = plain * (weights.dense + experts + embeddings + further)
        return plain * (weights.total - weights.output), most
    # Each group has a scale of 16 bits, and a zero point in some formats.
    group = quantization.group_size
    fewest, widest = quantization.bits_range or (quantization.bits, quantization.bits)
    grouped = widest + ((16 + quantization.bits) / group if group else 0)
    dense = bits if quantization.spares_layers or quantization.dense_bits == 16 else grouped
    most = int(experts * grouped + weights.dense * dense + bits * (embeddings + further)) // 8
    return (weights.total - weights.output) * fewest // 8, most


def prediction_weights(keys: Keys, weights: Weights) -> int:
    """Return the most weights of layers that predict further tokens, with their embeddings."""
    count = keys.get(*_PREDICTION_KEYS) or 0
    layer = (weights.dense + weights.expert * weights.experts) // keys["num_hidden_layers"]
    return max(0, count) * (2 * layer + 2 * weights.embedding)


def _parts(config: Mapping[str, Any]) -> Mapping[str, int]:
    """Return roughly the most weights of each part besides the language model."""
    parts = {
        name.removesuffix("_config"): Keys(section)
        for name, section in config.items()
        if isinstance(section, Mapping) and name not in _LANGUAGE
    }
    return {name: size for name, section in parts.items() if (size := _part_weights(section))}


def _part_weights(section: Keys) -> int:
    width = section.get(*_WIDTH_KEYS)
    if not width or width < 0:
        return 0
    layers = section.get(*_LAYER_KEYS) or _PART_LAYERS
    wide = section.get("intermediate_size", "mlp_dim", "encoder_ffn_dim") or 4 * width
    layer = width * (6 * width + 3 * wide)
    return 2 * (abs(layers) * layer + _PART_ROWS * width)


def _dtypes(config: Mapping[str, Any], keys: Keys) -> Iterator[object]:
    for section in (config, keys.values):
        yield from (section.get(key) for key in ("dtype", "torch_dtype"))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
