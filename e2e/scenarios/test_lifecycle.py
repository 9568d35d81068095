"""Whatever keeps an engine from serving is told by kubectl, in the words of whoever refused."""

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from demo.stage import Json, Stage, StepError
from scenarios.actions import SMALL, Place
from scenarios.commands import explained
from scenarios.kills import kill_operator
from scenarios.lifecycle import (
    Told,
    be_impatient,
    fleet,
    freeze,
    printed,
    replicas,
    told_now,
    until_both_tell,
    until_printed,
    until_told,
)
from tessera.domain.names import ENGINE
from tessera.resources.api_resources import NODES, PODS
from world import World, WorldError, start
from world.testing import eventually

# A version without a flag table: whatever stands in extraArgs reaches the engine.
UNCHECKED = "0.99.0"
READY = "{.status.readyReplicas}"
# A replica on a dead node is replaced so soon after its taint.
GIVEN_UP_SECONDS = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with start(fleet=fleet(tmp_path_factory.mktemp("fleet"))) as found:
        yield found


@pytest.mark.full
async def test_an_engine_that_takes_no_step_is_replaced_once_and_a_new_leader_knows_it(
    place: Place,
) -> None:
    await be_impatient(place.stage)
    ref = await place.serve(replicas=2)
    await place.until_ready()
    await until_printed(place, READY, "2")
    first, second = await replicas(place)
    name = first["metadata"]["name"]
    hanging = await freeze(first, ref.name)
    told = await until_told(place, "EngineStalled", within=90)
    assert told.status == "False"
    assert f"{name} holds requests, and its engine made no step since" in told.message
    await until_told(place, "RolloutComplete", within=90)
    assert await printed(place, "{.status.replacement.pod}") == name
    assert name not in {one["metadata"]["name"] for one in await replicas(place)}
    assert await hanging in ("RemoteProtocolError", "ReadError")

    await kill_operator(place.stage)
    again = await freeze(second, ref.name)
    told = await until_both_tell(place, "EngineStalled", within=90)
    assert f"{second['metadata']['name']} holds" in told.message
    assert f"{name} was replaced recently, the next replacement is allowed from" in told.message
    left = {one["metadata"]["name"] for one in await replicas(place)}
    assert second["metadata"]["name"] in left
    again.cancel()


async def test_an_unknown_flag_is_told_in_the_words_of_the_engine(place: Place) -> None:
    engine = {"version": UNCHECKED, "extraArgs": ["--no-such-flag"]}
    await place.serve(replicas=1, engine=engine)
    told = await until_both_tell(place, "InvalidEngineArguments")
    assert "correct or remove --no-such-flag; chat-" in told.message
    assert "exit code 2: " in told.message
    assert told.message.endswith("vllm serve: error: unrecognized arguments: --no-such-flag")
    wide = await place.stage.run(
        *("kubectl", "--namespace", place.namespace, "get", "tsvc", "-o", "wide")
    )
    assert "InvalidEngineArguments: spec.engine.extraArgs: " in wide
    assert "unrecognized arguments: --no-such-flag" in wide


async def test_a_configuration_out_of_range_is_told_in_the_words_of_the_engine(
    place: Place,
) -> None:
    engine = {"version": UNCHECKED, "extraArgs": ["--block-size=0"]}
    await place.serve(replicas=1, engine=engine)
    told = await until_both_tell(place, "EngineStartFailed")
    assert "exit code 1: " in told.message
    assert "--block-size" in told.message


async def test_an_engine_that_takes_too_much_memory_of_its_node_is_told(place: Place) -> None:
    await place.serve(replicas=1)
    await place.until_ready()
    (pod,) = await replicas(place)
    name = pod["metadata"]["name"]

    async def killed_again() -> tuple[Told, str]:
        """As soon as it runs it is killed again, as for an engine that never gets enough."""
        with contextlib.suppress(WorldError):  # while it waits for its next start
            place.stage.world.run_out_of_memory(place.namespace, name, ENGINE)
        return await told_now(place), str((await explained(place))["rollout"]["reason"])

    told, _ = await eventually(
        killed_again,
        lambda found: found[0].reason == found[1] == "OOMKilled",
        within=60,
    )
    assert told.message.startswith(f"{name}: exit code 137")
    await until_told(place, "RolloutComplete", within=60)


async def test_an_exceeded_quota_is_told_word_by_word(place: Place) -> None:
    slices = "requests.nvidia.com/mig-1g.10gb"
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": {slices: "1"}},
    }
    await place.stage.api.create(f"/api/v1/namespaces/{place.namespace}/resourcequotas", quota)
    await place.serve(replicas=2)
    told = await until_both_tell(place, "QuotaExceeded")
    for words in ('pods "chat-', "exceeded quota: small", f"limited: {slices}=1"):
        assert words in told.message
    await until_printed(place, READY, "1")


