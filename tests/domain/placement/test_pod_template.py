"""Users add to the pods; what others set there is refused, with who sets it."""

from typing import Any

import pytest

from tessera.domain.placement.checks import check
from tessera.domain.placement.pod_template import ENVIRONMENT, UNPLANNED
from tests.builders import a_spec


def problems(**template: Any) -> list[tuple[str, str]]:
    return [
        (problem.reason, problem.sentence) for problem in check(a_spec(podTemplate=template), {})
    ]


@pytest.mark.parametrize(
    ("template", "reason", "words"),
    [
        (
            {"labels": {"tessera.dev/service": "other"}},
            "ReservedPodTemplateField",
            "spec.podTemplate.labels: remove tessera.dev/service; it is set by Tessera",
        ),
        (
            {"labels": {"pod-template-hash": "a"}},
            "ReservedPodTemplateField",
            "spec.podTemplate.labels: remove pod-template-hash; it is set by the Deployment",
        ),
        (
            {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "1"}},
            "ReservedPodTemplateField",
            "spec.podTemplate.annotations: remove controller.kubernetes.io/pod-deletion-cost",
        ),
        (
            {"env": [{"name": "A", "value": "1"}, {"name": "HF_TOKEN", "value": "hf_secret"}]},
            "ReservedPodTemplateField",
            "spec.podTemplate.env[1]: remove HF_TOKEN; it is set by spec.model.tokenSecretRef",
        ),
        (
            {"env": [{"name": "VLLM_API_KEY", "value": "secret"}]},
            "ReservedPodTemplateField",
            "spec.podTemplate.env[0]: remove VLLM_API_KEY; it is set by no field: the gateway "
            "checks keys, see docs/tasks/keys.md",
        ),
        (
            {"labels": {"my key": "a"}},
            "InvalidPodTemplate",
            "spec.podTemplate.labels: 'my key' is not a valid key",
        ),
        (
            {"annotations": {"a/b/c": "a"}},
            "InvalidPodTemplate",
            "spec.podTemplate.annotations: 'a/b/c' is not a valid key",
        ),
    ],
)
def test_what_others_set_or_kubernetes_refuses_is_denied(
    template: dict[str, Any], reason: str, words: str
) -> None:
    ((found_problems, sentence),) = problems(**template)
    assert found_problems == reason
    assert sentence.startswith(words)


@pytest.mark.parametrize("name", UNPLANNED)
def test_a_variable_that_changes_memory_is_refused_as_a_flag_is(name: str) -> None:
    ((reason, sentence),) = problems(
        env=[{"name": "A", "value": "1"}, {"name": name, "value": "0"}]
    )
    assert reason == "ReservedFlag"
    assert sentence.startswith(f"spec.podTemplate.env[1]: {name} changes ")


def test_what_is_free_passes() -> None:
    assert (
        problems(
            labels={"cost-centre": "4711", "example.org/team": "a"},
            annotations={"prometheus.io/scrape": "false"},
            env=[
                {"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"},
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "trace", "key": "key"}}},
            ],
        )
        == []
    )


def test_the_value_of_a_refused_variable_is_never_repeated() -> None:
    for name in ENVIRONMENT:
        ((_, sentence),) = problems(env=[{"name": name, "value": "hf_secret"}])
        assert "hf_secret" not in sentence
