"""Emptying a node through the Eviction API, as autoscalers and `kubectl drain` do."""

import asyncio
from collections.abc import Iterable

from world.api import PODS, Api, ApiError, Json

RETRY_SECONDS = 1.0


def is_own(pod: Json) -> bool:
    """Return whether a pod keeps a node from being empty: it is there, and of no DaemonSet."""
    owners = pod["metadata"].get("ownerReferences", [])
    return is_present(pod) and all(owner["kind"] != "DaemonSet" for owner in owners)


def is_present(pod: Json) -> bool:
    """Return whether a pod has not ended, or its kubelet has yet to take it away."""
    deleted = "deletionTimestamp" in pod["metadata"]
    return deleted or pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")


async def evict(api: Api, pods: Iterable[Json]) -> None:
    """Ask until each of the pods is evicted; a PodDisruptionBudget may keep one for ever."""
    async with asyncio.TaskGroup() as group:
        for pod in pods:
            group.create_task(_evict(api, pod["metadata"]))


async def _evict(api: Api, meta: Json) -> None:
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"namespace": meta["namespace"], "name": meta["name"]},
        "deleteOptions": {"preconditions": {"uid": meta["uid"]}},
    }
    while True:
        try:
            await api.create(PODS.path(meta["namespace"], meta["name"], "eviction"), body)
        except ApiError as error:
            if error.status in (404, 409):  # gone, or another pod of the name
                return
            if error.status != 429:
                raise
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return
