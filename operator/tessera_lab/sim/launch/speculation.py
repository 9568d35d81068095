"""The speculation that the arguments ask for, with the acceptance of the environment."""

from collections.abc import Mapping
from typing import Any

from tessera.api.model_files import ModelShape
from tessera.domain.hardware.device import Hardware
from tessera_lab.engine.setup import draft_cost
from tessera_lab.engine.speculation import Speculation
from tessera_lab.sim.errors import EngineExit
from tessera_lab.sim.launch.arguments import Arguments
from tessera_lab.sim.launch.environment import ACCEPTANCE, read_number
from tessera_lab.sim.launch.model_shape import model_shape


def draft_tokens(arguments: Arguments) -> int:
    """Return the tokens that a step drafts; 0 without speculation."""
    return int(_config(arguments).get("num_speculative_tokens") or 0)


def draft_shape(arguments: Arguments, env: Mapping[str, str]) -> ModelShape | None:
    """Return the shape of the draft model; None for drafts without a model."""
    model = _config(arguments).get("model")
    return model_shape(str(model), env) if model else None


def speculation_of(
    arguments: Arguments,
    shape: ModelShape,
    precision: str | None,
    hardware: Hardware,
    env: Mapping[str, str],
) -> Speculation | None:
    """Return what the engine drafts; None without speculation or without an acceptance."""
    acceptance, tokens = read_number(env, ACCEPTANCE, 0.0), draft_tokens(arguments)
    if acceptance >= 1:
        raise EngineExit(1, f"{ACCEPTANCE}={acceptance:g} is not a number below 1")
    if not tokens or not acceptance:
        return None
    draft = draft_shape(arguments, env)
    cost = 0.0 if draft is None else draft_cost(draft, shape, precision, hardware)
    return Speculation(acceptance=acceptance, draft_tokens=tokens, draft_cost=cost)


def _config(arguments: Arguments) -> Mapping[str, Any]:
    config: Mapping[str, Any] = arguments.speculative_config or {}
    return config
