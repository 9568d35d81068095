"""A service on pools of several tiers under streams: what its clients and its status see."""

import asyncio
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from demo.cluster import InstalledCluster, Json
from demo.protected_streams import ProtectedStream, protected_streams
from scenarios.actions import ScenarioNamespace
from scenarios.gateway import Gateway
from scenarios.kills import kill_operator
from tessera.domain.names import LEAVING_LABEL
from tessera.resources.api_resources import DEPLOYMENTS, NODES, PODS
from world.api import ApiError
from world.object_comparison import comparable_objects
from world.testing import PATIENCE_SECONDS, a_container, a_pod, eventually, is_ready

# The pools: the first is of the examples, the others have a node of four slices each.
RESERVED, BURST, SPOT = "a100-reserved", "burst", "burst-spot"
RESERVED_NODES = ("a100-0", "a100-1")
SLICES = 4
FLOOR = 2
_PRODUCT, _SLICE = "NVIDIA-A100-SXM4-80GB", "nvidia.com/mig-1g.10gb"
_POOLS = {
    BURST: ("OnDemand", "4.20", {"karpenter.sh/capacity-type": "on-demand"}),
    SPOT: ("Spot", "0.70", {"cloud.google.com/gke-spot": "true"}),
}
_LOOK_SECONDS, _TAIL_SECONDS = 0.25, 0.02
_NOTICE = "aws-node-termination-handler/spot-itn"
_MAX_REPETITIONS = 2
# Seconds of a step, so that streams last as long as those of large models.
_STEP_SECONDS = 0.25


@contextlib.asynccontextmanager
async def burst_pools(cluster: InstalledCluster) -> AsyncIterator[None]:
    """Have an on-demand and a spot pool for the time of the block."""
    for name, (tier, price, label) in _POOLS.items():
        spec = {
            "nodeSelector": {"nvidia.com/gpu.product": _PRODUCT, **label},
            "tier": tier,
            "prices": [{"from": "2026-01-01", "perGPUHour": price, "currency": "USD"}],
        }
        body = {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "AcceleratorPool",
            "metadata": {"name": name},
            "spec": spec,
        }
        await cluster.api.apply(pool_path(name), body, "kubectl")
    try:
        yield
    finally:
        for name in _POOLS:
            if await cluster.api.exists(pool_path(name)):
                await cluster.api.delete(pool_path(name))


def pool_path(name: str) -> str:
    return f"/apis/tessera.dev/v1alpha1/acceleratorpools/{name}"


class HeldDevices:
    """Devices that pods hold that are not Tessera's: most of the reserved nodes."""

    def __init__(self, namespace: ScenarioNamespace) -> None:
        self._namespace = namespace

    async def leave(self, free: int, cpu: int = 0) -> None:
        """Hold all but some, which are on one node, and so many processors of each node."""
        for node, count in zip(RESERVED_NODES, (SLICES, SLICES - free), strict=True):
            await self.hold(node, count, cpu)

    async def hold(self, node: str, count: int, cpu: int = 0) -> None:
        """Hold so many devices of a node, for a pod that runs."""
        pod = a_pod(
            _guest(node),
            a_container("sleep 3600", resources={"limits": {_SLICE: count, "cpu": cpu}}),
            nodeSelector={"kubernetes.io/hostname": node},
        )
        api = self._namespace.cluster.api
        await api.create(PODS.path(self._namespace.name), pod)

        async def pod_is_ready() -> None:
            status = (await api.get(self._path(node)))["status"]
            assert is_ready({"status": status}), status

        await eventually(pod_is_ready)

    async def clear(self) -> None:
        """Free all of the reserved nodes, and wait until their kubelets have."""
        api = self._namespace.cluster.api
        for path in map(self._path, RESERVED_NODES):
            if await api.exists(path):
                await api.delete(path)

        async def are_gone() -> None:
            pods = await self._namespace.list_objects(PODS)
            names = {pod["metadata"]["name"] for pod in pods}
            assert names & set(map(_guest, RESERVED_NODES)) == set()

        await eventually(are_gone)

    async def free(self, node: str = RESERVED_NODES[1]) -> None:
        """Free those of a node; of the reserved ones that with free devices."""
        # Without a grace period the pod would be gone before its devices are.
        await self._namespace.cluster.api.delete(self._path(node))

    def _path(self, node: str) -> str:
        return PODS.path(self._namespace.name, _guest(node))


def _guest(node: str) -> str:
    return f"guest-{node}"


async def apply_chat(namespace: ScenarioNamespace, replicas: int, **spec: Any) -> None:
    """Apply the service of the scenes: at least two replicas, each with room for all streams."""
    env = [{"name": "TESSERA_SIM_SPEED", "value": json.dumps({"weights": _STEP_SECONDS})}]
    fields: Json = {
        "replicas": replicas,
        "scaling": {"minReplicas": FLOOR, "maxReplicas": 6},
        "podTemplate": {"env": env},
        "slo": {"itlP95": "1s"},
        "context": {"maxModelLen": 1024, "typicalInputTokens": 50, "typicalOutputTokens": 40},
        "engine": {"maxNumSeqs": 100},
        "placement": {"pools": [RESERVED, BURST]},
    }
    await namespace.apply_service(**(fields | spec))


