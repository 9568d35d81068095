"""The shape of the model that the arguments name."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tessera.api.inference_service import ModelShape
from tessera.domain import catalog
from tessera.engine_sim.environment import SHAPE
from tessera.engine_sim.errors import EngineExit

log = logging.getLogger(__name__)

_SMALL = "meta-llama/Llama-3.2-1B-Instruct"
"""Whose shape a model gets that nobody described."""

_BITS = {"float32": 32}


def shape_of(model: str, env: Mapping[str, str]) -> ModelShape:
    """Known models by name, folders by their `config.json`, others from the environment."""
    known = catalog.models().get(model)
    if known is not None:
        return known
    config = Path(model, "config.json")
    if config.is_file():
        return _from_config(config)
    if SHAPE in env:
        return _from_json(env[SHAPE])
    log.warning("%s is not known and %s is not set: taking the shape of %s", model, SHAPE, _SMALL)
    return catalog.models()[_SMALL]


def _from_json(text: str) -> ModelShape:
    try:
        return ModelShape.model_validate_json(text)
    except ValidationError as error:
        raise EngineExit(1, f"{SHAPE}: {_first(error)}") from error


def _from_config(path: Path) -> ModelShape:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        heads = config["num_attention_heads"]
        width = config.get("head_dim") or config["hidden_size"] // heads
        return ModelShape(
            parameters=_parameters(config, path.parent, width),
            layers=config["num_hidden_layers"],
            attention_heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=width,
            max_position_embeddings=config["max_position_embeddings"],
            bits_per_weight=_bits(config),
        )
    except ValidationError as error:
        raise EngineExit(1, f"{path}: {_first(error)}") from error
    except (json.JSONDecodeError, KeyError) as error:
        raise EngineExit(1, f"{path} is no configuration of a language model: {error}") from error


def _parameters(config: Mapping[str, Any], folder: Path, width: int) -> int:
    """As the weights' index says, else counted for a dense transformer with a gated MLP."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        size: int = json.loads(index.read_text(encoding="utf-8"))["metadata"]["total_size"]
        return size * 8 // _bits(config)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    attention = 2 * hidden * width * (heads + kv_heads)
    mlp = 3 * hidden * config["intermediate_size"]
    embeddings = (1 if config.get("tie_word_embeddings") else 2) * config["vocab_size"] * hidden
    return int(config["num_hidden_layers"] * (attention + mlp) + embeddings)


def _bits(config: Mapping[str, Any]) -> int:
    return _BITS.get(config.get("dtype") or config.get("torch_dtype") or "", 16)


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    return f"{'.'.join(map(str, found['loc']))}: {found['msg']}"
