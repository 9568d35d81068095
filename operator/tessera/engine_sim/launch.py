"""From `vllm serve`'s arguments and the environment to everything that an engine is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.api.inference_service import ModelShape
from tessera.domain import perf, vllm_flags
from tessera.domain.engine_facts import EngineFacts
from tessera.domain.engine_requests import Limits
from tessera.domain.hardware import Hardware
from tessera.engine_sim import memory, shapes, speeds
from tessera.engine_sim.arguments import Arguments, arguments_from
from tessera.engine_sim.environment import (
    API_KEY,
    DEFAULT_START_SECONDS,
    DEVELOPMENT,
    RUNTIME_ADAPTERS,
    START_SECONDS,
    number,
    switch,
)
from tessera.engine_sim.errors import EngineExit
from tessera.engine_sim.memory import Cache

VERSION = "0.32.0"
"""The vLLM that this looks like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """An engine that would start."""

    facts: EngineFacts
    arguments: Arguments
    names: tuple[str, ...]
    """Served names; the first one is the metrics' label."""
    adapters: Mapping[str, str]
    """Paths of LoRA adapters by their names, which are served from the start."""
    api_keys: frozenset[str]
    shape: ModelShape
    precision: str | None
    place: Hardware
    cache: Cache
    limits: Limits
    speed: perf.StepTime
    start_seconds: float
    development: bool
    """Its routes of development are open."""
    changes_adapters: bool
    """Adapters may be loaded and unloaded while it runs."""

    @property
    def drafted(self) -> int:
        """Tokens that a step guesses ahead; 0 without speculation."""
        asked = self.arguments.speculative_config or {}
        return int(asked.get("num_speculative_tokens") or 0)


def launch_from(argv: Sequence[str], env: Mapping[str, str]) -> Launch:
    """The engine that these arguments start; EngineExit as its process would end."""
    facts = vllm_flags.version_facts(VERSION)
    if facts is None:
        raise EngineExit(1, f"the facts of vLLM {VERSION} are missing from this installation")
    arguments = arguments_from(argv, facts)
    place = memory.device(env, arguments.tensor_parallel_size)
    shape = shapes.shape_of(arguments.named_model, env)
    precision = "fp8" if arguments.quantization == "fp8" else None
    room = memory.cache(shape, precision, place, arguments)
    return Launch(
        facts=facts,
        arguments=arguments,
        names=arguments.served_model_name or (arguments.named_model,),
        adapters=arguments.adapters,
        api_keys=frozenset(key for key in arguments.api_key or (env.get(API_KEY),) if key),
        shape=shape,
        precision=precision,
        place=place,
        cache=room,
        limits=memory.limits(shape, place, room, arguments),
        speed=speeds.speed_of(shape, precision, place, env),
        start_seconds=number(env, START_SECONDS, DEFAULT_START_SECONDS),
        development=switch(env, DEVELOPMENT),
        changes_adapters=arguments.enable_lora and switch(env, RUNTIME_ADAPTERS),
    )