@contextlib.asynccontextmanager
async def streaming_clients(
    gateway: Gateway, count: int, tokens: int
) -> AsyncIterator[list[ProtectedStream]]:
    """Run clients that each stream one answer after another for the time of the block.

    The list has all their streams; after the block all of them have ended.
    """
    streams: list[ProtectedStream] = []
    ended = asyncio.Event()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers={"Authorization": f"Bearer {gateway.key}"},
        timeout=aiohttp.ClientTimeout(total=300),
    ) as session:

        async def run_client(number: int) -> None:
            while not ended.is_set():
                stream = protected_streams("chat", count, tokens)[number]
                streams.append(stream)
                await stream.run(session, gateway.base)

        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                tasks.create_task(run_client(number))
            try:
                yield streams
            finally:
                ended.set()


@dataclass(slots=True)
class TierRecorder:
    """Looks at the pods and the status of a service several times a second."""

    namespace: ScenarioNamespace
    begin: float = field(default_factory=time.monotonic)
    log: list[str] = field(default_factory=list)
    least_ready: int = 1_000
    """Replicas that took requests at the worst moment."""
    waits: dict[str, float] = field(default_factory=dict)
    """For how long each pod had no node, in seconds."""
    said: dict[str, Json] = field(default_factory=dict)
    """The last entry of `status.variants` with replicas, by pool."""
    reasons: dict[str, list[str]] = field(default_factory=dict)
    """The reasons of each pool's variant in their order."""
    _unbound_since: dict[str, float] = field(default_factory=dict)

    @property
    def second(self) -> float:
        return time.monotonic() - self.begin

    async def follow(self) -> None:
        while True:
            # The API server may be late, and a sample less is no harm.
            with contextlib.suppress(ApiError, aiohttp.ClientError, TimeoutError):
                await self.look()
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Record the pods and the status as they are now."""
        pods = await list_pods(self.namespace)
        status = await self.namespace.service_status()
        ready = sum(takes_requests(pod) for pod in pods)
        if ready < min(self.least_ready, FLOOR):
            self.log.append(f"  {self.second:5.1f} s {ready} of {FLOOR} take requests")
        self.least_ready = min(self.least_ready, ready)
        for pod in pods:
            name = pod["metadata"]["name"]
            if not pod["spec"].get("nodeName"):
                since = self._unbound_since.setdefault(name, time.monotonic())
                self.waits[name] = time.monotonic() - since
        for variant in status.get("variants", ()):
            self._take(variant)

    def _take(self, variant: Json) -> None:
        pool = variant["pool"]
        last = self.said.get(pool, {})
        self.said[pool] = variant
        counts = ("desiredReplicas", "replicas", "readyReplicas", "message")
        if [last.get(key) for key in counts] != [variant.get(key) for key in counts]:
            reasons = self.reasons.setdefault(pool, [])
            if (reason := variant.get("reason")) and reasons[-1:] != [reason]:
                reasons.append(reason)
            desired, exist, ready = (variant[key] for key in counts[:3])
            self.log.append(
                f"  {self.second:5.1f} s {pool} at {variant['perHour']}: {desired} desired, "
                f"{exist} exist, {ready} ready: {variant.get('reason')}: {variant.get('message')}"
            )

    @property
    def longest_wait(self) -> float:
        return max(self.waits.values(), default=0.0)

    async def wait_for_ready(self, pool: str, count: int) -> None:
        """Wait until the status says that so many replicas are ready in a pool."""

        async def are_ready() -> None:
            assert self.said.get(pool, {}).get("readyReplicas", 0) == count, self.said

        await eventually(are_ready)

    def report(self, streams: list[ProtectedStream]) -> str:
        """Return the course, for people."""
        resumed = sum(stream.resumed > 0 for stream in streams)
        failed = broken(streams)
        return "\n".join(
            [
                f"{len(streams)} streams, {resumed} went on elsewhere, {len(failed)} broke: "
                f"{failed[:3]}; at least {self.least_ready} replicas took requests; pods waited "
                f"{sorted(round(wait, 1) for wait in self.waits.values())} s for nodes",
                *self.log,
            ]
        )


@contextlib.asynccontextmanager
async def recording(namespace: ScenarioNamespace) -> AsyncIterator[TierRecorder]:
    """Record the service for the time of the block, and how it is at its end."""
    recorder = TierRecorder(namespace)
    task = asyncio.create_task(recorder.follow())
    try:
        yield recorder
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await eventually(recorder.look)


class WriteKiller:
    """Kills the operator with SIGKILL as soon as it has written something in a namespace.

    Each process that follows is killed at its first write again; a write that each of them repeats
    is let pass in the end.
    """

    def __init__(self, namespace: ScenarioNamespace, resources: Collection[str] = ()) -> None:
        self._namespace, self._resources = namespace, resources
        self.kills: Counter[str] = Counter()
        """By what was written."""

    async def run(self) -> None:
        """Follow the audit log for ever."""
        with self._namespace.cluster.world.audit_log.open(encoding="utf-8") as log:
            log.seek(0, os.SEEK_END)
            line = ""
            while True:
                line += log.readline()
                if not line.endswith("\n"):
                    await asyncio.sleep(_TAIL_SECONDS)
                    continue
                write, line = self._operator_write(json.loads(line)), ""
                if write is None or self.kills[write] >= _MAX_REPETITIONS:
                    continue
                self.kills[write] += 1
                await kill_operator(self._namespace.cluster)
                log.seek(0, os.SEEK_END)

    def _operator_write(self, event: Json) -> str | None:
        target = event.get("objectRef", {})
        if (
            "tessera-operator" not in event["user"]["username"]
            or target.get("namespace") != self._namespace.name
            or target["resource"] == "events"
            or (self._resources and target["resource"] not in self._resources)
        ):
            return None
        parts = event["verb"], target["resource"], target.get("name"), target.get("subresource")
        return " ".join(part for part in parts if part)


@contextlib.asynccontextmanager
async def killing_at_writes(
    namespace: ScenarioNamespace, resources: Collection[str] = ()
) -> AsyncIterator[WriteKiller]:
    """Kill the operator at its writes for the time of the block: at those of some resources, or of
    any."""
    killer = WriteKiller(namespace, resources)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(killer.run())
        try:
            yield killer
        finally:
            task.cancel()


async def final_children(namespace: ScenarioNamespace) -> Json:
    """Return the operator's objects comparably, once nothing is under way.

    Their statuses are of other controllers, which may be late.
    """
    await namespace.wait_for_condition("chat", "Progressing", "RolloutComplete")
    children = (await namespace.list_children()).items()
    return comparable_objects(
        {**body, "kind": name.partition("/")[0], "status": {}} for name, body in children
    )


async def announce_end(cluster: InstalledCluster, node: str) -> None:
    """Taint a node as AWS's handler does after a notice of two minutes."""
    await cluster.run("kubectl", "taint", "node", node, f"{_NOTICE}=now:NoSchedule")


