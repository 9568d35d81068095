import asyncio
import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tessera.domain.perf.speculation import acceptance_of
from tessera.domain.vllm.facts import Metric
from tessera_lab.sim.errors import EngineExit
from tessera_lab.sim.launch.engine_config import load_config
from tests.lab.sim.running import FACTS, MODEL, SHAPE, SLOW, SimulatedEngine, running

# A histogram with the name of a counter.
ODD = {"vllm:iteration_tokens_total"}
LONG = {"prompt": "x" * 400, "max_tokens": 3000, "ignore_eos": True, "stream": True}


async def _exported_metrics(engine: SimulatedEngine) -> dict[str, Metric]:
    """The engine's own metrics in the terms of the fact table."""
    answer = await engine.http.get("/metrics")
    metrics = {}
    for family in text_string_to_metric_families(answer.text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        bounds = {float(s.labels["le"]) for s in family.samples if "le" in s.labels}
        if name.startswith("vllm:"):
            metrics[name] = Metric(
                name=name,
                type=family.type,
                labels=tuple(sorted(labels)),
                buckets=tuple(sorted(bounds - {float("inf")})),
                always=True,
            )
    return metrics


async def test_metrics_have_the_names_types_labels_and_buckets_of_a_default_server() -> None:
    async with running() as engine:
        shown = await _exported_metrics(engine)
    created = {name for name in shown if name.endswith("_created")}
    counted = {name for name, metric in shown.items() if metric.type in ("counter", "histogram")}
    assert created == {f"{name.removesuffix('_total')}_created" for name in counted - ODD} | {
        f"{name}_created" for name in ODD
    }
    assert {name: shown[name] for name in shown.keys() - created} == {
        name: metric
        for name, metric in FACTS.metrics.items()
        if metric.always and name.startswith("vllm:")
    }


async def test_without_log_stats_the_engine_shows_no_metric_at_all() -> None:
    async with running("--disable-log-stats") as engine:
        assert await _exported_metrics(engine) == {}


async def test_counters_and_histograms_follow_the_requests() -> None:
    async with running() as engine:
        await engine.post("/v1/completions", prompt="x" * 40, max_tokens=5)
        await engine.post("/v1/completions", prompt="x" * 80, max_tokens=4000)
        seen = await engine.metrics()
    answer = seen["generation_tokens_total"] - 5
    wanted = {
        "prompt_tokens_total": 30,
        "prompt_tokens_by_source_total local_compute": 30,
        "prefix_cache_queries_total": 30,
        "prefix_cache_hits_total": 0,
        "request_success_total length": 1,
        "request_success_total stop": 1,
        "request_success_total abort": 0,
        "iteration_tokens_total_count": 5 + answer,
        "iteration_tokens_total_sum": 35 + answer,
        "time_to_first_token_seconds_count": 2,
        "inter_token_latency_seconds_count": 4 + answer - 1,
        "e2e_request_latency_seconds_count": 2,
        "request_prompt_tokens_sum": 30,
        "request_generation_tokens_sum": 5 + answer,
        "request_params_max_tokens_sum": 4005,
        "num_requests_running": 0,
        "kv_cache_usage_perc": 0,
        "engine_sleep_state awake": 1,
        "estimated_flops_per_gpu_total": 0,
    }
    assert {name: seen[name] for name in wanted} == wanted
    phases = ("queue", "prefill", "decode")
    parts = sum(seen[f"request_{phase}_time_seconds_sum"] for phase in phases)
    assert abs(parts - seen["e2e_request_latency_seconds_sum"]) < 1e-6


async def test_running_and_waiting_requests_are_counted_apart_until_they_end() -> None:
    async with running(*SLOW, "--max-num-seqs", "2", "--enable-server-load-tracking") as engine:
        streams = [asyncio.create_task(engine.stream("/v1/completions", **LONG)) for _ in range(5)]
        await engine.wait_for_metrics(num_requests_running=2, num_requests_waiting=3)
        seen = await engine.metrics()
        load = (await engine.http.get("/load")).json()
        for stream in streams:
            stream.cancel()
        await engine.wait_for_metrics(num_requests_running=0, num_requests_waiting=0)
        left = await engine.metrics()
    assert seen["num_requests_waiting_by_reason capacity"] == 3
    assert 0 < seen["kv_cache_usage_perc"] < 0.01
    assert load == {"server_load": 5}
    ends = {name: value for name, value in left.items() if name.startswith("request_success_total")}
    assert not any(ends.values())


async def test_the_load_is_zero_unless_it_is_tracked() -> None:
    async with running(*SLOW) as engine:
        stream = asyncio.create_task(engine.stream("/v1/completions", **LONG))
        await engine.wait_for_metrics(num_requests_running=1)
        load = (await engine.http.get("/load")).json()
        stream.cancel()
    assert load == {"server_load": 0}


async def test_short_memory_shows_as_preemptions() -> None:
    blocks = ("--num-gpu-blocks-override", "40", "--max-model-len", "600")
    async with running(*blocks) as engine:
        long = {"prompt": "x" * 400, "max_tokens": 450, "ignore_eos": True}
        answers = await asyncio.gather(*(engine.post("/v1/completions", **long) for _ in range(3)))
        seen = await engine.metrics()
    assert [response.json()["usage"]["completion_tokens"] for response in answers] == [450] * 3
    assert seen["num_preemptions_total"] == seen["request_num_preemptions_sum"] > 0
    assert seen["inter_token_latency_seconds_count"] == 3 * 449


async def test_work_is_counted_in_operations_and_bytes_when_asked() -> None:
    async with running("--enable-mfu-metrics") as engine:
        await engine.post("/v1/completions", prompt="x" * 40, max_tokens=3)
        seen = await engine.metrics()
    weights, token = 2 * 1_000_000, 2 * 2 * 2 * 32 * 2
    assert seen["estimated_flops_per_gpu_total"] == weights * (10 + 2)
    assert seen["estimated_read_bytes_per_gpu_total"] == 3 * weights + (10 + 11 + 12) * token
    assert seen["estimated_write_bytes_per_gpu_total"] == 12 * token


async def test_the_cache_configuration_has_what_the_operator_planned() -> None:
    async with running("--num-gpu-blocks-override", "400") as engine:
        answer = await engine.http.get("/metrics")
    [labels] = [
        sample.labels
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == "vllm:cache_config_info"
    ]
    values = [labels[name] for name in ("num_gpu_blocks", "block_size", "kv_cache_size_tokens")]
    assert values == ["400", "16", "6400"]


async def test_counters_and_gauges_are_nan_until_they_are_shown_again() -> None:
    async with running() as engine:
        await engine.post("/v1/completions", prompt="x" * 40, max_tokens=5)
        await engine.http.post("/sim/nan")
        during = await engine.metrics()
        await engine.http.delete("/sim/nan")
        after = await engine.metrics()
    for name in ("num_requests_running", "request_success_total stop", "generation_tokens_total"):
        assert math.isnan(during[name])
    assert (after["generation_tokens_total"], after["num_requests_running"]) == (5, 0)


N_GRAMS = '--speculative-config={"method":"ngram","num_speculative_tokens":4}'


async def test_accepted_drafts_are_counted_and_answers_have_their_length() -> None:
    async with running(N_GRAMS, TESSERA_SIM_ACCEPTANCE="0.6") as engine:
        answer = await engine.post("/v1/completions", prompt="x", max_tokens=300, ignore_eos=True)
        seen = await engine.metrics()
    assert answer.json()["usage"]["completion_tokens"] == 300
    drafts, drafted, accepted = (
        seen[f"spec_decode_num_{name}_total"]
        for name in ("drafts", "draft_tokens", "accepted_tokens")
    )
    assert (drafted, seen["generation_tokens_total"]) == (4 * drafts, 300)
    # Each draft gave one token beside the accepted ones; the first token had none.
    assert drafts + accepted == 299
    assert acceptance_of(accepted / drafted, 4) == pytest.approx(0.6, abs=0.02)


async def test_without_an_acceptance_nothing_is_drafted() -> None:
    async with running(N_GRAMS) as engine:
        await engine.post("/v1/completions", prompt="x", max_tokens=30, ignore_eos=True)
        seen = await engine.metrics()
    assert seen["spec_decode_num_drafts_total"] == 0


def test_an_impossible_acceptance_ends_the_start() -> None:
    with pytest.raises(EngineExit, match="TESSERA_SIM_ACCEPTANCE=1 is not a number below 1"):
        load_config([MODEL, N_GRAMS], {"TESSERA_SIM_SHAPE": SHAPE, "TESSERA_SIM_ACCEPTANCE": "1"})
