"""What Tessera sets exists in each version of the engine, and another version is a rollout."""

from typing import Any

import pytest

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import Accepted
from tessera.api.ref import Ref
from tessera.domain.config import Config
from tessera.domain.placement.checks import check, engine_verdict
from tessera.domain.vllm import flags as vllm_flags
from tessera.domain.vllm.facts import known_versions, version_facts
from tessera.resources import children
from tessera.resources.defaults import DEFAULTS
from tests.builders import H100, MEDIUM, a_node, a_pool, a_service, a_snapshot, a_spec, plan_of
from tests.resources.engine_objects import SPECS

# Every field of `spec.engine` that sets flags, with either value of the switches.
OPTIONS = {
    "on": a_spec(
        MEDIUM,
        engine={
            "maxNumSeqs": 8,
            "maxNumBatchedTokens": 512,
            "gpuMemoryUtilization": "0.9",
            "kvCacheDtype": "fp8_e5m2",
            "blockSize": 32,
            "kvOffload": {"size": "8Gi"},
            "chunkedPrefill": True,
            "prefixCaching": True,
            "reasoningParser": "deepseek_r1",
            "toolCallParser": "hermes",
            "chatTemplate": {"configMapKeyRef": {"name": "templates", "key": "chat"}},
            "structuredOutputsBackend": "lm-format-enforcer",
        },
    ),
    "off": a_spec(
        MEDIUM,
        engine={"prefixCaching": False, "expertParallel": False, "tensorParallelSize": 1},
    ),
}


def with_version(spec: InferenceServiceSpec, version: str) -> InferenceServiceSpec:
    return spec.model_copy(update={"engine": spec.engine.model_copy(update={"version": version})})


def pod_template(spec: InferenceServiceSpec, builder_version: int) -> dict[str, Any]:
    snapshot = a_snapshot(
        a_service(spec=spec),
        pools=(a_pool("a100", "1.60"), a_pool("h100", "2.50")),
        nodes=(
            a_node("a100", {"3g.40gb": 1, "1g.10gb": 4}),
            a_node("h100", whole=4, product=H100),
        ),
    )
    plan = plan_of(snapshot, config=Config(builder_version=builder_version))
    (deployment,) = (
        manifest.body
        for manifest in children.service_manifests(plan.service_plans[Ref("team-a", "chat")])
        if manifest.kind.kind == "Deployment"
    )
    template: dict[str, Any] = deployment["spec"]["template"]
    return template


def engine(template: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = template["spec"]["containers"][0]
    return container


@pytest.mark.parametrize("version", known_versions())
@pytest.mark.parametrize("builder_version", DEFAULTS)
def test_every_flag_that_is_set_exists_in_every_known_version(
    builder_version: int, version: str
) -> None:
    table = version_facts(version)
    assert table is not None
    for name, spec in (SPECS | OPTIONS).items():
        args = engine(pod_template(with_version(spec, version), builder_version))["args"]
        assert vllm_flags.check(args, table) == (), name


def test_the_options_of_the_engine_set_flags() -> None:
    plain = set(engine(pod_template(a_spec(MEDIUM), max(DEFAULTS)))["args"])
    counts = [
        len(set(engine(pod_template(spec, max(DEFAULTS)))["args"]) - plain)
        for spec in OPTIONS.values()
    ]
    assert counts == [13, 2]


def test_new_engines_report_cached_tokens_and_an_upgrade_adds_the_flag_to_none_that_runs() -> None:
    with_flag = {
        builder_version: "--enable-prompt-tokens-details"
        in engine(pod_template(a_spec(MEDIUM), builder_version))["args"]
        for builder_version in DEFAULTS
    }
    assert with_flag == {1: False, 2: False, 3: True}


@pytest.mark.parametrize("version", known_versions())
def test_whoever_reports_cached_tokens_or_does_not_by_extra_arguments_goes_on(version: str) -> None:
    table = version_facts(version)
    assert table is not None
    for prefix in ("", "no-"):
        argument = f"--{prefix}enable-prompt-tokens-details"
        spec = a_spec(MEDIUM, engine={"version": version, "extraArgs": [argument]})
        assert check(spec, {}) == ()
        args = engine(pod_template(spec, max(DEFAULTS)))["args"]
        assert vllm_flags.check(args, table) == ()
        assert vllm_flags.parse(args, table)["enable_prompt_tokens_details"] is (not prefix)


def test_another_version_is_a_rollout_of_that_versions_image() -> None:
    templates = {
        version: pod_template(a_spec(engine={"version": version}), max(DEFAULTS))
        for version in ("0.32.0", "0.33.0")
    }
    images = [engine(template)["image"] for template in templates.values()]
    assert images == ["vllm/vllm-openai:v0.32.0", "vllm/vllm-openai:v0.33.0"]


@pytest.mark.parametrize(
    ("version", "argument", "accepted"),
    [
        ("0.33.0", "--watchdog-config={}", True),
        ("0.32.0", "--watchdog-config={}", False),
        ("0.32.0", "--enable-hc-sp", True),
        ("0.31.0", "--enable-hc-sp", False),
        ("0.30.0", "--no-enable-log-outputs", True),
        ("0.33.0", "--disable-log-outputs", True),
    ],
)
def test_extra_arguments_are_checked_by_the_version_of_the_service(
    version: str, argument: str, accepted: bool
) -> None:
    spec = a_spec(engine={"version": version, "extraArgs": [argument]})
    denials = check(spec, {})
    assert [denial.reason for denial in denials] == ([] if accepted else [Accepted.INVALID_FLAG])
    for denial in denials:
        option = argument.partition("=")[0]
        assert f"vllm serve {version} has no option {option}, but 0.33.0 has" in denial.message
    assert not accepted or engine_verdict(spec).reason == Accepted.VALID


def test_arguments_of_a_version_without_a_table_are_passed_on_and_called_unchecked() -> None:
    spec = a_spec(engine={"version": "0.34.0", "extraArgs": ["--of-tomorrow"]})
    assert check(spec, {}) == ()
    verdict = engine_verdict(spec)
    assert verdict.reason == Accepted.FLAGS_UNCHECKED
    assert (
        "no flag table for vLLM 0.34.0 (known: 0.30.0, 0.31.0, 0.32.0, 0.33.0)" in verdict.message
    )
    args = engine(pod_template(spec, max(DEFAULTS)))["args"]
    assert args[-1] == "--of-tomorrow"
