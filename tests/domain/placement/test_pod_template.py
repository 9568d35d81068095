"""Users add to the pods; what others set there is refused, with who sets it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tessera.adapters.kube import object_parsing as wire
from tessera.domain.observed.snapshot import Ref, Workload
from tessera.domain.placement.checks import check
from tessera.domain.placement.pod_template import ENVIRONMENT, UNPLANNED, allowed_keys
from tessera.resources.children import service_manifests
from tests.builders import a_service, a_snapshot, a_spec, plan_of

CHAT = Ref("team-a", "chat")


@pytest.fixture
def allowed() -> Iterator[Callable[..., None]]:
    """Set what the installation lists."""
    yield lambda *keys: allowed_keys.set(frozenset(keys))
    allowed_keys.set(frozenset())


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
            labels={"cost-centre": "4711", "team": "a", "app": "chat"},
            annotations={"owner": "anna", "kubectl.kubernetes.io/restartedAt": "now"},
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


DANGEROUS = [
    ("annotations", "container.apparmor.security.beta.kubernetes.io/engine", "unconfined"),
    ("annotations", "k8s.v1.cni.cncf.io/networks", "tenant-b/storage"),
    ("annotations", "iam.amazonaws.com/role", "admin"),
    ("annotations", "eks.amazonaws.com/role-arn", "arn:aws:iam::1:role/admin"),
    ("annotations", "prometheus.io/scrape", "true"),
    ("labels", "k8s-app", "kube-dns"),
    ("labels", "aadpodidbinding", "admin"),
    ("labels", "azure.workload.identity/use", "true"),
    ("labels", "example.org/team", "a"),
]


@pytest.mark.parametrize(("field", "key", "value"), DANGEROUS)
def test_keys_by_which_others_give_rights_need_the_list_of_the_platform(
    field: str, key: str, value: str, allowed: Callable[..., None]
) -> None:
    ((reason, sentence),) = problems(**{field: {key: value, "team": "a"}})
    assert reason == "PodKeyNotAllowed"
    assert sentence.startswith(f"spec.podTemplate.{field}: {key} may give pods rights")
    assert "podTemplate.allowedKeys of the chart does not list it (0 listed)" in sentence
    allowed(key)
    assert problems(**{field: {key: value}}) == []
    prefix, slash, _ = key.partition("/")
    allowed(f"{prefix}/*")
    assert bool(problems(**{field: {key: value}})) == (not slash)


def test_what_tessera_sets_is_refused_whatever_the_list_has(allowed: Callable[..., None]) -> None:
    allowed("tessera.dev/*", "app.kubernetes.io/*", "app.kubernetes.io/name")
    for key in ("tessera.dev/service", "app.kubernetes.io/name"):
        ((reason, _),) = problems(labels={key: "other"})
        assert reason == "ReservedPodTemplateField"


def a_deployment(**template: Any) -> dict[str, Any]:
    """Return the Deployment of a service with a pod template."""
    spec = a_spec(podTemplate=template, replicas=1)
    service_plan = plan_of(a_snapshot(a_service(spec=spec))).service_plans[CHAT]
    bodies = [manifest.body for manifest in service_manifests(service_plan)]
    return dict(next(body for body in bodies if body["kind"] == "Deployment"))


def accepted_of(workload: Workload | None, **template: Any) -> tuple[str, str, int]:
    service = a_service(spec=a_spec(podTemplate=template, replicas=1))
    snapshot = a_snapshot(service, workloads=() if workload is None else (workload,))
    service_plan = plan_of(snapshot).service_plans[CHAT]
    return (
        str(service_plan.accepted.reason),
        service_plan.accepted.message,
        len(service_manifests(service_plan)),
    )


def test_a_service_that_runs_with_an_unlisted_key_goes_on_and_gets_no_other(
    allowed: Callable[..., None],
) -> None:
    field, key, value = "annotations", "iam.amazonaws.com/role", "reader"
    allowed(key)
    older = a_deployment(**{field: {key: value}})
    allowed()
    running = wire.parse_workload(older)
    reason, message, manifests = accepted_of(running, **{field: {key: value, "team": "b"}})
    assert (reason, manifests) == ("UnsupportedPodKeys", 2)
    assert f"{key} may give pods rights" in message
    assert "What runs with it goes on" in message
    for other in ({key: "admin"}, {key: value, "k8s-app": "kube-dns"}):
        reason, _, manifests = accepted_of(running, **{field: other})
        assert (reason, manifests) == ("PodKeyNotAllowed", 0)
    assert accepted_of(None, **{field: {key: value}})[0] == "PodKeyNotAllowed"
    assert accepted_of(running, labels={"team": "a"})[0] == "Valid"