async def end_node(cluster: InstalledCluster, node: str) -> None:
    """Let a node die, and be deleted as the cloud does."""
    cluster.world.end_node(node)
    await cluster.api.delete(NODES.path(None, node))


def broken(streams: list[ProtectedStream]) -> list[str]:
    """Return how streams failed."""
    return [stream.failure or "ended early" for stream in streams if not stream.is_whole]


def takes_requests(pod: Json) -> bool:
    meta = pod["metadata"]
    leaves = LEAVING_LABEL in meta["labels"] or "deletionTimestamp" in meta
    return is_ready(pod) and not leaves


async def list_pods(namespace: ScenarioNamespace, service: str = "chat") -> list[Json]:
    """Return the pods of a service."""
    pods = await namespace.list_objects(PODS)
    return [pod for pod in pods if pod["metadata"]["labels"].get("tessera.dev/service") == service]


async def wait_for_counts(
    namespace: ScenarioNamespace, expected: Mapping[str, int], within: float = PATIENCE_SECONDS
) -> None:
    """Wait until so many replicas take requests in each pool, there is no other pod and no other
    Deployment, and the status says so."""

    async def are_reached() -> None:
        counts: Counter[str] = Counter()
        for pod in await list_pods(namespace):
            node = pod["spec"].get("nodeName", "")
            pool = RESERVED if node in RESERVED_NODES else node
            counts[pool if takes_requests(pod) else "other"] += 1
        assert counts == expected
        assert await deployments(namespace) == expected
        assert await reported_counts(namespace) == expected

    await eventually(are_reached, within=within)


async def reported_counts(namespace: ScenarioNamespace) -> Mapping[str, int]:
    """Return the ready replicas by pool as the status has them."""
    status = await namespace.service_status()
    variants = status.get("variants") or [{**status.get("variant", {}), **status}]
    return {each["pool"]: each["readyReplicas"] for each in variants if each.get("replicas")}


async def deployments(namespace: ScenarioNamespace) -> Mapping[str, int]:
    """Return the replicas of each Deployment of the service by pool."""
    return {
        body["metadata"]["name"].removeprefix("chat-").removesuffix("-1g-10gb"): body["spec"][
            "replicas"
        ]
        for body in await namespace.list_objects(DEPLOYMENTS)
        if body["metadata"]["name"].startswith("chat-")
    }
