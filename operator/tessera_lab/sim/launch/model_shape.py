"""The shape of the model that the arguments name."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from tessera.api.model_files import ModelShape
from tessera.domain.hardware import gpu_catalog as catalog
from tessera.domain.model import config as model_config
from tessera.domain.model.config import UnsupportedConfig
from tessera_lab.sim.errors import EngineExit
from tessera_lab.sim.launch.environment import SHAPE

log = logging.getLogger(__name__)

# Its shape stands in for models without a description.
_DEFAULT_MODEL = "meta-llama/Llama-3.2-1B-Instruct"


def model_shape(model: str, env: Mapping[str, str]) -> ModelShape:
    """Return the shape of a known model, of a folder's `config.json`, or of the environment."""
    known = catalog.models().get(model)
    if known is not None:
        return known
    config = Path(model, model_config.CONFIG)
    if config.is_file():
        return _from_config(config)
    if SHAPE in env:
        return _from_json(env[SHAPE])
    log.warning(
        "%s is not known and %s is not set: taking the shape of %s", model, SHAPE, _DEFAULT_MODEL
    )
    return catalog.models()[_DEFAULT_MODEL]


def _from_json(text: str) -> ModelShape:
    try:
        return ModelShape.model_validate_json(text)
    except ValidationError as error:
        detail = error.errors()[0]
        location = ".".join(map(str, detail["loc"]))
        raise EngineExit(1, f"{SHAPE}: {location}: {detail['msg']}") from error


def _from_config(path: Path) -> ModelShape:
    try:
        shape = model_config.read_files(lambda name: _read_beside(path, name))
    except json.JSONDecodeError as error:
        raise EngineExit(1, f"{path} is no configuration of a language model: {error}") from error
    if isinstance(shape, UnsupportedConfig):
        raise EngineExit(1, f"{path} is no configuration of a language model: {shape.message}")
    return shape


def _read_beside(path: Path, name: str) -> object:
    neighbor = path.with_name(name)
    return json.loads(neighbor.read_text(encoding="utf-8")) if neighbor.is_file() else None
