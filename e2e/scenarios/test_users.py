"""What users meet at an installed Tessera: admission, unplaceable models, tables, rights."""

import json

import pytest

from demo.cluster import NAMESPACE, InstalledCluster, StepError
from scenarios.actions import SMALL, ScenarioNamespace
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from world.api import ApiError
from world.testing import eventually

OPERATOR = f"system:serviceaccount:{NAMESPACE}:tessera-operator"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"model": {"uri": SMALL}, "context": {"maxModelLen": 200000}},
            ("spec.context.maxModelLen", "131072"),
        ),
        (
            {"model": {"uri": SMALL}, "engine": {"extraArgs": ["--max-num-seqs=4"]}},
            ("spec.engine.extraArgs", "--max-num-seqs", "spec.engine.maxNumSeqs"),
        ),
        (
            {"model": {"uri": SMALL}, "engine": {"extraArgs": ["--swap-space=4"]}},
            ("spec.engine.extraArgs", "--swap-space", "0.32.0"),
        ),
    ],
)
async def test_admission_refuses_what_only_an_edit_can_fix(
    namespace: ScenarioNamespace, spec: dict[str, object], words: tuple[str, ...]
) -> None:
    body = {
        "apiVersion": INFERENCE_SERVICES.api_version,
        "kind": INFERENCE_SERVICES.kind,
        "metadata": {"name": "chat", "namespace": namespace.name},
        "spec": spec,
    }
    with pytest.raises(ApiError) as raised:
        await namespace.cluster.api.create(INFERENCE_SERVICES.path(namespace.name), body)
    assert raised.value.status == 422
    for word in words:
        assert word in str(raised.value)


async def test_a_pool_that_is_still_to_come_is_warned_of_and_waited_for(
    namespace: ScenarioNamespace,
) -> None:
    manifest = {
        "apiVersion": INFERENCE_SERVICES.api_version,
        "kind": INFERENCE_SERVICES.kind,
        "metadata": {"name": "chat", "namespace": namespace.name},
        "spec": {"model": {"uri": SMALL}, "placement": {"pools": ["b200"]}, "replicas": 1},
    }
    path = namespace.cluster.world.folder / "waiting.json"
    path.write_text(json.dumps(manifest))
    output = await namespace.cluster.run("kubectl", "apply", "-f", str(path))
    assert "Warning: spec.placement.pools[0]: AcceleratorPool/b200 not found" in output
    await namespace.wait_for_condition("chat", "Accepted", "PoolNotFound")


async def test_a_model_that_fits_nowhere_says_what_would_make_it_fit(
    namespace: ScenarioNamespace,
) -> None:
    shape = {
        "parameters": 700_000_000_000,
        "layers": 80,
        "attentionHeads": 64,
        "kvHeads": 8,
        "headDim": 128,
        "maxPositionEmbeddings": 8192,
    }
    await namespace.apply_service(model={"uri": "hf://acme/giant", "shape": shape})
    words = ("spec.model.uri", "Choose")
    await namespace.wait_for_condition("chat", "Placed", "TooLarge", words=words)


async def test_more_replicas_than_slices_are_reported_with_what_is_missing(
    namespace: ScenarioNamespace,
) -> None:
    await namespace.apply_service(replicas=9)
    words = ("spec.placement.pools", "without enough free nvidia.com/mig-1g.10gb")
    await namespace.wait_for_condition("chat", "Placed", "Unschedulable", words=words)


async def test_one_table_answers_the_first_questions(namespace: ScenarioNamespace) -> None:
    await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready()
    table = await namespace.cluster.run(
        "kubectl", "--namespace", namespace.name, "get", "tsvc", "-o", "wide"
    )
    head, row = table.splitlines()
    names = (
        "READY",
        "REASON",
        "REPLICAS",
        "DESIRED",
        "INSTANCE",
        "$/H",
        "$/MTOK",
        "ITL-PREDICTED",
        "ITL",
        "SLO",
    )
    for column in (*names, "TOK/S-PREDICTED", "TOK/S", "MESSAGE"):
        assert column in head
    for cell in ("True", "CompletionSucceeded", "a100-reserved-1g-10gb", "0.2397"):
        assert cell in row


async def test_deleting_a_service_leaves_nothing(namespace: ScenarioNamespace) -> None:
    await namespace.apply_service(replicas=2)
    await namespace.wait_until_ready()
    await namespace.delete_service()

    async def are_gone() -> None:
        assert sorted(await namespace.list_children()) == []

    await eventually(are_gone)


@pytest.mark.parametrize(
    ("verb", "resource", "allowed"),
    [
        ("patch", "deployments.apps", "yes"),
        ("patch", "pods/status", "yes"),
        ("get", "secrets", "no"),
        ("get", "pods/log", "no"),
        ("create", "pods", "no"),
        ("delete", "pods", "yes"),  # an engine that takes no step is replaced
        ("deletecollection", "pods", "no"),
        ("delete", "nodes", "no"),
        ("update", "inferenceservices.tessera.dev", "no"),
        ("create", "clusterroles.rbac.authorization.k8s.io", "no"),
        ("impersonate", "users", "no"),
    ],
)
async def test_the_operator_may_do_its_work_and_nothing_else(
    cluster: InstalledCluster, verb: str, resource: str, allowed: str
) -> None:
    try:
        kind, _, subresource = resource.partition("/")
        answer = await cluster.run(
            *("kubectl", "auth", "can-i", verb, kind, f"--subresource={subresource}"),
            *("--all-namespaces", f"--as={OPERATOR}"),
        )
    except StepError as error:  # kubectl exits with 1 on a no
        answer = str(error)
    assert answer.split()[-1] == allowed
