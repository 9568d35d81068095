"""A model's `config.json` -> the numbers that decide memory and speed.

Understood are the architectures of `families`: dense or a mixture of experts, with a cache by
heads, latent, bounded by windows, or with a state. What is missing, contradictory or unforeseen is
said rather than guessed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from tessera.api.model_files import ModelShape, PoolingTask
from tessera.domain.model.compression import compressed_values
from tessera.domain.model.config_keys import Keys, UnsupportedConfigError, object_part, part
from tessera.domain.model.families import ALIASES, FAMILIES, OLD_NAMES, ModelFamily
from tessera.domain.model.images import IMAGE_FILES, has_image_rule, image_tokens_of
from tessera.domain.model.layers import STATE_FIELDS, Layers, experts_of, layers_of
from tessera.domain.model.parts import prediction_weights, said_bits, stored_bits
from tessera.domain.model.pooling import (
    NO_SENTENCE_FILES,
    SentenceTransformersFiles,
    labels_of,
    pooling_task,
)
from tessera.domain.model.quantization import (
    QUANTIZATION_FILE,
    Quantization,
    read_quantization,
)
from tessera.domain.model.rope import Positions, positions_of
from tessera.domain.model.states import state_of
from tessera.domain.model.weight_files import INDEX, indexed_bytes, listed_bytes
from tessera.domain.model.weights import Heads, Weights, heads_of, weights_of

# The files that tell the shape: of all models, of large ones, of those that ModelOpt quantized, and
# two of sentence-transformers, with the layers of an embedder and its longest text.
CONFIG = "config.json"
MODULES, SETTINGS = "modules.json", "sentence_bert_config.json"
_BESIDE_CONFIG = (INDEX, QUANTIZATION_FILE, MODULES, SETTINGS)
# Sections of models with several parts.
_PARTS = ("text_config", "vision_config", "audio_config")
# Keys of layers that keep a state instead of keys and values of each token.
_STATES = {
    "ssm_cfg": "state-space layers",
    "mamba_d_state": "state-space layers",
    "linear_num_key_heads": "linear attention",
}


@dataclass(frozen=True, slots=True)
class UnsupportedConfig:
    """Why a configuration was not understood, and what to do."""

    message: str


def files_beside(config: object) -> tuple[str, ...]:
    """Return the names of the files that are read beside a configuration, if there are any."""
    return (*_BESIDE_CONFIG, *(IMAGE_FILES if has_image_rule(config) else ()))


def read_files(
    read: Callable[[str], object], sizes: Mapping[str, int] = MappingProxyType({})
) -> ModelShape | UnsupportedConfig:
    """Return the shape by the files of a model; `read` returns one by its name, or None.

    `sizes` are the bytes of the files that are downloaded or loaded, as far as they are known.
    """
    files = SentenceTransformersFiles(modules=read(MODULES), settings=read(SETTINGS))
    config, total_size = read(CONFIG), indexed_bytes(read(INDEX), sizes)
    if total_size is None and has_parts(config):
        total_size = listed_bytes(sizes)
    shape = read_config(config, total_size, files, read(QUANTIZATION_FILE))
    if isinstance(shape, UnsupportedConfig):
        return shape
    file_bytes = max(sum(sizes.values()), total_size or 0) or shape.file_bytes
    image = image_tokens_of(config, read)
    return shape.model_copy(update={"file_bytes": file_bytes, "image": image})


def read_config(
    config: object,
    total_size: int | None = None,
    files: SentenceTransformersFiles = NO_SENTENCE_FILES,
    quantization: object = None,
) -> ModelShape | UnsupportedConfig:
    """Return the shape; `total_size` is that of `model.safetensors.index.json`, in bytes.

    `quantization` is the content of `hf_quant_config.json`. With the size the weights take what
    their files take: parts besides the language model count, and quantized weights have the bytes
    that they really have.
    """
    try:
        if not isinstance(config, Mapping):
            raise UnsupportedConfigError(
                "it is not an object; take the config.json of the repository"
            )
        keys, family = _language_model(config, total_size)
        latent = _latent_width(keys, family) is not None
        stored = read_quantization(config, quantization, latent=latent)
        return _shape(keys, family, config, total_size, files, stored)
    except UnsupportedConfigError as error:
        return UnsupportedConfig(str(error))
    except ValidationError as error:
        fault = error.errors()[0]
        return UnsupportedConfig(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}")


def has_parts(config: object) -> bool:
    """Return whether there is more than a language model, by parts that have their own section."""
    return isinstance(config, Mapping) and any(part(config, key) for key in _PARTS)


def _language_model(config: Mapping[str, Any], total_size: int | None) -> tuple[Keys, ModelFamily]:
    """Return the part that describes the language model, and its family."""
    whole = object_part(config, "text_config") if "text_config" in config else config
    model_type = whole.get("model_type", config.get("model_type"))
    if not model_type:
        raise UnsupportedConfigError(
            "model_type is missing; take the config.json of the repository as it is"
        )
    family = FAMILIES.get(ALIASES.get(str(model_type), str(model_type)))
    if family is None:
        raise UnsupportedConfigError(
            f"model_type {model_type} is none of the {len(FAMILIES)} supported architectures "
            f"({', '.join(sorted(FAMILIES))})"
        )
    if total_size is None and has_parts(config):
        raise UnsupportedConfigError(
            "it has parts besides the language model, and no index has their size; read it with "
            "the model.safetensors.index.json beside it"
        )
    for key, feature in _STATES.items():
        if whole.get(key) and not family.recurrent:
            raise UnsupportedConfigError(
                f"{key} means {feature}, whose state is not known for model_type {model_type}; "
                f"give spec.model.shape with {STATE_FIELDS}"
            )
    renamed = {usual: whole[old] for old, usual in OLD_NAMES.items() if old in whole}
    return Keys({**family.defaults, **renamed, **whole, "model_type": model_type}), family


def _shape(
    keys: Keys,
    family: ModelFamily,
    config: Mapping[str, Any],
    total_size: int | None,
    files: SentenceTransformersFiles,
    quantization: Quantization | None,
) -> ModelShape:
    heads = heads_of(keys, family)
    task = pooling_task(config, files)
    if task is None and family.encoder:
        raise UnsupportedConfigError(
            f"architectures has none that the engine serves for model_type {keys.model_type}; take "
            "a checkpoint that embeds, scores or classifies texts"
        )
    layers = layers_of(keys, family)
    weights = weights_of(keys, family, heads, layers)
    if task is not None:
        # The engine loads no output layer, and reads of the embedding the rows of its tokens.
        weights = replace(weights, output=0)
    if family.encoder and task in ("Score", "Classify"):
        head = labels_of(config) * (keys["hidden_size"] + 1)
        weights = replace(weights, small=weights.small + head)
    parameters, media = weights.total, 0
    if total_size is not None:
        bits = stored_bits(config, keys, weights, quantization, total_size)
        if quantization is None:
            parameters = total_size * 8 // bits
            media = parameters - weights.total - prediction_weights(keys, weights)
    wide = total_size is None and quantization is None and said_bits(config, keys) == 32
    mixture = weights.experts > 0
    query_width = heads.queries * heads.width
    positions = _positions(keys, family, config, task, files)
    window = _window_of(keys, layers, positions.longest)
    return ModelShape(
        parameters=parameters,
        active_parameters=min(parameters, weights.active) if mixture else None,
        layers=keys["num_hidden_layers"],
        attention_heads=heads.queries,
        kv_heads=heads.keys,
        head_dim=heads.width,
        hidden_size=None if query_width == keys["hidden_size"] else keys["hidden_size"],
        max_position_embeddings=positions.longest,
        derived_positions=positions.derived if positions.derived < positions.longest else None,
        bits_per_weight=16 if quantization is None else quantization.bits,
        quantization=None if quantization is None else quantization.format,
        group_size=None if quantization is None else quantization.group_size,
        unquantized_parameters=min(parameters, _unquantized(weights, quantization)),
        weight_bytes=None if quantization is None else total_size,
        file_bytes=4 * parameters if wide else None,
        media_parameters=media if media > 0 and has_parts(config) else None,
        embedding_parameters=weights.input_embedding(pooled=task is not None) or None,
        experts=experts_of(keys) if mixture else None,
        experts_per_token=keys["num_experts_per_tok"] if mixture else None,
        latent_dim=_latent_width(keys, family),
        kv_cache_bits=None if quantization is None else quantization.cache_bits,
        **_cache_of(keys, family, heads, layers),
        sliding_window=window and window[0],
        sliding_layers=window and window[1],
        architecture=keys.model_type,
        vocab_size=keys["vocab_size"],
        pooling=task,
        encoder_only=True if task is not None and _is_bidirectional(keys, family) else None,
    )


def _latent_width(keys: Keys, family: ModelFamily) -> int | None:
    """Return the values that are cached of a token instead of keys and values; None if none are."""
    if family.compressed:
        return keys["head_dim"]
    rank = keys.get("kv_lora_rank")
    return rank + keys["qk_rope_head_dim"] if rank else None


def _positions(
    keys: Keys,
    family: ModelFamily,
    config: Mapping[str, Any],
    task: PoolingTask | None,
    files: SentenceTransformersFiles,
) -> Positions:
    positions = positions_of(keys, config)
    if family.positions_after_padding:
        padding = (keys.get("pad_token_id") or 0) + 1
        positions = Positions(positions.longest - padding, positions.derived - padding)
    if task is None:
        return positions
    longest = min(positions.longest, files.max_tokens or positions.longest)
    return Positions(longest, min(longest, positions.derived))


def _is_bidirectional(keys: Keys, family: ModelFamily) -> bool:
    return (
        family.encoder
        or not keys.flag("is_causal", default=True)
        or keys.flag("use_bidirectional_attention")
    )


def _unquantized(weights: Weights, quantization: Quantization | None) -> int:
    """Return the weights that count with 16 bits.

    Weights of 8 bits beside others of 4 are the share of 16-bit weights that has their bytes.
    """
    dense_bits = None if quantization is None else quantization.dense_bits
    # Without experts nothing says how many of the weights keep 16 bits.
    if quantization is None or dense_bits is None or (dense_bits == 16 and not weights.experts):
        return weights.unquantized
    wider = max(0, dense_bits - quantization.bits)
    return weights.unquantized + weights.dense * wider // (16 - quantization.bits)


def _window_of(keys: Keys, layers: Layers, longest: int) -> tuple[int, int] | None:
    """Return the window in tokens and how many layers have it, or None if none has."""
    window = keys.get("sliding_window", "attention_chunk_size")
    if not window or window >= longest or layers.cached_windowed < 1:
        return None
    return window, layers.cached_windowed


def _cache_of(keys: Keys, family: ModelFamily, heads: Heads, layers: Layers) -> dict[str, int]:
    """Return the fields of layers that keep no keys and values, or other ones."""
    fields = dict[str, int]()
    cached = layers.cached_full + layers.cached_windowed
    if cached < keys["num_hidden_layers"]:
        fields["cached_layers"] = cached
    if layers.recurrent:
        fields |= {
            "state_layers": layers.recurrent,
            "state_bytes": state_of(keys, family).bytes,
        }
    if width := keys.get("global_head_dim"):
        is_shared = keys.flag("attention_k_eq_v")
        shared_heads = keys.get("num_global_key_value_heads") if is_shared else None
        fields |= {"full_head_dim": width, "full_kv_heads": shared_heads or heads.keys}
    if family.compressed:
        fields["compressed_values"] = compressed_values(keys)
    if family.indexer:
        fields["indexer_dim"] = keys["index_head_dim"]
    return fields
