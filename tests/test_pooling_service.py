"""An embedding model from its manifest to Ready: what is planned, said and charged."""

from dataclasses import replace
from typing import Any

import pytest

from tessera.api.meta import find_condition
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.aspects.speed import observed_speed
from tessera.domain.explain.explain import explain
from tessera.domain.observed.snapshot import ObservedService, ProbeResult, Snapshot
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.scaling.target import target_of
from tessera.domain.status.service import service_status
from tessera.resources.arguments import arguments
from tessera.resources.defaults import Defaults
from tests.builders import (
    NOW,
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_speed_reading,
    a_workload,
    at,
    plan_of,
    readings_of,
)

CACHED_TOKENS = "--enable-prompt-tokens-details"
ENCODER = {
    "parameters": 567_754_752,
    "layers": 24,
    "attentionHeads": 16,
    "kvHeads": 16,
    "headDim": 64,
    "maxPositionEmbeddings": 8192,
    "unquantizedParameters": 264_716_288,
    "embeddingParameters": 264_393_728,
    "pooling": "Embed",
    "encoderOnly": True,
}


def an_embedder(**fields: Any) -> ObservedService:
    model = {"uri": "hf://BAAI/own", "shape": {**ENCODER, **fields.pop("shape", {})}}
    spec = a_spec(model=model, context={"typicalInputTokens": 512}, **fields)
    return a_service(spec=spec)


def a_fleet(service: ObservedService, **fields: Any) -> Snapshot:
    pods = (a_pod("chat-0"), a_pod("chat-1"))
    known = {"pods": pods, "workloads": (a_workload(2),), "readings": readings_of(pods)}
    return a_snapshot(service, **{**known, **fields})


def planned(snapshot: Snapshot) -> ServicePlan:
    [service_plan] = plan_of(snapshot).service_plans.values()
    return service_plan


def status_of(snapshot: Snapshot) -> InferenceServiceStatus:
    return service_status(snapshot, planned(snapshot), None, None)


def ready(status: InferenceServiceStatus) -> tuple[str, str]:
    condition = find_condition(status.conditions, "Ready")
    assert condition is not None
    return condition.reason, condition.cause


def test_its_engine_pools_and_reads_the_longest_text_in_one_step() -> None:
    service_plan = planned(a_fleet(an_embedder()))
    choice, spec = service_plan.choice, service_plan.service.spec
    assert choice is not None
    assert spec is not None
    args = arguments("chat", spec, choice, Defaults())
    assert "--runner=pooling" in args
    assert "--max-num-batched-tokens=8192" in args
    assert "--max-model-len=8192" in args
    assert CACHED_TOKENS not in args


@pytest.mark.parametrize(
    ("runner", "flags"),
    [
        (None, []),
        ("Auto", []),
        ("Generate", ["--runner=generate"]),
        ("Pooling", ["--runner=pooling"]),
    ],
)
def test_a_model_that_generates_gets_no_flag_unless_the_runner_is_set(
    runner: str | None, flags: list[str]
) -> None:
    service_plan = planned(a_fleet(a_service(spec=a_spec(engine={"runner": runner}))))
    spec, choice = service_plan.service.spec, service_plan.choice
    assert spec is not None
    assert choice is not None
    args = arguments("chat", spec, choice, Defaults())
    assert [word for word in args if "runner" in word] == flags


def test_its_speed_and_price_are_those_of_input_tokens() -> None:
    status = status_of(a_fleet(an_embedder()))
    assert status.variant is not None
    assert status.cost is not None
    assert (status.variant.tokens_per_second, status.variant.kv_cache_tokens) == (0, 0)
    rate = status.variant.input_tokens_per_second
    assert rate is not None
    assert rate > 10_000
    assert status.cost.per_million_tokens is None
    per_million = status.cost.per_million_input_tokens
    replica = float(status.cost.per_hour) / 2
    assert float(per_million or 0) == pytest.approx(replica / rate / 3600 * 1e6, abs=1e-4)
    assert "input tokens/s per replica in steps of 8192 tokens" in status.cost.assumed_load


