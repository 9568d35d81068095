"""Counts the replicas of each service that are Ready and not terminating, over a watch."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from demo.cluster import InstalledCluster, Json
from world.api import PODS

_ENGINES = "app.kubernetes.io/component=engine"
_SERVICE = "tessera.dev/service"


@dataclass(slots=True)
class MinimumReady:
    """The fewest Ready replicas that each service had, and the number of events."""

    replicas: dict[str, int] = field(default_factory=dict)
    events: int = 0
    started: int = 0
    """Replicas that became Ready meanwhile."""
    _ready: dict[str, str] = field(default_factory=dict)

    def begin(self, pods: list[Json]) -> None:
        for pod in pods:
            self._update("ADDED", pod)
        self.replicas, self.started = dict(Counter(self._ready.values())), 0

    def apply_event(self, kind: str, pod: Json) -> None:
        """One event of the watch, in its order."""
        self.events += 1
        self._update(kind, pod)
        now = Counter(self._ready.values())
        for service, minimum in self.replicas.items():
            self.replicas[service] = min(minimum, now[service])

    def _update(self, kind: str, pod: Json) -> None:
        uid = pod["metadata"]["uid"]
        if kind == "DELETED" or not _is_ready(pod):
            self._ready.pop(uid, None)
        elif uid not in self._ready:
            self._ready[uid] = pod["metadata"]["labels"][_SERVICE]
            self.started += 1


@contextlib.asynccontextmanager
async def watch_minimum_ready(
    cluster: InstalledCluster, namespace: str | None = None
) -> AsyncIterator[MinimumReady]:
    """Follow every change of every engine's pod, from the list on without a gap."""
    path = PODS.path(namespace)
    listed = await cluster.api.get(path, labelSelector=_ENGINES)
    minimum = MinimumReady()
    minimum.begin(listed["items"])

    async def follow() -> None:
        version = listed["metadata"]["resourceVersion"]
        while True:
            changes = cluster.api.watch(path, version, labelSelector=_ENGINES)
            async with contextlib.aclosing(changes):
                async for kind, pod in changes:
                    version = pod["metadata"]["resourceVersion"]
                    if kind != "BOOKMARK":
                        minimum.apply_event(kind, pod)

    task = asyncio.create_task(follow())
    try:
        yield minimum
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _is_ready(pod: Json) -> bool:
    conditions: list[Mapping[str, str]] = pod.get("status", {}).get("conditions", [])
    ready = any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions
    )
    return ready and "deletionTimestamp" not in pod["metadata"]
