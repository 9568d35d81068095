"""Options of `spec.engine` that contradict each other, the model, the memory or the SLO."""

from typing import Any

import pytest

from tessera.api.reasons import Accepted, PlacementReason
from tessera.domain.observed.snapshot import Ref
from tessera.domain.placement.checks import check
from tests.builders import MEDIUM, a_node, a_pool, a_service, a_snapshot, a_spec, plan_of

MIXTURE = "hf://mistralai/Mixtral-8x7B-Instruct-v0.1"


def placement(slices: dict[str, int] | None = None, whole: int = 0, **spec: Any) -> Any:
    """Return the placement of a service of 8B on a pool of A100 GPUs."""
    nodes = (a_node(slices=slices or {}, whole=whole),)
    snapshot = a_snapshot(a_service(spec=a_spec(MEDIUM, **spec)), pools=(a_pool(),), nodes=nodes)
    return plan_of(snapshot).service_plans[Ref("team-a", "chat")].placement


@pytest.mark.parametrize(
    ("uri", "spec", "field", "says"),
    [
        (MEDIUM, {"maxNumSeqs": 64, "maxNumBatchedTokens": 64}, "maxNumBatchedTokens", "65"),
        (
            MEDIUM,
            {"chunkedPrefill": False, "maxNumBatchedTokens": 8191},
            "maxNumBatchedTokens",
            "at least 8192",
        ),
        ("hf://microsoft/phi-4", {"tensorParallelSize": 4}, "tensorParallelSize", "1, 2, 5, 10"),
        (MEDIUM, {"expertParallel": True}, "expertParallel", "no mixture of experts"),
    ],
)
def test_options_that_the_engine_would_refuse_are_refused_with_what_to_write(
    uri: str, spec: dict[str, Any], field: str, says: str
) -> None:
    [denial] = check(a_spec(uri, engine=spec), {})
    assert (denial.reason, denial.field) == (
        Accepted.INVALID_ENGINE_OPTION,
        f"spec.engine.{field}",
    )
    assert says in denial.message


def test_experts_may_be_whole_in_a_mixture_of_experts() -> None:
    assert check(a_spec(MIXTURE, engine={"expertParallel": True}), {}) == ()


def test_a_narrow_cache_of_two_mantissa_bits_does_not_run_with_fp8_weights() -> None:
    spec = a_spec(
        MEDIUM,
        engine={"kvCacheDtype": "fp8_e5m2"},
        precision={"variants": [{"precision": "fp8"}]},
    )
    [denial] = check(spec, {})
    assert denial.sentence.startswith("spec.engine.kvCacheDtype: fp8_e5m2 does not run")


@pytest.mark.parametrize(
    ("argument", "field"),
    [
        ("--tensor-parallel-size=2", "tensorParallelSize"),
        ("--max-num-seqs=8", "maxNumSeqs"),
        ("--max-num-batched-tokens=2k", "maxNumBatchedTokens"),
        ("--gpu-memory-utilization=0.9", "gpuMemoryUtilization"),
        ("--kv-cache-dtype=fp8", "kvCacheDtype"),
        ("--block-size=32", "blockSize"),
        ("--kv-offloading-size=4", "kvOffload.size"),
        ("--no-enable-chunked-prefill", "chunkedPrefill"),
        ("--no-enable-prefix-caching", "prefixCaching"),
        ("-ep", "expertParallel"),
        ("--reasoning-parser=qwen3", "reasoningParser"),
        ("--tool-call-parser=hermes", "toolCallParser"),
        ("--enable-auto-tool-choice", "toolCallParser"),
        ("--chat-template=/x.jinja", "chatTemplate"),
        ("--structured-outputs-config.backend=xgrammar", "structuredOutputsBackend"),
        ('--structured-outputs-config={"backend":"xgrammar"}', "structuredOutputsBackend"),
    ],
)
def test_a_flag_with_a_field_is_refused_with_the_name_of_the_field(
    argument: str, field: str
) -> None:
    [denial] = check(a_spec(MEDIUM, engine={"extraArgs": [argument]}), {})
    assert denial.reason is Accepted.RESERVED_FLAG
    assert f"it is set by spec.engine.{field} (vLLM " in denial.message


def test_other_keys_of_a_flag_stay_free() -> None:
    arguments = ["--structured-outputs-config.disable_any_whitespace=true"]
    assert check(a_spec(MEDIUM, engine={"extraArgs": arguments}), {}) == ()


