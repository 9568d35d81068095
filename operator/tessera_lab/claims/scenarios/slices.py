"""Claims about small models on MIG slices, on the engine machine."""

from tessera_lab.claims.formulas import partition_gain
from tessera_lab.claims.scenarios.setups import (
    detail,
    engine,
    fixed_mix,
    hardware,
    instance,
    play_load,
    prices,
    shape,
    throughput_detail,
)
from tessera_lab.claims.verdict import Conditions, ScenarioResult


def partitioned_gpu(conditions: Conditions) -> ScenarioResult:
    """H40: small models on slices over a larger model on the whole GPU."""
    seats, small = conditions.integer("streams"), shape(conditions, "smallModel")
    gpu = hardware(conditions, count=1)
    whole = play_load(conditions, engine(conditions, device=gpu, max_num_seqs=seats))
    sliced = play_load(
        conditions,
        engine(conditions, model=small, device=instance(conditions), max_num_seqs=seats),
    )
    small_whole = play_load(
        conditions, engine(conditions, model=small, device=gpu, max_num_seqs=seats)
    )
    rates = [sliced.output_tokens_per_second] * conditions.integer("instances")
    return ScenarioResult(
        {"throughput": partition_gain(rates, whole.output_tokens_per_second)},
        (
            throughput_detail("8B on the whole GPU", whole),
            throughput_detail("3B on a slice", sliced),
            throughput_detail("3B on the whole GPU", small_whole),
            detail(
                "slices over the same 3B on the whole GPU",
                partition_gain(rates, small_whole.output_tokens_per_second),
                "x",
            ),
            detail("by the source's rates", partition_gain([800.0] * 4, 1000.0), "x"),
        ),
    )


def router(conditions: Conditions) -> ScenarioResult:
    """H34: latency of a router's calls, and what the main call costs more."""
    small = engine(
        conditions,
        model=shape(conditions, "router"),
        device=instance(conditions),
        max_num_seqs=conditions.integer("maxNumSeqs"),
    )
    loaded = play_load(conditions, small, conditions.number("rate"))
    main_mix = fixed_mix(
        conditions.integer("mainPromptTokens"), conditions.integer("mainOutputTokens")
    )
    main_setup = engine(conditions, max_num_seqs=256)
    main = play_load(conditions, main_setup, load=main_mix)
    calls = play_load(conditions, small)
    hourly = prices(conditions).on_demand
    device = small.hardware
    slice_hourly = hourly * device.memory_slices / device.memory_slices_of_gpu
    main_usd = hourly * main_setup.hardware.devices / (3600 * main.requests_per_second)
    router_usd = slice_hourly / (3600 * calls.requests_per_second)
    return ScenarioResult(
        {"latency": loaded.latency(95), "cost": main_usd / router_usd},
        (
            detail("1,000 main calls", 1000 * main_usd, "USD"),
            detail("1,000 router calls", 1000 * router_usd, "USD"),
        ),
    )
