"""Advice names the field, the numbers and what to do; a plain manifest gets none."""

from typing import Any

import pytest

from tessera.domain.placement.spec_warnings import spec_warnings
from tests.builders import a_spec

FP8: dict[str, Any] = {"variants": [{"precision": "fp8"}]}
AWQ = {"precision": "awq-int4", "uri": "hf://org/model-awq"}
PRECISIONS = ("awq-int4", "gptq-int4", "int8", "fp8", "nvfp4", "mxfp4")
GATED = {"strategy": "Gated", "gateRef": "answers"}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"replicas": 1}, ("spec.replicas:", "with 1 replica", "set 2")),
        ({"scaling": {"minReplicas": 1}}, ("spec.scaling.minReplicas:", "with 1 replica")),
        (
            {"scaling": {"minReplicas": 3, "maxReplicas": 3}},
            ("spec.scaling:", "both 3", "spec.replicas: 3"),
        ),
        (
            {"scaling": {"schedules": [{"cron": "0 8 * * *"}]}},
            ("spec.scaling.schedules:", "1 schedule always apply", "add a schedule"),
        ),
        (
            {"scaling": {"policy": "Capacity", "queue": {"target": 5}}},
            ("spec.scaling.queue: without effect", "policy: QueueAndActivity"),
        ),
        (
            {"scaling": {"policy": "Capacity", "scaleUp": {"pods": 3}}},
            ("spec.scaling.scaleUp: without effect",),
        ),
        (
            {"drain": {"timeout": "5s"}},
            ("spec.drain.timeout: 5s", "250 tokens x 33ms = 8.25s", "set at least 17s"),
        ),
        (
            {"context": {"maxModelLen": 131072}},
            ("spec.context.maxModelLen: 131072", "90 times", "1450"),
        ),
        (
            {"engine": {"image": "mirror:5000/vllm"}},
            ("spec.engine.image", "mirror:5000/vllm", "digest"),
        ),
        (
            {"slo": {"itlP95": "100ms"}, "drain": {"timeout": "60s"}},
            ("spec.slo.itlP95: 100ms are 10 tok/s", "15 tok/s", "spec.class: Standard"),
        ),
        ({"engine": {"image": "vllm/vllm-openai:latest"}}, ("vllm-openai:latest", "digest")),
        ({"precision": FP8}, ("spec.precision.variants:", "losses of fp8 are below 1 %", "Gated")),
        (
            {"precision": {"variants": [*FP8["variants"], AWQ]}},
            ("losses of awq-int4, fp8 are below 2 %",),
        ),
        ({"engine": {"kvCacheDtype": "fp8"}}, ("spec.engine.kvCacheDtype: fp8 may", "Gated")),
    ],
)
def test_an_unwise_field_gets_a_warning_with_its_numbers(
    spec: dict[str, Any], words: tuple[str, ...]
) -> None:
    (warning,) = spec_warnings(a_spec(**spec))
    for word in words:
        assert word in warning


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"replicas": 0},
        {"replicas": 2},
        {"replicas": 1, "class": "Standard"},
        {"scaling": {"minReplicas": 2, "maxReplicas": 3}},
        {"scaling": {"policy": "QueueAndActivity", "queue": {"target": 5}}},
        {"drain": {"timeout": "9s"}},
        {"slo": {"itlP95": "66ms"}},
        {"slo": {"itlP95": "200ms"}, "class": "Standard"},
        {"context": {"maxModelLen": 16 * 1450}},
        {"engine": {"image": "mirror:5000/vllm:v0.32.0"}},
        {"engine": {"kvCacheDtype": "Auto"}},
        {"precision": FP8, "engine": {"kvCacheDtype": "fp8"}, "rollout": GATED},
        {"engine": {"image": "mirror/vllm@sha256:0123"}},
    ],
)
def test_what_is_wise_enough_passes_in_silence(spec: dict[str, Any]) -> None:
    assert spec_warnings(a_spec(**spec)) == ()


LARGE, DRAFTS = "hf://meta-llama/Llama-3.1-70B-Instruct", "hf://meta-llama/Llama-3."


@pytest.mark.parametrize(
    ("draft", "words"),
    [("1-70B-Instruct", "1.0 times"), ("1-8B-Instruct", None), ("2-1B-Instruct", "57 times")],
)
def test_a_draft_of_an_unusual_size_is_warned_of(draft: str, words: str | None) -> None:
    speculation = {"method": "DraftModel", "model": {"uri": f"{DRAFTS}{draft}"}}
    warnings = spec_warnings(a_spec(LARGE, engine={"speculation": speculation}))
    assert [words in each for each in warnings if words] == [True] * bool(words)
    assert bool(warnings) is bool(words)


def test_no_warning_is_so_long_that_the_api_server_truncates_it() -> None:
    spec = a_spec(
        scaling={"minReplicas": 1, "maxReplicas": 1},
        context={
            "maxModelLen": 100_000_000,
            "typicalInputTokens": 1_000_000,
            "typicalOutputTokens": 1_000_000,
        },
        slo={"itlP95": "59999ms"},
        engine={"image": "m" * 500, "kvCacheDtype": "fp8_e4m3"},
        precision={"variants": [{"precision": each, "uri": "hf://a/b"} for each in PRECISIONS]},
    )
    warnings = spec_warnings(spec)
    assert len(warnings) == 8
    # The API server may truncate a longer warning.
    assert max(map(len, warnings)) <= 256


def test_a_pooling_model_is_told_nothing_of_what_the_api_server_writes() -> None:
    defaults = {"typicalInputTokens": 512, "typicalOutputTokens": 250}
    assert spec_warnings(a_spec("hf://BAAI/bge-m3", context=defaults)) == ()


def test_a_pooling_model_is_told_what_has_no_effect_and_nothing_of_answers() -> None:
    fields: dict[str, Any] = {
        "model": {"uri": "hf://BAAI/bge-m3"},
        "slo": {"itlP95": "100ms"},
        "context": {"typicalOutputTokens": 10},
        "drain": {"timeout": "5s"},
    }
    assert spec_warnings(a_spec(**fields)) == (
        "spec.slo.itlP95: without effect, since a pooling model generates no tokens; remove it",
        "spec.context.typicalOutputTokens: without effect, since a pooling model generates no "
        "tokens; remove it",
    )
