"""A model's `config.json` -> the numbers that decide memory and speed.

Understood are transformers with rotary positions and gated layers, dense or a mixture of experts,
under the names that Llama, Qwen, Mistral and Gemma use. What keeps its cache in another form is
said rather than guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from tessera.api.inference_service import ModelShape

_OTHER_CACHES = {
    "kv_lora_rank": "latent attention",
    "ssm_cfg": "state-space layers",
    "mamba_d_state": "state-space layers",
    "linear_num_key_heads": "linear attention",
}
"""Keys of models whose cache does not grow by heads and tokens."""
_BIASED = ("qwen2", "qwen2_moe")
_NORMED_HEADS = ("qwen3", "qwen3_moe", "gemma3", "gemma3_text")


@dataclass(frozen=True, slots=True)
class Puzzle:
    """Why a configuration was not understood."""

    message: str


def read(config: object, total_size: int | None = None) -> ModelShape | Puzzle:
    """The shape; `total_size` is that of `model.safetensors.index.json`, in bytes.

    With it the weights are as many as their bytes say, so that quantised models, whose embeddings
    keep 16 bits, are not taken for smaller than they are.
    """
    try:
        if not isinstance(config, Mapping):
            raise _PuzzleError("it is not an object")
        text = _language(config, total_size)
        return _shape(_Numbers(text), config, total_size)
    except _PuzzleError as error:
        return Puzzle(str(error))
    except ValidationError as error:
        fault = error.errors()[0]
        return Puzzle(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}")


class _PuzzleError(Exception):
    """A key is missing, or means something that is not foreseen."""


def _language(config: Mapping[str, Any], total_size: int | None) -> Mapping[str, Any]:
    """The part that describes the language model."""
    text = _part(config, "text_config") if "num_hidden_layers" not in config else config
    if text is not config and text and total_size is None:
        raise _PuzzleError("it has parts besides the language model, and no index has their size")
    for key, told in _OTHER_CACHES.items():
        if text.get(key):
            raise _PuzzleError(f"{key} means {told}, whose cache is not foreseen")
    return text


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object within another; empty when there is none."""
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The keys of one part of a configuration."""

    found: Mapping[str, Any]

    def __getitem__(self, key: str) -> int:
        value = self.get(key)
        if value is None or value < 1:
            raise _PuzzleError(f"{key} is missing")
        return value

    def get(self, *keys: str) -> int | None:
        """The first of the keys that is there."""
        for key in keys:
            value = self.found.get(key)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return None


def _shape(numbers: _Numbers, config: Mapping[str, Any], total_size: int | None) -> ModelShape:
    heads = numbers["num_attention_heads"]
    kv_heads = numbers.get("num_key_value_heads") or heads
    head_dim = numbers.get("head_dim") or numbers["hidden_size"] // heads
    bits = _bits(config)
    counted, active = _weights(numbers, heads, kv_heads, head_dim)
    parameters = counted if total_size is None else total_size * 8 // _stored_bits(config, bits)
    return ModelShape(
        parameters=parameters,
        active_parameters=None if active == counted else max(1, parameters * active // counted),
        layers=numbers["num_hidden_layers"],
        attention_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=numbers["max_position_embeddings"],
        bits_per_weight=bits,
    )


def _weights(numbers: _Numbers, heads: int, kv_heads: int, head_dim: int) -> tuple[int, int]:
    """All weights, and those that one token uses."""
    hidden, layers = numbers["hidden_size"], numbers["num_hidden_layers"]
    kind = str(numbers.found.get("model_type", ""))
    tied = numbers.found.get("tie_word_embeddings", kind.startswith("gemma"))
    embeddings = numbers["vocab_size"] * hidden * (1 if tied else 2)
    attention = 2 * hidden * head_dim * (heads + kv_heads) + 2 * hidden
    if kind in _BIASED:
        attention += head_dim * (heads + 2 * kv_heads)
    if kind in _NORMED_HEADS:
        attention += 2 * head_dim
    common = embeddings + hidden + layers * attention
    experts = numbers.get("num_local_experts", "num_experts", "n_routed_experts")
    if not experts:
        dense = common + layers * 3 * hidden * numbers["intermediate_size"]
        return dense, dense
    expert = 3 * hidden * (numbers.get("moe_intermediate_size") or numbers["intermediate_size"])
    shared = 3 * hidden * (numbers.get("shared_expert_intermediate_size") or 0)
    shared += expert * (numbers.get("n_shared_experts") or 0)
    used = numbers["num_experts_per_tok"]
    router = hidden * experts
    return (
        common + layers * (experts * expert + shared + router),
        common + layers * (used * expert + shared + router),
    )


def _bits(config: Mapping[str, Any]) -> Literal[4, 8, 16]:
    """Bits of a weight in the engine's memory, which takes 32-bit files as 16-bit ones."""
    quantised = _part(config, "quantization_config")
    method = str(quantised.get("quant_method", ""))
    told = quantised.get("bits") or quantised.get("w_bit")
    if told is None and quantised.get("load_in_4bit"):
        told = 4
    if told is None and "mxfp4" in method:
        told = 4
    if told is None and ("fp8" in method or quantised.get("load_in_8bit")):
        told = 8
    groups = _part(quantised, "config_groups")
    for group in groups:
        told = told or _part(_part(groups, group), "weights").get("num_bits")
    return 4 if told == 4 else 8 if told == 8 else 16


def _stored_bits(config: Mapping[str, Any], bits: int) -> int:
    """Bits of a weight in the files that the index counts."""
    text = _part(config, "text_config")
    told = (config.get("dtype"), config.get("torch_dtype"), text.get("dtype"))
    whole = "float32" in told or text.get("torch_dtype") == "float32"
    return 32 if whole and not config.get("quantization_config") else bits
