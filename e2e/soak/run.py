"""One soak: faults, healing, the same actions without faults, and the comparison."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from demo.cluster import NAMESPACE, InstalledCluster, Json, Ref, condition, install
from demo.load import LoadCounts, steady_load
from soak.faults import EDITED, OPERATORS, FaultTarget, schedule
from soak.memory import ProcessMemory, memory_at_rest, sample_memory
from soak.user import HOME, User
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.resources.api_resources import CHILDREN, PODS
from world import World
from world.api import Api, connect
from world.object_comparison import comparable_objects, differences
from world.testing import eventually

HEAL_SECONDS = 240.0
UNCHANGED_SECONDS = 6.0
CLIENTS = 8
SCALING = {
    "policy": "QueueAndActivity",
    "minReplicas": 1,
    "maxReplicas": 3,
    "queue": {"target": 2},
    "scaleUp": {"stabilizationWindow": "3s", "pods": 1, "period": "5s"},
    "scaleDown": {"stabilizationWindow": "10s"},
}
VALUES = (
    "replicaCount=2",
    # Beside no engine, and not evicted with a node: the faults end processes themselves.
    r"nodeSelector.kubernetes\.io/hostname=control",
    "tolerations[0].key=node.kubernetes.io/not-ready",
    "tolerations[0].operator=Exists",
    "tolerations[1].key=node.kubernetes.io/unreachable",
    "tolerations[1].operator=Exists",
)


class Soak:
    """Faults drawn by a seed on the installed chart with two operators, then a rest."""

    FLEET: ClassVar[Path] = Path(__file__).parent / "fleet.yaml"

    def __init__(
        self, world: World, seed: int, *, seconds: float, period: float, rest_seconds: float = 0.0
    ) -> None:
        self._world = world
        self._chance = random.Random(seed)  # noqa: S311 - a seeded course, no secret
        self._seed = seed
        self._seconds = seconds
        self._period = period
        self._rest_seconds = rest_seconds

    async def run(self) -> dict[str, Any]:
        async with connect(self._world.kubeconfig) as api:
            cluster = InstalledCluster(self._world, api, print)
            await install(cluster, *VALUES)
            user = User(api)
            await create_objects(user)
            await wait_until_healed(api)
            processes: dict[int, ProcessMemory] = {}
            sampling = asyncio.create_task(sample_memory(self._world, processes))
            base = await cluster.address(Ref(HOME, "chat"))
            fault_target = FaultTarget(cluster, user, self._chance)
            async with steady_load(base, "chat", clients=CLIENTS, tokens=100, pause=0.2) as load:
                faults = await self._inject_faults(fault_target)
                rest_begun = time.monotonic()
                await self._rest()
            sampling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sampling
            begun = time.monotonic()
            disturbed = await wait_until_healed(api)
            figures = {
                "seed": self._seed,
                "minutes": round(self._seconds / 60, 1),
                "rest_minutes": round(self._rest_seconds / 60, 1),
                "faults": dict(sorted(faults.items())),
                "actions": len(user.done),
                "heal_seconds": round(time.monotonic() - begun, 1),
                "operator_restarts": await _restarts(api),
                **_answers(load),
                **_memory(processes),
                **memory_at_rest([process.since(rest_begun) for process in processes.values()]),
            }
            print(f"healed: {figures}", flush=True)
            clean = await _clean_run(api, user)
        return figures | {"objects": len(clean), "different": differences(clean, disturbed)}

    async def _inject_faults(self, fault_target: FaultTarget) -> Counter[str]:
        count = max(1, int(self._seconds / self._period))
        begun, done = time.monotonic(), Counter[str]()
        for index, fault in enumerate(schedule(count, self._chance)):
            await asyncio.sleep(max(0.0, begun + index * self._period - time.monotonic()))
            print(f"{time.monotonic() - begun:7.1f} s  {fault.__name__}", flush=True)
            await fault(fault_target)
            done[fault.__name__] += 1
        await asyncio.sleep(max(0.0, begun + self._seconds - time.monotonic()))
        return done

    async def _rest(self) -> None:
        """Wait under load without faults, and say every ten minutes that it goes on."""
        left = self._rest_seconds
        while left > 0:
            print(f"at rest for {left / 60:.0f} more minutes", flush=True)
            await asyncio.sleep(min(left, 600.0))
            left -= 600.0


async def create_objects(user: User) -> None:
    """Create what exists before the first fault."""
    await user.namespace(HOME)
    await user.pool("1.79")
    await user.budget()
    await user.serve("chat", scaling=SCALING)
    for index in range(2):
        await user.serve(f"fixed-{index}", replicas=1)
    await user.serve("scaled", replicas=0)
    for name in EDITED:
        await user.serve(name, replicas=0)


async def _clean_run(api: Api, user: User) -> dict[str, Any]:
    """Delete everything, and repeat the same actions without any fault."""
    actions = list(user.done)
    await user.end_namespace(HOME)

    async def is_deleted() -> None:
        namespaces = (await api.get("/api/v1/namespaces"))["items"]
        assert HOME not in [namespace["metadata"]["name"] for namespace in namespaces]

    await eventually(is_deleted, within=90)
    await user.replay(actions)
    return await wait_until_healed(api)


async def wait_until_healed(api: Api) -> dict[str, Any]:
    """Return every object once all services are in order and nothing changes."""

    async def all_are_in_order() -> None:
        services = (await api.get(INFERENCE_SERVICES.path(None)))["items"]
        assert [reason for service in services if (reason := _waiting_reason(service))] == []

    async def is_healed() -> dict[str, Any]:
        await all_are_in_order()
        before = await _objects(api)
        await asyncio.sleep(UNCHANGED_SECONDS)
        assert differences(before, await _objects(api)) == []
        await all_are_in_order()
        return await _objects(api)

    return await eventually(is_healed, within=HEAL_SECONDS)


def _waiting_reason(service: Json) -> str | None:
    """What the service still waits for."""
    name, status = service["metadata"]["name"], service.get("status", {})
    if service["metadata"].get("deletionTimestamp"):
        return f"{name} is still being deleted"
    if status.get("observedGeneration") != service["metadata"]["generation"]:
        return f"{name}: its last edit was not yet seen"
    replicas = service["spec"].get("replicas", SCALING["minReplicas"])
    have = status.get("replicas"), status.get("readyReplicas")
    if have != (replicas, replicas):
        return f"{name}: {have} replicas instead of {replicas}"
    progress = condition(service, "Progressing").get("reason")
    ready = condition(service, "Ready").get("reason")
    if progress != "RolloutComplete" or (replicas and ready != "CompletionSucceeded"):
        return f"{name}: {progress}, {ready}"
    return None


async def _objects(api: Api) -> dict[str, Any]:
    """Return all objects of users and the operator, without history."""
    objects = [
        *(await api.get(ACCELERATOR_POOLS.path(None)))["items"],
        *(await api.get(TENANT_BUDGETS.path(None)))["items"],
        *(await api.get(INFERENCE_SERVICES.path(None)))["items"],
    ]
    for kind in CHILDREN:
        if kind.watched:
            listed = await api.get(kind.path(None), labelSelector=kind.selector or "")
            objects += [item | {"kind": kind.kind} for item in listed["items"]]
    pods = (await api.get(PODS.path(None), labelSelector="app.kubernetes.io/component=engine"))[
        "items"
    ]
    running = Counter(pod["metadata"]["labels"]["tessera.dev/service"] for pod in pods)
    return comparable_objects(objects) | {
        f"pods of {name}": count for name, count in running.items()
    }


async def _restarts(api: Api) -> int:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"
    pods = (await api.get(path, labelSelector=OPERATORS))["items"]
    return sum(pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods)


def _answers(load: LoadCounts) -> dict[str, int]:
    return {"answers": load.finished, "failed_answers": len(load.failures)}


def _memory(processes: dict[int, ProcessMemory]) -> dict[str, Any]:
    """Of the process that lived longest."""
    if not processes:
        return {}
    longest = max(processes.values(), key=lambda process: process.seconds)
    slope, sizes = (
        longest.slope(),
        [size for process in processes.values() for _, size in process.samples],
    )
    return {
        "processes": len(processes),
        "longest_life_minutes": round(longest.seconds / 60, 1),
        "rss_mib_every_half_minute": [round(size, 1) for _, size in longest.samples[::3]],
        "rss_mib_max": round(max(sizes), 1),
        "rss_mib_per_10_min": None if slope is None else round(slope, 2),
    }
