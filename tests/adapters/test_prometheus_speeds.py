"""Responses of Prometheus about speed become readings; no server runs."""

import re
from dataclasses import replace
from typing import Any

from tessera.adapters.prometheus.queries import SERVICE, VARIANT
from tessera.adapters.prometheus.speeds import SPEEDS, speeds_of, steps_of
from tessera.domain.observed.snapshot import Ref, SpeedReading, StepReading
from tests.conformance.configurations import CONFIGURATIONS
from tests.conformance.recording import recorded_facts

CHAT = Ref("team-a", "chat")


def row(value: float, variant: str = "a100-1gpu", **labels: str) -> dict[str, Any]:
    names = {"namespace": "team-a", SERVICE: "chat", **({VARIANT: variant} if variant else {})}
    return {"metric": {**names, **labels}, "value": [0, str(value)]}


def test_rates_become_means_of_steps_requests_and_gaps() -> None:
    rates = {
        "requests": [row(600)],
        "tokens": [row(200)],
        "steps": [row(25)],
        "worked": [row(1000)],
        "inputs": [row(480_000)],
        "outputs": [row(120_000)],
        "answers": [row(1200)],
        "gaps": [row(190)],
        "gap_seconds": [row(3.8)],
        "preemptions": [row(12)],
        "read": [row(5e11)],
        "written": [row(1e11)],
    }
    assert speeds_of(rates) == {
        CHAT: (
            SpeedReading(
                variant="a100-1gpu",
                requests=600,
                tokens_per_second=200,
                sequences=8,
                prefill_tokens=32,
                prompt_tokens=400,
                mean_input_tokens=400,
                mean_output_tokens=100,
                itl_seconds=0.02,
                preemptions=12,
                bytes_per_second=6e11,
            ),
        )
    }


def test_counters_of_two_minutes_become_means_of_the_steps_of_a_replica() -> None:
    def of_pod(value: float, pod: str = "chat-0") -> dict[str, Any]:
        return {"metric": {"namespace": "team-a", "pod": pod}, "value": [0, str(value)]}

    rows = {
        "replica_steps": [of_pod(3000), of_pod(0, "idle"), of_pod(10, "partial")],
        "replica_worked": [of_pod(120_000), of_pod(0, "idle")],
        "replica_tokens": [of_pod(30_000), of_pod(0, "idle")],
        "replica_accepted": [of_pod(6000)],
        "replica_activity": [of_pod(0.9)],
        "replica_running": [of_pod(2)],
    }
    reading = StepReading(steps=3000, sequences=8, prefill_tokens=30, activity=0.9, is_busy=True)
    assert steps_of(rows) == {Ref("team-a", "chat-0"): reading}
    assert steps_of({**rows, "replica_activity": []}) == {
        Ref("team-a", "chat-0"): replace(reading, activity=None)
    }
    for running in ([], [of_pod(0)]):
        assert steps_of({**rows, "replica_running": running}) == {
            Ref("team-a", "chat-0"): replace(reading, is_busy=False)
        }


def test_accepted_drafts_are_no_sequences_of_a_step() -> None:
    rates = {
        "tokens": [row(500)],
        "steps": [row(25)],
        "worked": [row(1000)],
        "drafts": [row(60_000)],
        "drafted": [row(300_000)],
        "accepted": [row(90_000)],
        "running_median": [row(8)],
    }
    ((reading,),) = speeds_of(rates).values()
    # 500 tokens per second are 300 accepted ones, and 200 of 8 sequences in 25 steps.
    assert (reading.sequences, reading.prefill_tokens) == (8, 20)
    assert (reading.drafts, reading.drafted_tokens, reading.accepted_tokens) == (
        60_000,
        300_000,
        90_000,
    )
    assert reading.median_running == 8


def cached_share(**values: float) -> float | None:
    ((reading,),) = speeds_of({name: [row(value)] for name, value in values.items()}).values()
    return reading.cached_share


def test_the_cached_share_is_what_engines_say_and_at_most_all() -> None:
    # As vLLM 0.32 counted four requests, with prefix_cache_queries and prefix_cache_hits the same.
    assert cached_share(prompts=822, cached=384) == 384 / 822
    assert cached_share(prompts=822, cached=0) == 0
    assert cached_share(prompts=822, cached=10**11) == 1
    unknown = [
        cached_share(prompts=822),
        cached_share(cached=384),
        cached_share(prompts=0, cached=3),
    ]
    assert unknown == [None, None, None]


def test_the_queries_name_counters_that_a_real_engine_has() -> None:
    recorded = {name.rpartition(" ")[2] for name in recorded_facts(CONFIGURATIONS[0])}
    for name in ("prompts", "cached"):
        (metric,) = set(re.findall(r"vllm:\w+", SPEEDS[name].text))
        assert metric in recorded, metric


def test_where_nothing_happened_there_is_no_mean() -> None:
    rates = {"tokens": [row(0)], "steps": [row(0)], "worked": [row(0)], "gaps": [row(0)]}
    ((reading,),) = speeds_of(rates).values()
    assert (
        reading.tokens_per_second,
        reading.sequences,
        reading.prompt_tokens,
        reading.itl_seconds,
    ) == (
        0,
        None,
        None,
        None,
    )


def test_each_variant_has_a_reading_of_its_own() -> None:
    rates = {"requests": [row(5, "b"), row(3, "a"), row(1, "")]}
    ((first, second, third),) = speeds_of(rates).values()
    assert [(reading.variant, reading.requests) for reading in (first, second, third)] == [
        (None, 1),
        ("a", 3),
        ("b", 5),
    ]


def cache(size: str, blocks: str = "None", block: str = "None") -> dict[str, Any]:
    return row(1, kv_cache_size_tokens=size, num_gpu_blocks=blocks, block_size=block)


def tokens(*rows: dict[str, Any]) -> int | None:
    ((reading,),) = speeds_of({"cache": rows, "requests": [row(1)]}).values()
    return reading.kv_tokens


def test_the_smallest_cache_of_several_replicas_counts() -> None:
    assert tokens(cache("48000"), cache("47984")) == 47984


def test_the_cache_of_an_engine_without_token_counts_is_computed_from_its_blocks() -> None:
    assert tokens(cache("None", "3000", "16")) == 48000
    assert tokens(cache("", "3000", "16")) == 48000
    assert tokens(cache("None")) is None
