"""The configuration of one engine, from `vllm serve`'s arguments and the environment."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from tessera.api.model_files import ModelShape
from tessera.domain.hardware.device import Hardware
from tessera.domain.model.overrides import overridden_shape, without_media
from tessera.domain.perf.step import StepTime
from tessera.domain.vllm.extra_args import has_media
from tessera.domain.vllm.facts import EngineFacts, version_facts
from tessera_lab.engine.requests import EngineLimits
from tessera_lab.engine.speculation import Speculation
from tessera_lab.sim.errors import EngineExit
from tessera_lab.sim.launch import environment
from tessera_lab.sim.launch.arguments import Arguments, parse_arguments
from tessera_lab.sim.launch.engine_speed import engine_speed
from tessera_lab.sim.launch.given_answers import GivenAnswer, given_answers
from tessera_lab.sim.launch.kv_cache import (
    KvCacheLayout,
    engine_limits,
    kv_cache_layout,
    simulated_hardware,
)
from tessera_lab.sim.launch.model_shape import model_shape
from tessera_lab.sim.launch.speculation import draft_shape, draft_tokens, speculation_of

# The simulated version of vLLM.
VERSION = "0.32.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """An engine that can start."""

    facts: EngineFacts
    arguments: Arguments
    names: tuple[str, ...]
    """Served names; the first one is the metrics' label."""
    adapters: Mapping[str, str]
    """Paths by name of the LoRA adapters that are served from the start."""
    api_keys: frozenset[str]
    shape: ModelShape
    precision: str | None
    hardware: Hardware
    kv_cache: KvCacheLayout
    limits: EngineLimits
    speed: StepTime
    speculation: Speculation | None
    """Drafts that the engine computes; None while no acceptance is given."""
    answers: Mapping[str, GivenAnswer]
    """What it answers to some prompts, as the chat template renders them."""
    start_seconds: float
    dev_mode: bool
    """Whether the routes of development mode are open."""
    allows_adapter_updates: bool
    """Whether adapters may be loaded and unloaded while it runs."""

    @property
    def is_pooling(self) -> bool:
        """Return whether it generates no text: by its flag, else by its model."""
        runner = self.arguments.runner
        return runner == "pooling" or (runner == "auto" and self.shape.pooling is not None)

    @property
    def draft_tokens(self) -> int:
        """Return the tokens that a step drafts; 0 without speculation."""
        return draft_tokens(self.arguments)


def load_config(argv: Sequence[str], env: Mapping[str, str]) -> EngineConfig:
    """Return the engine that these arguments start; raise EngineExit as its process would exit."""
    facts = version_facts(VERSION)
    if facts is None:
        raise EngineExit(1, f"the facts of vLLM {VERSION} are missing from this installation")
    arguments = parse_arguments(argv, facts)
    hardware = simulated_hardware(env, arguments.tensor_parallel_size)
    shape = model_shape(arguments.named_model, env)
    if isinstance(arguments.hf_overrides, Mapping):
        shape = overridden_shape(shape, arguments.hf_overrides)
    if not has_media(asdict(arguments)):
        shape = without_media(shape)
    precision = "fp8" if arguments.quantization == "fp8" else None
    draft = draft_shape(arguments, env)
    kv_cache = kv_cache_layout(shape, precision, hardware, arguments, draft)
    allows_long = environment.read_flag(env, environment.LONG_CONTEXT)
    limits = engine_limits(shape, hardware, kv_cache, arguments, allows_long=allows_long)
    speculation = speculation_of(arguments, shape, precision, hardware, env)
    if speculation is not None:
        try:
            speculation.check_limits(limits)
        except ValueError as error:
            raise EngineExit(1, str(error)) from None
    return EngineConfig(
        facts=facts,
        arguments=arguments,
        names=arguments.served_model_name or (arguments.named_model,),
        adapters=arguments.adapter_paths,
        api_keys=frozenset(
            key for key in arguments.api_key or (env.get(environment.API_KEY),) if key
        ),
        shape=shape,
        precision=precision,
        hardware=hardware,
        kv_cache=kv_cache,
        limits=limits,
        speed=engine_speed(shape, precision, hardware, arguments.terms, env),
        speculation=speculation,
        answers=given_answers(env),
        start_seconds=environment.read_number(
            env, environment.START_SECONDS, environment.DEFAULT_START_SECONDS
        ),
        dev_mode=environment.read_flag(env, environment.DEV_MODE),
        allows_adapter_updates=arguments.enable_lora
        and environment.read_flag(env, environment.RUNTIME_ADAPTERS),
    )
