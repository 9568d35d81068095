"""The speed of an engine: predicted for its hardware, or measured elsewhere and given."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tessera.api.inference_service import ModelShape
from tessera.domain import perf
from tessera.domain.hardware import Hardware
from tessera.engine_sim.environment import SPEED
from tessera.engine_sim.errors import EngineExit

_NAMES = {
    first + "".join(word.capitalize() for word in rest): field.name
    for field in fields(perf.StepTime)
    if field.type is float
    for first, *rest in (field.name.split("_"),)
}
"""Fields of a step's time, by their keys on the wire."""


def speed_of(
    shape: ModelShape, precision: str | None, place: Hardware, env: Mapping[str, str]
) -> perf.StepTime:
    """What the environment says, else the prediction."""
    text = env.get(SPEED)
    return _given(text) if text else perf.step_time(shape, precision, place)


def as_json(speed: perf.StepTime) -> str:
    """What the environment would have to say; parts that take no time are left out."""
    parts = {key: getattr(speed, name) for key, name in _NAMES.items()}
    return json.dumps({key: seconds for key, seconds in parts.items() if seconds})


def _given(text: str) -> perf.StepTime:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad(f"no JSON: {error}") from None
    if not isinstance(told, dict):
        raise _bad("not an object")
    for key, value in told.items():
        if key not in _NAMES:
            raise _bad(f"{key}: not known; known are {', '.join(_NAMES)}")
        if not _is_seconds(value):
            raise _bad(f"{key}: {value} is not a number of seconds of at least 0")
    parts = {name: float(told.get(key, 0.0)) for key, name in _NAMES.items()}
    speed = perf.StepTime(source="measured", **parts)
    if not speed.seconds(decoding=1, kv_tokens=1) > 0:
        raise _bad("a step of one token would take no time")
    return speed


def _is_seconds(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and math.isfinite(value) and value >= 0


def _bad(why: str) -> EngineExit:
    return EngineExit(1, f"{SPEED}: {why}. Give seconds, such as {_EXAMPLE}")


_EXAMPLE = '{"fixed": 0.008, "sequence": 0.0004, "token": 0.0009}'
