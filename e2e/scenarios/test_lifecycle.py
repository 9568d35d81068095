"""kubectl shows what keeps an engine from serving, with the message of the one that refused."""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from demo.cluster import InstalledCluster, Json
from scenarios.actions import SMALL, ScenarioNamespace
from scenarios.commands import explain
from scenarios.kills import kill_operator
from scenarios.lifecycle import (
    PrintedCondition,
    check_printed_reason,
    freeze_engine,
    list_replicas,
    read_jsonpath,
    shorten_stall_timeout,
    wait_for_explained_reason,
    wait_for_printed_reason,
)
from scenarios.streams import wait_for_replicas
from tessera.domain.names import ENGINE
from tessera.resources.api_resources import NODES, PODS
from world import World, WorldError
from world.api import ApiError
from world.testing import a_pod, eventually

# A version without a flag table: all of extraArgs reaches the engine.
UNCHECKED = "0.99.0"
# A replica on a dead node is replaced so soon after its taint.
GIVEN_UP_SECONDS = 60


@pytest.fixture(scope="module")
def world(small_world: World) -> World:
    return small_world


@pytest.mark.full
async def test_an_engine_that_takes_no_step_is_replaced_once_and_a_new_leader_knows_it(
    namespace: ScenarioNamespace,
) -> None:
    await shorten_stall_timeout(namespace.cluster)
    ref = await namespace.apply_service(replicas=2)
    await namespace.wait_until_ready()
    await wait_for_replicas(namespace, 2)
    first, second = await list_replicas(namespace)
    name = first["metadata"]["name"]
    request = await freeze_engine(first, ref.name)
    words = (f"{name} holds requests, and its engine made no step since",)
    condition = await wait_for_printed_reason(namespace, "EngineStalled", words=words)
    assert condition.status == "False"

    async def is_replaced() -> None:
        assert name not in {pod["metadata"]["name"] for pod in await list_replicas(namespace)}
        await check_printed_reason(namespace, "RolloutComplete")
        assert await read_jsonpath(namespace, "{.status.replacement.pod}") == name

    await eventually(is_replaced)
    assert await request in ("RemoteProtocolError", "ReadError")

    await kill_operator(namespace.cluster)
    second_request = await freeze_engine(second, ref.name)
    blocker = f"{name} was replaced recently, the next replacement is allowed from"
    await wait_for_explained_reason(
        namespace, "EngineStalled", words=(f"{second['metadata']['name']} holds", blocker)
    )
    names = {pod["metadata"]["name"] for pod in await list_replicas(namespace)}
    assert second["metadata"]["name"] in names
    second_request.cancel()


async def test_an_unknown_flag_is_reported_with_the_message_of_the_engine(
    namespace: ScenarioNamespace,
) -> None:
    engine = {"version": UNCHECKED, "extraArgs": ["--no-such-flag"]}
    await namespace.apply_service(replicas=1, engine=engine)
    words = ("correct or remove --no-such-flag; chat-", "exit code 2: ")
    condition = await wait_for_explained_reason(namespace, "InvalidEngineArguments", words=words)
    assert "vllm serve: error: unrecognized arguments: --no-such-flag. This" in condition.message
    wide = await namespace.cluster.run(
        *("kubectl", "--namespace", namespace.name, "get", "tsvc", "-o", "wide")
    )
    assert "InvalidEngineArguments: spec.engine.extraArgs: " in wide
    assert "unrecognized arguments: --no-such-flag" in wide


async def test_a_configuration_out_of_range_is_reported_with_the_message_of_the_engine(
    namespace: ScenarioNamespace,
) -> None:
    engine = {"version": UNCHECKED, "extraArgs": ["--safetensors-prefetch-num-threads=0"]}
    await namespace.apply_service(replicas=1, engine=engine)
    words = ("exit code 1: ", "--safetensors-prefetch-num-threads")
    await wait_for_explained_reason(namespace, "EngineStartFailed", words=words)


async def test_an_engine_that_takes_too_much_memory_of_its_node_is_reported(
    namespace: ScenarioNamespace,
) -> None:
    await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready()
    (pod,) = await list_replicas(namespace)
    name = pod["metadata"]["name"]

    def kill() -> None:
        """Kill the engine again as soon as it runs, as if it always took too much memory."""
        with contextlib.suppress(WorldError):  # while it waits for its next start
            namespace.cluster.world.run_out_of_memory(namespace.name, name, ENGINE)

    async def is_printed() -> PrintedCondition:
        kill()
        return await check_printed_reason(namespace, "OOMKilled")

    async def is_explained() -> None:
        kill()
        await namespace.check_condition("chat", "Progressing", "OOMKilled")
        assert (await explain(namespace))["rollout"]["reason"] == "OOMKilled"

    condition = await eventually(is_printed)
    await eventually(is_explained)
    assert condition.message.startswith(f"{name}: exit code 137")
    await wait_for_printed_reason(namespace, "RolloutComplete")


async def test_an_exceeded_quota_is_reported_word_for_word(namespace: ScenarioNamespace) -> None:
    slices = "requests.nvidia.com/mig-1g.10gb"
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": {slices: "1"}},
    }
    await namespace.cluster.api.create(f"/api/v1/namespaces/{namespace.name}/resourcequotas", quota)
    await namespace.apply_service(replicas=2)
    words = ('pods "chat-', "exceeded quota: small", f"limited: {slices}=1")
    await wait_for_explained_reason(namespace, "QuotaExceeded", words=words)
    await wait_for_replicas(namespace, 1)