@pytest.mark.usefixtures("nosy_mesh")
async def test_what_pod_security_refuses_is_told_word_by_word(place: Place) -> None:
    """Our own pods are restricted; what others add to them may not be."""
    await place.serve(replicas=1)
    told = await until_both_tell(place, "PodSecurityViolation")
    assert (
        'violates PodSecurity "restricted:latest": host namespaces (hostPID=true)' in told.message
    )
    ready = await until_both_tell(place, "NoReplicaReady", "Ready")
    assert "PodSecurityViolation: pods " in ready.message


@pytest.fixture
async def nosy_mesh(place: Place) -> AsyncIterator[None]:
    """A policy that adds to the pods of a restricted namespace what is not allowed there."""
    stage, name = place.stage, f"nosy-{place.namespace}"
    level = {"pod-security.kubernetes.io/enforce": "restricted"}
    await stage.api.patch(f"/api/v1/namespaces/{place.namespace}", {"metadata": {"labels": level}})
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
    here = {"matchLabels": {"kubernetes.io/metadata.name": place.namespace}}
    binding: Json = {
        "apiVersion": version,
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name, "matchResources": {"namespaceSelector": here}},
    }
    for one in (policy, binding):
        await stage.api.apply_manifest(one)
    await _until_in_force(stage, place.namespace)
    yield
    for plural in ("mutatingadmissionpolicybindings", "mutatingadmissionpolicies"):
        await stage.run("kubectl", "delete", plural, name)


async def _until_in_force(stage: Stage, namespace: str) -> None:
    """Policies take effect a moment after they were written."""
    pod = ("run", "probe", "--image=world/http:1", "--dry-run=server")

    async def refusal() -> str:
        try:
            return await stage.run("kubectl", "--namespace", namespace, *pod)
        except StepError as error:
            return str(error)

    await eventually(refusal, lambda text: "hostPID" in text, within=30)


async def test_an_image_that_cannot_be_pulled_is_told_word_by_word(place: Place) -> None:
    await place.serve(replicas=1, engine={"image": "nowhere/engine:1"})
    told = await until_both_tell(place, "ImagePullFailed")
    assert "nowhere/engine:1 is not in the image table" in told.message


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
async def test_a_secret_that_is_missing_is_told_word_by_word(
    place: Place, spec: dict[str, Any], reason: str
) -> None:
    await place.serve(replicas=1, **spec)
    told = await until_both_tell(place, reason)
    assert 'secret "hub" not found' in told.message


async def test_what_the_scheduler_cannot_place_is_told_word_by_word(place: Place) -> None:
    await place.serve(replicas=9)
    told = await until_both_tell(place, "Unschedulable", "Placed")
    assert "1 of 9 replicas unschedulable, no free 1g.10gb" in told.message
    assert "0/3 nodes are available: " in told.message


@pytest.mark.full
async def test_a_replica_on_a_dead_node_is_replaced_within_a_minute_of_the_taint(
    place: Place,
) -> None:
    """The pod on the dead node hangs in Terminating, and is no replica any more."""
    await place.serve(replicas=2)
    await until_printed(place, READY, "2")
    before = await replicas(place)
    node = before[0]["spec"]["nodeName"]
    lost = {one["metadata"]["uid"] for one in before if one["spec"]["nodeName"] == node}
    place.stage.world.end_node(node)
    try:
        tainted = await _until_tainted(place.stage, node)

        async def made() -> list[Json]:
            return [one for one in await replicas(place) if one["metadata"]["uid"] not in lost]

        await eventually(made, lambda found: len(found) == 2, within=GIVEN_UP_SECONDS)
        taken = time.monotonic() - tainted
        await until_printed(place, READY, "2")
        await until_both_tell(place, "RolloutComplete")
        assert (await explained(place))["ready"]["numbers"]["replicas"] == "2 take requests"
        assert await printed(place, "{.status.replicas}") == "2"
        hanging = {one["metadata"]["uid"] for one in await place.all(PODS)} & lost
        print(f"{node}: {len(lost)} replaced {taken:.0f} s after the taint, {len(hanging)} hang")
        assert hanging == lost
    finally:
        place.stage.world.wake(node)


async def _until_tainted(stage: Stage, node: str) -> float:
    async def taints() -> set[str]:
        found = await stage.api.get(NODES.path(None, node))
        return {f"{taint['key']}:{taint['effect']}" for taint in found["spec"].get("taints", ())}

    await eventually(
        taints, lambda found: "node.kubernetes.io/unreachable:NoExecute" in found, within=60
    )
    return time.monotonic()
