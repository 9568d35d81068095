"""The speed of an engine: predicted for its hardware, or measured and given."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic.alias_generators import to_camel

from tessera.api.model_files import ModelShape
from tessera.domain.hardware.device import Hardware
from tessera.domain.perf import sources
from tessera.domain.perf.engine_terms import EngineTerms
from tessera.domain.perf.step import StepTime
from tessera_lab.sim.errors import EngineExit
from tessera_lab.sim.launch.environment import SPEED

# Fields of a step's time, by their keys on the wire.
_FIELDS_BY_KEY = {
    to_camel(field.name): field.name for field in fields(StepTime) if field.type is float
}


def engine_speed(
    shape: ModelShape,
    precision: str | None,
    hardware: Hardware,
    terms: EngineTerms,
    env: Mapping[str, str],
) -> StepTime:
    """Return the speed in the environment, else the prediction."""
    text = env.get(SPEED)
    return _parse_speed(text) if text else sources.step_time(shape, precision, hardware, terms)


def as_json(speed: StepTime) -> str:
    """Return the value of the environment variable; parts of 0 seconds are left out."""
    parts = {key: getattr(speed, name) for key, name in _FIELDS_BY_KEY.items()}
    return json.dumps({key: seconds for key, seconds in parts.items() if seconds})


def _parse_speed(text: str) -> StepTime:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _invalid_speed(f"no JSON: {error}") from None
    if not isinstance(values, dict):
        raise _invalid_speed("not an object")
    for key, value in values.items():
        if key not in _FIELDS_BY_KEY:
            raise _invalid_speed(f"{key}: not known; known are {', '.join(_FIELDS_BY_KEY)}")
        if not _is_seconds(value):
            raise _invalid_speed(f"{key}: {value} is not a number of at least 0")
    parts: dict[str, Any] = {
        name: float(values.get(key, 0.0)) for key, name in _FIELDS_BY_KEY.items()
    }
    speed = StepTime(source="Measured", **parts)
    if (speed.windowed_token or speed.windowed_pair) and not speed.window:
        raise _invalid_speed("window: missing, and windowedToken or windowedPair depend on it")
    if not speed.seconds(decoding=1, kv_tokens=1) > 0:
        raise _invalid_speed("a step of one token would take no time")
    return speed


def _is_seconds(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0


def _invalid_speed(reason: str) -> EngineExit:
    return EngineExit(1, f"{SPEED}: {reason}. Give seconds, such as {_EXAMPLE}")


_EXAMPLE = '{"fixed": 0.008, "sequence": 0.0004, "token": 0.0009}'