@pytest.mark.parametrize(
    ("task", "path"),
    [
        ("Embed", "/v1/embeddings"),
        ("Score", "/rerank"),
        ("Classify", "/classify"),
        ("Tokens", "/pooling"),
    ],
)
def test_it_is_ready_once_its_own_path_answered(task: str, path: str) -> None:
    service = an_embedder(shape={"pooling": task})
    reason, message = ready(status_of(a_fleet(service)))
    assert (reason, path in message) == ("ProbePending", True)
    results = {service.ref: ProbeResult(at=at(-1), problem=None)}
    assert ready(status_of(a_fleet(service, probe_results=results))) == (
        "ProbeSucceeded",
        f"a request of one text to {path} through the Service succeeded",
    )
    failed = {service.ref: ProbeResult(at=at(-1), problem="POST: 500")}
    assert ready(status_of(a_fleet(service, probe_results=failed))) == ("ProbeFailed", "POST: 500")


def test_no_latency_of_tokens_is_compared_and_the_texts_per_second_are_shown() -> None:
    service = an_embedder()
    reading = a_speed_reading(
        tokens_per_second=0.0,
        sequences=0.0,
        itl_seconds=None,
        prompt_tokens=500.0,
        requests=1200.0,
        kv_usage=0.0,
        kv_tokens=None,
        mean_output_tokens=0.0,
    )
    pods = (a_pod("chat-0"), a_pod("chat-1"))
    readings = readings_of(pods, speeds={service.ref: (reading,)}, speeds_at=NOW)
    snapshot = a_fleet(service, pods=pods, readings=readings)
    service_plan = planned(snapshot)
    condition = find_condition(status_of(snapshot).conditions, "SpeedAsPredicted")
    assert condition is not None
    assert (condition.status, condition.reason) == ("Unknown", "NoInterTokenLatency")
    speed = observed_speed(service_plan.placed, readings)
    assert speed is not None
    assert (speed.is_pooling, speed.tokens_per_second) == (True, 500 * 1200 / 300)


def test_its_explanation_speaks_of_texts() -> None:
    snapshot = a_fleet(an_embedder())
    plan = plan_of(snapshot)
    decisions = {each.topic: each for each in explain(snapshot, plan, an_embedder().ref)}
    sizing = decisions["sizing"]
    numbers = dict(sizing.numbers)
    assert "input tok/s" in sizing.message
    assert numbers["KV cache"] == "none: an encoder keeps nothing of a text"
    assert numbers["typical text"] == "512 tokens"
    assert "TTFT SLO" in numbers["full step"]
    assert "price per 1M input tokens" in numbers
    text = " ".join((sizing.message, *numbers.values(), *sizing.would_change))
    assert "output" not in text
    assert "ITL" not in text
    assert "an encoder has no KV cache" in decisions["placed"].message


def test_capacity_counts_texts_and_not_answers() -> None:
    scaling = {"policy": "Capacity", "minReplicas": 1, "maxReplicas": 10}
    snapshot = a_fleet(an_embedder(scaling=scaling))
    plan = plan_of(snapshot)
    decisions = {each.topic: each for each in explain(snapshot, plan, an_embedder().ref)}
    capacity = dict(decisions["scaling"].numbers)["capacity"]
    assert "of 512 input tokens" in capacity
    status = status_of(snapshot)
    assert status.variant is not None
    texts = (status.variant.input_tokens_per_second or 0) / 512
    assert 0.4 * texts < float(capacity.split()[0]) < texts


def test_a_service_that_generates_is_planned_as_before() -> None:
    snapshot = a_fleet(a_service())
    status = status_of(replace(snapshot))
    assert status.variant is not None
    assert status.cost is not None
    assert status.variant.input_tokens_per_second is None
    assert status.cost.per_million_input_tokens is None
    assert status.cost.per_million_tokens is not None


def test_a_replica_is_full_when_texts_fill_its_step() -> None:
    """Far fewer than the engine takes at once, of which most are shorter."""
    policy = {"policy": "QueueAndActivity", "minReplicas": 1, "maxReplicas": 4}
    service = an_embedder(scaling=policy)
    service_plan = planned(a_fleet(service))
    choice, spec = service_plan.choice, service_plan.service.spec
    assert choice is not None
    assert spec is not None
    limits = choice.fit.limits
    assert limits.max_num_seqs == 256
    assert target_of(spec, limits, 8192).max_num_seqs == 8192 // 512
    assert target_of(a_spec(), limits, 8192).max_num_seqs == 256