def test_more_requests_than_fit_are_not_placed_and_the_number_that_fits_is() -> None:
    refused = placement({"3g.40gb": 2}, engine={"maxNumSeqs": 256})
    assert refused.verdict.reason is PlacementReason.ENGINE_LIMITS_UNMET
    most = int(refused.verdict.message.partition("set at most ")[2].partition(",")[0])
    accepted = placement({"3g.40gb": 2}, engine={"maxNumSeqs": most})
    assert accepted.choice.fit.limits.max_num_seqs == most
    more = placement({"3g.40gb": 2}, engine={"maxNumSeqs": most + 1})
    assert more.verdict.reason is PlacementReason.ENGINE_LIMITS_UNMET


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ({"engine": {"gpuMemoryUtilization": "0.1"}}, "no spec.engine.gpuMemoryUtilization"),
        (
            {
                "engine": {"maxNumBatchedTokens": 1_048_576},
                "slo": {"itlP95": "1m", "ttftP95": "1h"},
            },
            "no spec.engine.maxNumBatchedTokens",
        ),
        (
            {
                "model": {
                    "adapters": [
                        {"name": f"a{index}", "uri": f"hf://acme/a{index}", "rank": 512}
                        for index in range(16)
                    ]
                },
            },
            "fewer spec.model.adapters",
        ),
    ],
)
def test_what_takes_the_memory_that_a_model_lacks_is_named(
    spec: dict[str, Any], remedy: str
) -> None:
    refused = placement({"3g.40gb": 2}, **spec).verdict
    assert refused.reason is PlacementReason.TOO_LARGE
    assert refused.message.endswith(f"or {remedy}")
    unlimited = placement({"1g.10gb": 2}).verdict
    assert unlimited.reason is PlacementReason.TOO_LARGE
    assert unlimited.message.endswith(
        "or fp8 in spec.precision.variants, which halves 16-bit weights"
    )


def test_texts_of_an_encoder_are_not_said_to_be_in_a_cache() -> None:
    engine = {"maxNumSeqs": 1024, "maxNumBatchedTokens": 1_048_576}
    spec = a_spec("hf://BAAI/bge-m3", engine=engine, slo={"ttftP95": "100ms"})
    snapshot = a_snapshot(a_service(spec=spec), pools=(a_pool(),), nodes=(a_node(whole=1),))
    verdict = plan_of(snapshot).service_plans[Ref("team-a", "chat")].placement.verdict
    assert verdict.reason is PlacementReason.ENGINE_LIMITS_UNMET
    assert "1024 requests of typically 1200 tokens do not fit at once into spec.slo.ttftP95" in (
        verdict.message
    )


def test_steps_that_miss_the_slo_are_not_placed_and_the_steps_that_keep_it_are() -> None:
    refused = placement({"3g.40gb": 2}, engine={"maxNumBatchedTokens": 16384})
    assert refused.verdict.reason is PlacementReason.ENGINE_LIMITS_UNMET
    message = refused.verdict.message
    assert message.startswith("spec.engine.maxNumBatchedTokens: full steps of 16384 tokens take")
    tokens = int(message.partition("; set ")[2].partition(" tokens")[0])
    accepted = placement({"3g.40gb": 2}, engine={"maxNumBatchedTokens": tokens})
    assert accepted.choice.fit.limits.max_num_batched_tokens == tokens


def test_whole_prompts_that_miss_the_slo_are_not_placed_without_relaxed_objectives() -> None:
    engine = {"chunkedPrefill": False}
    refused = placement({"3g.40gb": 2}, engine=engine)
    assert refused.verdict.reason is PlacementReason.ENGINE_LIMITS_UNMET
    assert "spec.engine.chunkedPrefill: false makes steps of up to 8192" in refused.verdict.message
    relaxed = placement({"3g.40gb": 2}, engine=engine, slo={"itlP95": "5s", "ttftP95": "9s"})
    assert relaxed.choice.fit.limits.max_num_batched_tokens == 8192


def test_the_number_of_gpus_of_a_replica_decides_where_it_runs() -> None:
    decision = placement({}, whole=4, engine={"tensorParallelSize": 2})
    assert decision.choice.fit.hardware.devices == 2
    single = placement({"3g.40gb": 2}, engine={"tensorParallelSize": 1})
    assert single.choice.fit.hardware.name == "3g.40gb"


def test_more_gpus_than_a_node_has_are_not_placed_with_what_nodes_have() -> None:
    refused = placement({}, whole=2, engine={"tensorParallelSize": 8})
    assert refused.verdict.reason is PlacementReason.NO_HARDWARE
    assert "tensorParallelSize: 8" in refused.verdict.message
    assert "offer a replica 1, 2; choose" in refused.verdict.message


def test_a_model_that_is_too_slow_anyway_is_not_blamed_on_its_limits() -> None:
    refused = placement({"3g.40gb": 2}, engine={"maxNumSeqs": 4}, slo={"itlP95": "5ms"})
    assert refused.verdict.reason is PlacementReason.TOO_SLOW
