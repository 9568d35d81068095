"""What scenarios share: engines and loads by the names of conditions."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tessera.api.model_files import ModelShape
from tessera.domain.hardware.device import Hardware, slice_hardware, whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.sizing.table import GPU_COUNTS
from tessera_lab.claims.claim import ClaimLoad
from tessera_lab.claims.verdict import ClaimDetail, Conditions, ScenarioError
from tessera_lab.engine.mixes import LoadMix
from tessera_lab.engine.play import PlayedLoad, TimedRequest, play
from tessera_lab.engine.setup import EngineSetup, EngineSetupError, draft_cost
from tessera_lab.engine.speculation import Speculation
from tessera_lab.fleet.prices import PRICE_SETS, GpuPrices
from tessera_lab.load.lengths import fixed_length, log_normal

# Rates are searched to this ratio, as objectives of the engine machine are.
_RATE_PRECISION = 1.02
# An optional condition of every claim: a factor on the bandwidth of all GPUs.
BANDWIDTH_FACTOR = "bandwidthFactor"


def shape(conditions: Conditions, name: str = "model") -> ModelShape:
    """Return the model that a condition names."""
    return models()[conditions.text(name)]


def hardware(conditions: Conditions, gpu: str = "gpu", count: int | None = None) -> Hardware:
    """Return whole GPUs, as many as the condition `gpus` says unless a count is given."""
    product = products()[conditions.text(gpu)]
    devices = conditions.integer("gpus") if count is None else count
    return _scaled(conditions, whole_gpu_hardware(product, devices))


def instance(conditions: Conditions) -> Hardware:
    """Return a MIG slice of the profile that the conditions name."""
    product, profile = products()[conditions.text("gpu")], conditions.text("profile")
    hardware_of_slice = slice_hardware(product, profile)
    if hardware_of_slice is None:
        raise ScenarioError(f"{product.product} has no profile {profile}.")
    return _scaled(conditions, hardware_of_slice)


def _scaled(conditions: Conditions, device: Hardware) -> Hardware:
    factor = float(conditions.values.get(BANDWIDTH_FACTOR, 1.0))
    return replace(device, bandwidth=device.bandwidth * factor)


def engine(
    conditions: Conditions,
    *,
    model: ModelShape | None = None,
    device: Hardware | None = None,
    **options: Any,
) -> EngineSetup:
    """Return an engine; ScenarioError where the model does not fit or options contradict."""
    try:
        return EngineSetup(
            shape=model or shape(conditions),
            hardware=device or hardware(conditions),
            max_model_len=conditions.integer("maxModelLen"),
            **options,
        )
    except EngineSetupError as error:
        raise ScenarioError(f"{error}.") from None


def smallest_engine(conditions: Conditions, kv_tokens: int, **options: Any) -> EngineSetup:
    """Return an engine on the fewest GPUs whose KV cache holds so many tokens."""
    for count in GPU_COUNTS:
        try:
            setup = engine(conditions, device=hardware(conditions, count=count), **options)
        except ScenarioError:
            continue
        if setup.memory.kv_tokens >= kv_tokens:
            return setup
    raise ScenarioError(f"No node of {conditions.text('gpu')} holds {conditions.text('model')}.")


def drafting(
    conditions: Conditions, device: Hardware, precision: str | None, acceptance: float
) -> Speculation:
    """Return speculation by the draft model on the same device."""
    cost = draft_cost(shape(conditions, "draft"), shape(conditions), precision, device)
    draft_tokens = conditions.integer("draftTokens")
    return Speculation(acceptance=acceptance, draft_tokens=draft_tokens, draft_cost=cost)


def mix(conditions: Conditions) -> LoadMix:
    """Return the load that the conditions name, or fixed lengths of prompts and outputs."""
    system_tokens = int(conditions.values.get("prefixTokens", 0))
    if "load" in conditions.values:
        return replace(_mix(conditions.load), system_tokens=system_tokens)
    own = "ownTokens" if "ownTokens" in conditions.values else "promptTokens"
    return fixed_mix(conditions.integer(own), conditions.integer("outputTokens"), system_tokens)


def fixed_mix(prompt: int, output: int, system_tokens: int = 0) -> LoadMix:
    """Return a load of equal requests."""
    return LoadMix(
        name="fixed",
        prompts=fixed_length(prompt),
        outputs=fixed_length(output),
        system_tokens=system_tokens,
    )


def _mix(load: ClaimLoad) -> LoadMix:
    return LoadMix(
        name="claim",
        prompts=log_normal(load.prompt_median, load.prompt_p95),
        outputs=log_normal(load.output_median, load.output_p95),
        prompt_bounds=(load.prompt_least, load.prompt_most),
        output_bounds=(load.output_least, load.output_most),
    )


def draw(
    conditions: Conditions, load: LoadMix | None = None, rate: float | None = None
) -> tuple[TimedRequest, ...]:
    """Return the requests of the conditions: all at once, or as Poisson arrivals at a rate."""
    seed = int(conditions.values.get("seed", 1))
    return (load or mix(conditions)).draw(conditions.integer("requests"), rate, seed)


def play_load(
    conditions: Conditions,
    setup: EngineSetup,
    rate: float | None = None,
    load: LoadMix | None = None,
) -> PlayedLoad:
    """Return a load on an engine, by default that of the conditions with all requests waiting."""
    load = load or mix(conditions)
    key = (setup, load, rate, conditions.values["requests"])
    if key not in conditions.plays:
        conditions.plays[key] = play(setup, draw(conditions, load, rate))
    return conditions.plays[key]


def at_share(conditions: Conditions, setup: EngineSetup, rate: float) -> PlayedLoad:
    """Return the load at the share `loadShare` of a rate, with Poisson arrivals."""
    return play_load(conditions, setup, rate * conditions.number("loadShare"))


def rate_within(keeps: Callable[[float], bool], start: float) -> float:
    """Return the highest rate that keeps an objective, by bisection from a rate near it."""
    low, high = start, start
    while not keeps(low):
        high, low = low, low / 2
        if low < start / 1e4:
            return 0.0
    while high <= low:
        if not keeps(2 * high):
            high *= 2
        else:
            low = high = 2 * high
    while high > low * _RATE_PRECISION:
        middle = (low * high) ** 0.5
        if keeps(middle):
            low = middle
        else:
            high = middle
    return low


def prices(conditions: Conditions, gpu: str = "gpu") -> GpuPrices:
    """Return the prices of an hour of a GPU in the set of the conditions."""
    return PRICE_SETS[conditions.text("prices")][conditions.text(gpu)]


def detail(name: str, value: float, unit: str) -> ClaimDetail:
    """Return a figure that stands beside those that decide."""
    return ClaimDetail(name=name, value=value, unit=unit)


def throughput_detail(name: str, played: PlayedLoad) -> ClaimDetail:
    return detail(name, played.output_tokens_per_second, "tokens/s")