@pytest.mark.usefixtures("host_pid_policy")
async def test_a_pod_security_violation_is_reported_word_for_word(
    namespace: ScenarioNamespace,
) -> None:
    """Our own pods are restricted; what others add to them may not be."""
    await namespace.apply_service(replicas=1)
    words = ('violates PodSecurity "restricted:latest": host namespaces (hostPID=true)',)
    await wait_for_explained_reason(namespace, "PodSecurityViolation", words=words)
    words = ("PodSecurityViolation: pods ",)
    await wait_for_explained_reason(namespace, "NoReplicaReady", "Ready", words=words)


@pytest.fixture
async def host_pid_policy(namespace: ScenarioNamespace) -> AsyncIterator[None]:
    """A policy that adds to the pods of a restricted namespace what is not allowed there."""
    cluster, name = namespace.cluster, f"nosy-{namespace.name}"
    level = {"pod-security.kubernetes.io/enforce": "restricted"}
    await cluster.api.patch(f"/api/v1/namespaces/{namespace.name}", {"metadata": {"labels": level}})
    version = "admissionregistration.k8s.io/v1"
    pods = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": ["pods"],
    }
    added = {"expression": "Object{spec: Object.spec{hostPID: true}}"}
    policy: Json = {
        "apiVersion": version,
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"resourceRules": [pods]},
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": added}],
        },
    }
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}}
    binding: Json = {
        "apiVersion": version,
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name, "matchResources": {"namespaceSelector": selector}},
    }
    for manifest in (policy, binding):
        await cluster.api.apply_manifest(manifest)
    await _wait_until_in_force(cluster, namespace.name)
    yield
    for plural in ("mutatingadmissionpolicybindings", "mutatingadmissionpolicies"):
        await cluster.run("kubectl", "delete", plural, name)


async def _wait_until_in_force(cluster: InstalledCluster, namespace: str) -> None:
    """Policies take effect a moment after they were written."""

    async def is_refused() -> None:
        refusal = ""
        try:
            await cluster.api.create(PODS.path(namespace), a_pod("probe"), dryRun="All")
        except ApiError as error:
            refusal = str(error)
        assert "hostPID" in refusal

    await eventually(is_refused)


async def test_an_image_that_cannot_be_pulled_is_reported_word_for_word(
    namespace: ScenarioNamespace,
) -> None:
    await namespace.apply_service(replicas=1, engine={"image": "nowhere/engine:1"})
    words = ("nowhere/engine:1 is not in the image table",)
    await wait_for_explained_reason(namespace, "ImagePullFailed", words=words)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            {"model": {"uri": SMALL, "tokenSecretRef": {"name": "hub", "key": "token"}}},
            "SecretNotFound",
        ),
        (
            {
                "podTemplate": {
                    "env": [
                        {
                            "name": "TRACE_KEY",
                            "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}},
                        }
                    ]
                }
            },
            "CreateContainerError",
        ),
    ],
    ids=["token", "variable"],
)
async def test_a_secret_that_is_missing_is_reported_word_for_word(
    namespace: ScenarioNamespace, spec: dict[str, Any], reason: str
) -> None:
    await namespace.apply_service(replicas=1, **spec)
    await wait_for_explained_reason(namespace, reason, words=('secret "hub" not found',))


async def test_what_the_scheduler_cannot_place_is_reported_with_what_is_missing(
    namespace: ScenarioNamespace,
) -> None:
    await namespace.apply_service(replicas=9)
    words = (
        "1 of 9 replicas unschedulable, no free 1g.10gb",
        "without enough free nvidia.com/mig-1g.10gb",
    )
    await wait_for_explained_reason(namespace, "Unschedulable", "Placed", words=words)


@pytest.mark.full
async def test_a_replica_on_a_dead_node_is_replaced_within_a_minute_of_the_taint(
    namespace: ScenarioNamespace,
) -> None:
    """The pod on the dead node hangs in Terminating, and is no replica any more."""
    await namespace.apply_service(replicas=2)
    await wait_for_replicas(namespace, 2)
    pods_before = await list_replicas(namespace)
    node = pods_before[0]["spec"]["nodeName"]
    lost_uids = {pod["metadata"]["uid"] for pod in pods_before if pod["spec"]["nodeName"] == node}
    namespace.cluster.world.end_node(node)
    try:
        tainted_at = await _wait_until_tainted(namespace.cluster, node)

        async def are_replaced() -> None:
            uids = {pod["metadata"]["uid"] for pod in await list_replicas(namespace)}
            assert len(uids - lost_uids) == 2, (uids, lost_uids)

        await eventually(are_replaced, within=GIVEN_UP_SECONDS)
        seconds = time.monotonic() - tainted_at
        await wait_for_replicas(namespace, 2)
        await wait_for_explained_reason(namespace, "RolloutComplete")

        async def are_counted() -> None:
            assert await read_jsonpath(namespace, "{.status.replicas}") == "2"
            decisions = await explain(namespace)
            assert decisions["ready"]["numbers"]["replicas"] == "2 serve requests"

        await eventually(are_counted)
        hanging_uids = {
            pod["metadata"]["uid"] for pod in await namespace.list_objects(PODS)
        } & lost_uids
        print(f"{node}: {len(lost_uids)} pods replaced {seconds:.0f} s after the taint")
        print(f"{len(hanging_uids)} pods hang in Terminating")
        assert hanging_uids == lost_uids
    finally:
        namespace.cluster.world.wake(node)


async def _wait_until_tainted(cluster: InstalledCluster, node: str) -> float:
    async def is_tainted() -> None:
        body = await cluster.api.get(NODES.path(None, node))
        taints = {f"{taint['key']}:{taint['effect']}" for taint in body["spec"].get("taints", ())}
        assert "node.kubernetes.io/unreachable:NoExecute" in taints

    await eventually(is_tainted)
    return time.monotonic()
