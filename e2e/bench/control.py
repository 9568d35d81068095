"""The operator on a large fleet, measured from outside: time, CPU, memory, writes."""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp

from bench.audit import Audit, Write, kinds
from bench.fleet import (
    ALONE,
    CONTROL_NODE,
    REPLICAS,
    Size,
    at_steady_rate,
    each,
    percentile_ms,
    pool,
    service,
)
from bench.process import OperatorProcess, quantile, running
from demo.cluster import NAMESPACE, InstalledCluster, install, until
from tessera.api.service_class import BUILT_IN_CLASSES
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.resources.api_resources import DEPLOYMENTS, NODES, PODS, SERVICES
from world.api import Json
from world.kubelet.stand_in import LABEL

# Seldom: a list of 2,000 services keeps the API server busy by itself.
_LOOK_SECONDS = 5.0
# Gauges that move below a quarter of the queue target neither scale nor stabilize anything.
_QUIET_QUEUE = BUILT_IN_CLASSES.interactive.queue_target // 4
# Seconds in which at most one status write of a service is allowed while only gauges move.
_WINDOW = 30.0
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long to look."""

    edits: int
    quiet: float
    moving: float


@dataclass(slots=True)
class ControlPlaneBench:
    """One operator on one world."""

    cluster: InstalledCluster
    size: Size
    times: Times
    audit: Audit
    figures: Figures = field(default_factory=dict)

    async def run(self, bare_seconds: float) -> Figures:
        """Measure all; `bare_seconds` is what a client took that only applies the children."""
        await self._begin()
        await self._create(bare_seconds)
        await self._quiet()
        await self._edit_alone()
        await self._edits()
        await self._moving()
        await self._cold_start()
        return self.figures

    async def _begin(self) -> None:
        cluster = self.cluster
        await install(cluster)
        api = cluster.api
        await api.apply_manifest(pool())
        for name in self.size.namespaces:
            await api.create("/api/v1/namespaces", {"metadata": {"name": name}})
        node = await api.get(NODES.path(None, CONTROL_NODE))
        await api.create(PODS.path("gpu-operator"), _stand_in(node))

        async def read_status() -> Json:
            status: Json = (await api.get(PODS.path("gpu-operator", "stand-in")))["status"]
            return status

        await until(
            read_status, lambda status: status.get("phase") == "Running", "the stand-in runs", 20
        )

    async def _create(self, bare_seconds: float) -> None:
        """Create all services; from the first one to the last child, and until all answer."""
        api, operator = self.cluster.api, self._operator()
        await asyncio.sleep(2)
        cpu, lag = operator.cpu_seconds(), await operator.metrics()
        self.audit.skip()
        begun, at = time.monotonic(), datetime.now(UTC)  # noqa: TID251 - compared with the log's
        await each(
            self.size.names,
            lambda space, name: api.create(INFERENCE_SERVICES.path(space), service(space, name)),
        )
        self._say(f"{self.size.services} services created in {time.monotonic() - begun:.1f} s")
        await until(self._unready, lambda left: not left, "all services are Ready", 900)
        self.figures["ready_s"] = round(time.monotonic() - begun, 1)
        writes = self.audit.writes()
        last = max(when for when, what, _ in writes if what in _CHILD_WRITES)
        seconds = (last - at).total_seconds()
        after = await operator.metrics()
        self.figures |= {
            "bare_s": round(bare_seconds, 1),
            "applied_s": round(seconds, 1),
            "applied_vs_bare": round(seconds / bare_seconds, 2),
            "operator_cpu_ms_per_service": round(
                (operator.cpu_seconds() - cpu) * 1e3 / self.size.services, 2
            ),
            "loop_lag_p99_ms": quantile(lag, after, "tessera_event_loop_lag_seconds", 0.99) * 1e3,
            "loop_lag_p999_ms": quantile(lag, after, "tessera_event_loop_lag_seconds", 0.999) * 1e3,
        }
        writes += await self._settle()
        self.figures["requests_per_service"] = round(len(writes) / self.size.services, 2)
        self._say(f"writes: {dict(kinds(writes))}")
        cycles, cpu_seconds = (
            after[f"tessera_reconcile_{name}"] - lag.get(f"tessera_reconcile_{name}", 0.0)
            for name in ("duration_seconds_count", "cpu_seconds_total")
        )
        self._say(f"reconciles: {cycles:.0f}, {cpu_seconds:.1f} s of CPU")
        self._say_figures()

    async def _settle(self) -> list[Write]:
        """Wait until nothing is written for a while; return what was written until then."""
        quiet_since, deadline, writes = time.monotonic(), time.monotonic() + 300, list[Write]()
        while time.monotonic() - quiet_since < 15:
            await asyncio.sleep(1)
            if new_writes := self.audit.writes():
                quiet_since, writes = time.monotonic(), writes + new_writes
            assert time.monotonic() < deadline, f"still writing: {kinds(new_writes)}"
        return writes

    async def _quiet(self) -> None:
        """Nothing happens."""
        operator = self._operator()
        before, cpu, begun = await operator.metrics(), operator.cpu_seconds(), time.monotonic()
        self.audit.skip()
        await asyncio.sleep(self.times.quiet)
        share = (operator.cpu_seconds() - cpu) / (time.monotonic() - begun)
        after, writes = await operator.metrics(), self.audit.writes()
        reconciles = (
            after["tessera_reconcile_duration_seconds_count"]
            - before["tessera_reconcile_duration_seconds_count"]
        )
        spent = (
            after["tessera_reconcile_cpu_seconds_total"]
            - before["tessera_reconcile_cpu_seconds_total"]
        )
        self.figures |= {
            "idle_core_share": round(share, 4),
            "steady_writes": len(writes),
            "turn_cpu_ms_unchanged": round(spent / reconciles * 1e3, 1),
            "rss_mib": round(operator.rss_mib()),
        }
        self._say_figures()

    async def _edit_alone(self) -> None:
        took = []
        for index in range(ALONE):
            async with self._watched() as applied:
                took.append(await self._edit(index, REPLICAS + 1, applied))
            await self._settle()
        self.figures["edit_alone_ms"] = round(statistics.median(took) * 1e3)

    async def _edits(self) -> None:
        """Many edits at a steady rate, from many users."""
        operator = self._operator()
        before = await operator.metrics()
        async with self._watched() as applied:
            took = await at_steady_rate(
                range(ALONE, ALONE + self.times.edits),
                lambda index: self._edit(index, REPLICAS + 1, applied),
            )
        after = await operator.metrics()
        self.figures |= {
            "edit_p50_ms": percentile_ms(took, 0.5),
            "edit_p99_ms": percentile_ms(took, 0.99),
            "edits": len(took),
            "edits_turn_p99_ms": quantile(before, after, "tessera_reconcile_duration_seconds", 0.99)
            * 1e3,
            "edits_lag_p99_ms": quantile(before, after, "tessera_event_loop_lag_seconds", 0.99)
            * 1e3,
        }
        self._say_figures()
        await self._settle()

    async def _edit(self, index: int, replicas: int, applied: "_ReplicaWaits") -> float:
        namespace, name = self.size.names[index % self.size.services]
        path = INFERENCE_SERVICES.path(namespace, name)
        done = applied.awaited(namespace, name, replicas)
        begun = time.monotonic()
        await self.cluster.api.patch(path, {"spec": {"replicas": replicas}})
        async with asyncio.timeout(60):
            await done
        return time.monotonic() - begun

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator["_ReplicaWaits"]:
        """Watch the replicas of the Deployments."""
        api, applied = self.cluster.api, _ReplicaWaits()
        listed = await api.get(DEPLOYMENTS.path(None), limit="1")

        async def follow() -> None:
            version = listed["metadata"]["resourceVersion"]
            async for _, body in api.watch(DEPLOYMENTS.path(None), version):
                applied.see(body)

        task = asyncio.create_task(follow())
        try:
            yield applied
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _moving(self) -> None:
        """The gauges of up to 200 services move each second."""
        names = self.size.names[: min(200, self.size.services)]
        pods = await self.cluster.api.get(PODS.path(None), labelSelector="tessera.dev/service")
        of_service: dict[tuple[str, str], list[str]] = {}
        for pod in pods["items"]:
            meta = pod["metadata"]
            key = meta["namespace"], meta["labels"]["tessera.dev/service"]
            of_service.setdefault(key, []).append(meta["name"])
        for space, name in names:  # a status with readings needs a number that the autoscaler sets
            path = INFERENCE_SERVICES.path(space, name)
            bounds = {
                "policy": "QueueAndActivity",
                "minReplicas": REPLICAS,
                "maxReplicas": REPLICAS + 1,
            }
            await self.cluster.api.patch(path, {"spec": {"replicas": None, "scaling": bounds}})
        operator = self._operator()
        await self._gauges(names, of_service, 0)
        await asyncio.sleep(20)
        self.audit.skip()
        begun, second, cpu = time.monotonic(), 0, operator.cpu_seconds()
        while (passed := time.monotonic() - begun) < self.times.moving:
            await self._gauges(names, of_service, second)
            second += 1
            await asyncio.sleep(max(0.0, second - passed))
        wrote = Counter(
            (key, int((when.timestamp()) // _WINDOW))
            for when, what, key in self.audit.writes()
            if what in ("patch/inferenceservices/status", "create/events", "patch/events")
        )
        share = (operator.cpu_seconds() - cpu) / (time.monotonic() - begun)
        self.figures |= {
            "moving_status_writes_per_service_30s": max(wrote.values(), default=0),
            "moving_status_writes": sum(wrote.values()),
            "moving_core_share": round(share, 4),
        }
        self._say_figures()

    async def _gauges(
        self,
        names: list[tuple[str, str]],
        pods: dict[tuple[str, str], list[str]],
        second: int,
    ) -> None:
        address = (await self.cluster.api.get(PODS.path("gpu-operator", "stand-in")))["status"][
            "podIP"
        ]
        gauges = [
            {
                "namespace": space,
                "pod": pod,
                "service": name,
                "waiting": waiting % (_QUIET_QUEUE + 1),
            }
            for waiting, (space, name) in enumerate(names, second)
            for pod in pods.get((space, name), ())
        ]
        async with (
            aiohttp.ClientSession() as session,
            session.put(f"http://{address}:8000/gauges", json=gauges) as response,
        ):
            response.raise_for_status()

    async def _cold_start(self) -> None:
        """Kill the operator, and measure until the new one has done its first reconcile."""
        old = self._operator()
        world = self.cluster.world
        pods = await self.cluster.api.get(
            PODS.path(NAMESPACE), labelSelector="app.kubernetes.io/component=operator"
        )
        world.kill(NAMESPACE, pods["items"][0]["metadata"]["name"], "operator")

        async def restarted_operator() -> OperatorProcess | None:
            operator = running(world)
            return operator if operator is not None and operator.pid != old.pid else None

        new = await until(
            restarted_operator, lambda operator: operator is not None, "the operator is back", 60
        )
        begun = time.monotonic()

        async def reconcile_count() -> object:
            return (await new.metrics()).get("tessera_reconcile_duration_seconds_count", 0.0)

        await until(reconcile_count, bool, "the first reconcile", 120)
        self.figures["cold_sync_s"] = round(time.monotonic() - begun, 1)
        self.figures["cold_cpu_s"] = round(new.cpu_seconds(), 1)
        self._say_figures()

    async def _unready(self) -> int:
        await asyncio.sleep(_LOOK_SECONDS)
        listed = await self.cluster.api.get(INFERENCE_SERVICES.path(None))
        return sum(
            not any(
                condition["type"] == "Ready" and condition["status"] == "True"
                for condition in body.get("status", {}).get("conditions", ())
            )
            for body in listed["items"]
        )

    def _operator(self) -> OperatorProcess:
        operator = running(self.cluster.world)
        assert operator is not None, "no operator runs"
        return operator

    def _say(self, text: str) -> None:
        self.cluster.say(text)

    def _say_figures(self) -> None:
        self._say(", ".join(f"{name} {value}" for name, value in self.figures.items()))


@dataclass(slots=True)
class _ReplicaWaits:
    """The waits for a number of replicas in a Deployment."""

    _waiting: dict[tuple[str, str], tuple[int, asyncio.Future[None]]] = field(default_factory=dict)

    def awaited(self, namespace: str, name: str, replicas: int) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[namespace, name] = replicas, future
        return future

    def see(self, body: Json) -> None:
        meta = body["metadata"]
        key = meta["namespace"], meta.get("labels", {}).get("tessera.dev/service", "")
        wait = self._waiting.get(key)
        if wait is not None and body["spec"].get("replicas") == wait[0]:
            del self._waiting[key]
            wait[1].set_result(None)


_CHILD_WRITES = {f"patch/{kind.plural}" for kind in (DEPLOYMENTS, SERVICES)} | {
    "patch/poddisruptionbudgets"
}


def _stand_in(node: Json) -> Json:
    """Return its pod, owned by its node as a static one is: the exporter's DaemonSet, whose labels
    it has so that Prometheus finds it, would adopt and delete a pod without an owner."""
    owner = {"apiVersion": "v1", "kind": "Node", "name": CONTROL_NODE, "controller": True}
    labels = {LABEL: "kwok", "app.kubernetes.io/name": "dcgm-exporter"}
    container = {
        "name": "main",
        "image": "world/stand-in:1",
        "ports": [{"name": "http", "containerPort": 8000}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "stand-in",
            "labels": labels,
            "ownerReferences": [owner | {"uid": node["metadata"]["uid"]}],
        },
        "spec": {"nodeName": CONTROL_NODE, "containers": [container]},
    }
