"""Claims about the KV cache and about narrow weights on the engine machine."""

from tessera.domain.perf import footprint
from tessera.domain.perf.step import StepTime
from tessera_lab.claims.scenarios.setups import (
    detail,
    engine,
    fixed_mix,
    play_load,
    shape,
    smallest_engine,
    throughput_detail,
)
from tessera_lab.claims.verdict import Conditions, ScenarioResult
from tessera_lab.engine import EngineCore
from tessera_lab.engine.play import play
from tessera_lab.engine.requests import Allocator, EngineLimits, EngineRequest
from tessera_lab.engine.setup import BLOCK_TOKENS, KvCache
from tessera_lab.engine.waste import padding_waste, slot_waste

# All prompts in one step.
_STEP_TOKENS = 5_000_000
# Spreads the lengths evenly in every part of the list.
_GOLDEN_RATIO = 0.6180339887


def paged_throughput(conditions: Conditions) -> ScenarioResult:
    """H09, H16: paged over contiguous KV cache with the same scheduler."""
    seats = conditions.integer("maxNumSeqs")
    contiguous, paged = (
        play_load(conditions, engine(conditions, max_num_seqs=seats, kv_cache=kv_cache))
        for kv_cache in (KvCache.CONTIGUOUS, KvCache.PAGED)
    )
    return ScenarioResult(
        {"throughput": paged.output_tokens_per_second / contiguous.output_tokens_per_second},
        (
            throughput_detail("contiguous", contiguous),
            throughput_detail("paged", paged),
            detail("contiguous waste", contiguous.kv_waste or 0.0, "share"),
            detail("paged waste", paged.kv_waste or 0.0, "share"),
        ),
    )


def cache_waste(conditions: Conditions) -> ScenarioResult:
    """H14: what both allocators waste, and admit."""
    contiguous = _full_engine(conditions, Allocator.CONTIGUOUS)
    paged = _full_engine(conditions, Allocator.PAGED)
    padding = padding_waste((50, 150, 200, 500))
    return ScenarioResult(
        {
            "contiguous waste": _waste(contiguous),
            "paged waste": _waste(paged),
            "concurrency": paged.running / contiguous.running,
        },
        (
            detail("admitted contiguous", contiguous.running, "requests"),
            detail("admitted paged", paged.running, "requests"),
            detail("50 tokens in a slot of 2,048", slot_waste(50, 2048), "share"),
            detail("50 tokens padded to 500", padding.requests[0], "share"),
            detail("50, 150, 200 and 500 tokens padded to 500", padding.batch, "share"),
        ),
    )


def cache_concurrency(conditions: Conditions) -> ScenarioResult:
    """H15: how many requests both allocators admit."""
    contiguous = _full_engine(conditions, Allocator.CONTIGUOUS)
    paged = _full_engine(conditions, Allocator.PAGED)
    return ScenarioResult({"contiguous": contiguous.running, "paged": paged.running})


def _full_engine(conditions: Conditions, allocator: Allocator) -> EngineCore:
    """Return an engine that has admitted as many of the requests as it can, near their ends."""
    token_bytes = footprint.cache_bytes_per_token(shape(conditions), devices=1)
    limits = EngineLimits(
        max_model_len=conditions.integer("maxModelLen"),
        max_num_seqs=conditions.integer("requests"),
        max_num_batched_tokens=_STEP_TOKENS,
        blocks=int(conditions.number("kvGigabytes") * 1e9 // (BLOCK_TOKENS * token_bytes)) + 1,
        allocator=allocator,
    )
    core = EngineCore(limits, StepTime(weights=0.0, kv_token=0.0, token=0.0))
    shortest, longest = conditions.integer("shortest"), conditions.integer("longest")
    for number in range(conditions.integer("requests")):
        length = shortest + int(number * _GOLDEN_RATIO % 1 * (longest - shortest + 1))
        core.submit(EngineRequest(id=number, prompt_tokens=length - 1, output_tokens=2))
    core.begin_step()
    return core


def _waste(core: EngineCore) -> float:
    return slot_waste(core.kv_tokens, core.logical_blocks * core.limits.block_size)


def narrow_weights(conditions: Conditions) -> ScenarioResult:
    """H18: GPU seconds per decoded token at 8 and at 4 bits over 16."""
    streams, context = conditions.integer("streams"), conditions.integer("contextTokens")
    output = conditions.integer("outputTokens")
    needed = max(streams * (context + output), conditions.integer("maxModelLen"))
    requests = fixed_mix(context, output).draw(streams)
    seconds, details = {}, []
    for name, precision in (("bf16", None), ("int8", "int8"), ("int4", "awq-int4")):
        setup = smallest_engine(conditions, needed, precision=precision, max_num_seqs=streams)
        # The request that is admitted last shares its steps with no prompt.
        step = play(setup, requests).tpot(1) or 0.0
        seconds[name] = step * setup.hardware.devices / streams
        details.append(detail(f"GPUs in {name}", setup.hardware.devices, ""))
        details.append(detail(f"GPU time per token in {name}", 1e3 * seconds[name], "ms"))
    ratios = {name: seconds[name] / seconds["bf16"] for name in ("int8", "int4")}
    return ScenarioResult(ratios, tuple(details))
