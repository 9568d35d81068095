"""Claims about several levers at once, on the engine machine."""

import math
from typing import Any

from tessera_lab.claims.formulas import reduction, stacked_saving
from tessera_lab.claims.scenarios.setups import (
    at_share,
    detail,
    drafting,
    engine,
    hardware,
    play_load,
    prices,
    shape,
    smallest_engine,
)
from tessera_lab.claims.verdict import ClaimDetail, Conditions, ScenarioResult
from tessera_lab.engine.play import PlayedLoad
from tessera_lab.engine.setup import EngineSetup, KvCache


def _naive(conditions: Conditions, **options: Any) -> EngineSetup:
    """Return static batches in contiguous slots."""
    batch = conditions.integer("baselineBatch")
    return engine(conditions, static_batch=batch, kv_cache=KvCache.CONTIGUOUS, **options)


def _continuous(conditions: Conditions, **options: Any) -> EngineSetup:
    return engine(conditions, max_num_seqs=conditions.integer("maxNumSeqs"), **options)


def _full(conditions: Conditions, **options: Any) -> EngineSetup:
    """Return continuous batching, paging, narrow weights and speculation."""
    precision = conditions.text("precision")
    device = options.pop("device", None) or hardware(conditions)
    acceptance = conditions.number("acceptance")
    return _continuous(
        conditions,
        device=device,
        precision=precision,
        speculation=drafting(conditions, device, precision, acceptance),
        draft=shape(conditions, "draft"),
        **options,
    )


def _costs(before: PlayedLoad, after: PlayedLoad) -> tuple[ClaimDetail, ...]:
    return tuple(
        detail(name, played.output_tokens_per_second, "tokens/s")
        for name, played in (("baseline", before), ("full stack", after))
    )


def naive_to_optimized(conditions: Conditions) -> ScenarioResult:
    """H01: cost and latency of the full stack."""
    naive, full = _naive(conditions), _full(conditions, prefix_cache=True)
    before, after = play_load(conditions, naive), play_load(conditions, full)
    rate = before.requests_per_second
    fewer = conditions.with_value("requests", conditions.integer("latencyRequests"))
    latencies = [at_share(fewer, setup, rate).mean_latency for setup in (naive, full)]
    return ScenarioResult(
        {
            "cost": after.output_tokens_per_second / before.output_tokens_per_second,
            "latency": latencies[0] / latencies[1],
        },
        _costs(before, after),
    )


def serving_stack(conditions: Conditions) -> ScenarioResult:
    """H02: cost with the same model and hardware."""
    before, after = (
        play_load(conditions, _naive(conditions)),
        play_load(conditions, _full(conditions)),
    )
    ratio = after.output_tokens_per_second / before.output_tokens_per_second
    return ScenarioResult({"cost": ratio}, _costs(before, after))


def all_levers(conditions: Conditions) -> ScenarioResult:
    """H03: everything at once, and the product of each lever alone."""
    small_share = conditions.number("smallShare")
    missed = 1 - conditions.number("cacheHits")
    one_gpu = hardware(conditions, count=conditions.integer("precisionGpus"))
    small = shape(conditions, "smallModel")
    precision = conditions.text("precision")
    naive = _gpu_seconds(conditions, _naive(conditions))
    large_stack = _full(conditions, device=one_gpu, prefix_cache=True)
    small_stack = _continuous(
        conditions, model=small, device=one_gpu, precision=precision, prefix_cache=True
    )
    blended = (1 - small_share) * _gpu_seconds(conditions, large_stack)
    blended += small_share * _gpu_seconds(conditions, small_stack)
    plain_small = _naive(conditions, model=small, device=one_gpu)
    contiguous = _gpu_seconds(conditions, _continuous(conditions, kv_cache=KvCache.CONTIGUOUS))
    paged = _gpu_seconds(conditions, _continuous(conditions))
    drafted = _continuous(
        conditions,
        speculation=large_stack.speculation,
        draft=large_stack.draft,
    )
    batch = {"static_batch": conditions.integer("baselineBatch"), "kv_cache": KvCache.CONTIGUOUS}
    narrow = smallest_engine(conditions, 0, precision=precision, **batch)
    small_naive = small_share * _gpu_seconds(conditions, plain_small)
    singles = {
        "batching": naive / contiguous,
        "paging": contiguous / paged,
        "int4": naive / _gpu_seconds(conditions, narrow),
        "prefix cache": paged
        / _gpu_seconds(conditions, _continuous(conditions, prefix_cache=True)),
        "speculation": paged / _gpu_seconds(conditions, drafted),
        "response cache": 1 / missed,
        "routing": naive / ((1 - small_share) * naive + small_naive),
    }
    details = [detail(name, gain, "x") for name, gain in singles.items()]
    details.append(detail("product of these", math.prod(singles.values()), "x"))
    cost = naive / (missed * blended)
    hourly = prices(conditions).on_demand * conditions.integer("gpus")
    before = play_load(conditions, _naive(conditions)).usd_per_million(hourly)
    usd = (detail("baseline", before, "USD/M"), detail("all levers", before / cost, "USD/M"))
    return ScenarioResult({"cost": cost}, (*usd, *details))


def _gpu_seconds(conditions: Conditions, setup: EngineSetup) -> float:
    return play_load(conditions, setup).seconds * setup.hardware.devices


def frontier_price(conditions: Conditions) -> ScenarioResult:
    """H04: an API's price over that of a small model at a share of its load."""
    setup = _continuous(conditions, precision=conditions.text("precision"))
    full = play_load(conditions, setup).usd_per_million(prices(conditions).on_demand)
    cost = full / conditions.number("use")
    return ScenarioResult(
        {"cost": conditions.number("apiUsdPerMillion") / cost},
        (detail("self-hosted", cost, "USD/M"),),
    )


def three_techniques(conditions: Conditions) -> ScenarioResult:
    """H36: quantization, caches and batching stacked, and alone."""

    def seconds(setup: EngineSetup) -> float:
        return play_load(conditions, setup).seconds

    precision = conditions.text("precision")
    naive = seconds(_naive(conditions))
    paged = seconds(_continuous(conditions))
    stack = seconds(_continuous(conditions, precision=precision, prefix_cache=True))
    singles = {
        "batching and paging": reduction(naive, paged),
        "quantization": reduction(naive, seconds(_naive(conditions, precision=precision))),
        "prefix cache": reduction(paged, seconds(_continuous(conditions, prefix_cache=True))),
    }
    details = [detail(name, saving, "share") for name, saving in singles.items()]
    details.append(detail("if they multiplied", stacked_saving(singles.values()), "share"))
    # The low and high ends of the source's own table.
    for name, savings in (("source, low ends", (0.3, 0.4, 0.2)), ("high ends", (0.5, 0.6, 0.4))):
        details.append(detail(f"{name} multiplied", stacked_saving(savings), "share"))
    return ScenarioResult({"saving": reduction(naive, stack)}, tuple(details))
