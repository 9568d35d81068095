"""The operator is killed with SIGKILL at ten seeded times; the fleet ends as without a kill.

The same actions run twice, once undisturbed and once with kills. The times come from a seed; two
are aimed: one between two writes of one reconcile, one within a stabilization window.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from demo.cluster import Json, condition
from demo.load import steady_load
from scenarios.actions import ScenarioNamespace
from scenarios.kills import kill_operator
from tessera.adapters.clock import now
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.resources.api_resources import DEPLOYMENTS, SERVICES
from world.object_comparison import comparable, differences
from world.testing import eventually

SEED = 20261120
FLEET = 12
UNCHANGED_SECONDS = 2.0
Kill = Callable[[], Awaitable[None]]

SCALING = {
    "policy": "QueueAndActivity",
    "minReplicas": 1,
    "maxReplicas": 2,
    "queue": {"target": 2},
    "scaleUp": {"stabilizationWindow": "8s", "pods": 1, "period": "10s"},
    "scaleDown": {"stabilizationWindow": "15s"},
}


async def apply_changes(namespace: ScenarioNamespace, kill: Kill, moments: random.Random) -> None:
    """Create twelve services, change some, delete some; after every action a kill may follow."""

    async def maybe_kill() -> None:
        await asyncio.sleep(moments.uniform(0, 0.4))
        await kill()

    for index in range(FLEET):
        await namespace.apply_service(f"svc-{index:02d}", replicas=0)
    await maybe_kill()
    for index in range(FLEET):
        await _wait_until_deployed(namespace, f"svc-{index:02d}", 0)
    await namespace.apply_service("svc-00", replicas=0, drain={"timeout": "90s"})
    await maybe_kill()
    await namespace.apply_service("svc-01", replicas=0, context={"maxModelLen": 4096})
    await namespace.apply_service("svc-02", replicas=2)
    await maybe_kill()
    await namespace.delete_service("svc-03")
    await maybe_kill()
    await _wait_until_deployed(namespace, "svc-02", 2)
    await namespace.apply_service("svc-02", replicas=1)
    await namespace.apply_service("svc-04", replicas=0, engine={"extraArgs": ["--max-logprobs=5"]})
    await maybe_kill()
    await namespace.apply_service(
        "svc-05", replicas=0, model={"uri": "hf://Qwen/Qwen2.5-0.5B-Instruct"}
    )
    await maybe_kill()
    await namespace.cluster.api.delete(SERVICES.path(namespace.name, "svc-06"))
    await maybe_kill()


async def _wait_until_deployed(namespace: ScenarioNamespace, name: str, replicas: int) -> None:
    """Wait until a Deployment has its replicas, so that both runs take the same steps."""

    async def is_deployed() -> None:
        deployments = await namespace.list_objects(DEPLOYMENTS)
        assert [
            deployment["spec"]["replicas"]
            for deployment in deployments
            if deployment["metadata"]["name"].startswith(f"{name}-")
        ] == [replicas]

    await eventually(is_deployed)


async def wait_until_settled(namespace: ScenarioNamespace) -> dict[str, Any]:
    """Wait until no object changes any more; return all of them, without what may differ."""

    async def read_objects() -> dict[str, Json]:
        services = {
            f"InferenceService/{service['metadata']['name']}": service
            for service in await namespace.list_objects(INFERENCE_SERVICES)
        }
        return services | await namespace.list_children()

    def without_history(objects: dict[str, Json]) -> dict[str, Any]:
        return {
            name: comparable(body, {namespace.name: "<namespace>"}, ["observedAt"])
            for name, body in objects.items()
        }

    async def are_settled() -> dict[str, Any]:
        objects = await read_objects()
        assert "Service/svc-06" in objects
        assert [name for name in objects if name.startswith("Deployment/svc-03-")] == []
        services = [objects[name] for name in objects if name.startswith("InferenceService/")]
        assert len(services) == FLEET - 1
        for service in services:
            meta, status = service["metadata"], service.get("status", {})
            assert status.get("observedGeneration") == meta["generation"], meta["name"]
            assert condition(service, "Progressing").get("reason") == "RolloutComplete", status
        await namespace.check_condition("svc-02", "Ready", "CompletionSucceeded")
        await asyncio.sleep(UNCHANGED_SECONDS)
        settled = without_history(await read_objects())
        assert differences(without_history(objects), settled) == []
        return settled

    return await eventually(are_settled)


@pytest.mark.full
async def test_killed_at_any_moment_all_objects_end_equal(namespace: ScenarioNamespace) -> None:
    kills = 0

    async def do_nothing() -> None:
        """Stand in for a kill in the undisturbed run."""

    async def kill() -> None:
        nonlocal kills
        await kill_operator(namespace.cluster)
        kills += 1

    await apply_changes(namespace, do_nothing, random.Random(SEED))  # noqa: S311 - a seeded course, no secret
    undisturbed = await wait_until_settled(namespace)
    for service in await namespace.list_objects(INFERENCE_SERVICES):
        await namespace.delete_service(service["metadata"]["name"])

    async def are_deleted() -> None:
        assert await namespace.list_objects(INFERENCE_SERVICES) == []
        assert await namespace.list_children() == {}

    await eventually(are_deleted)
    await apply_changes(namespace, kill, random.Random(SEED))  # noqa: S311
    disturbed = await wait_until_settled(namespace)
    assert kills == 7
    different = differences(undisturbed, disturbed)
    assert not different, "\n".join(different)


async def test_killed_between_two_writes_of_one_reconcile_the_rest_follows(
    namespace: ScenarioNamespace,
) -> None:
    """Many services at once make a reconcile of many writes; the kill interrupts it."""
    names = [f"svc-{index:02d}" for index in range(3 * FLEET)]
    await asyncio.gather(*(namespace.apply_service(name, replicas=0) for name in names))

    async def first_is_written() -> None:
        assert await namespace.list_objects(DEPLOYMENTS) != []

    async def all_are_written() -> None:
        assert len(await namespace.list_objects(DEPLOYMENTS)) == len(names)

    await eventually(first_is_written)
    await kill_operator(namespace.cluster)
    at_kill = _count_writes_before_last_start(namespace)
    assert 0 < at_kill < len(names), f"{at_kill} Deployments were written before the kill"
    await eventually(all_are_written)
    for name in names:
        await namespace.wait_for_condition(name, "Progressing", "RolloutComplete")


@pytest.mark.full
async def test_killed_during_a_stabilization_window_nothing_moves_early_and_the_scaling_follows(
    namespace: ScenarioNamespace,
) -> None:
    ref = await namespace.apply_service(scaling=SCALING)
    await namespace.wait_until_ready()
    base = await namespace.cluster.address(ref)
    changes = ReplicaChanges(namespace)
    async with steady_load(base, ref.name, clients=70, tokens=200):
        await _wait_for_reason(namespace, "ScaleUpStabilized")
        await kill_operator(namespace.cluster)
        await changes.wait_for(2)
    stabilized = await _wait_for_reason(namespace, "ScaleDownStabilized")
    await kill_operator(namespace.cluster)
    await changes.wait_for(1)
    assert changes.counts == [1, 2, 1]
    window = changes.at - datetime.fromisoformat(stabilized["observedAt"])
    assert window >= timedelta(seconds=15 - 2.5), "replicas left before the window was over"


class ReplicaChanges:
    """The desired numbers of replicas in their order, and the time of the last change."""

    def __init__(self, namespace: ScenarioNamespace) -> None:
        self._namespace = namespace
        self.counts: list[int] = [1]
        self.at = now()

    async def wait_for(self, count: int) -> None:
        async def are_desired() -> None:
            replicas = (await self._namespace.service_status())["scaling"]["desiredReplicas"]
            if replicas != self.counts[-1]:
                self.counts.append(replicas)
                self.at = now()
            assert replicas == count

        await eventually(are_desired)


async def _wait_for_reason(namespace: ScenarioNamespace, reason: str) -> Json:
    """Wait for a reason of the scaling; return its status."""

    async def is_said() -> Json:
        scaling: Json = (await namespace.service_status()).get("scaling", {})
        assert scaling.get("reason") == reason, scaling
        return scaling

    return await eventually(is_said)


def _count_writes_before_last_start(namespace: ScenarioNamespace) -> int:
    """Count the writes of Deployments in the audit log before the operator's last start."""
    written, at_last_start = 0, 0
    for line in namespace.cluster.world.audit_log.read_text().splitlines():
        entry = json.loads(line)
        if "tessera-operator" not in entry["user"]["username"]:
            continue
        target = entry.get("objectRef", {})
        if target.get("resource") == "leases":
            at_last_start = written
        if target.get("resource") == "deployments" and target["namespace"] == namespace.name:
            written += 1
    return at_last_start or written
