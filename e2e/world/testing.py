"""For tests against a world: manifests with defaults, and waits for a state."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import aiohttp

from world.api import CONFIG_MAPS, EVENTS, NODES, PODS, SERVICE_ACCOUNTS, Api, ApiError, Json

T = TypeVar("T")
LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.05, 0.5
# Machines are shared: what takes a second alone may take many beside other tests.
PATIENCE_SECONDS = 300
_numbers = itertools.count(1)


async def eventually(check: Callable[[], Awaitable[T]], *, within: float = PATIENCE_SECONDS) -> T:
    """Repeat the asserts of `check` until all of them hold; return what it returns.

    Ends with the last AssertionError, or with the error of the server that was asked last. Looks
    again after a twentieth of the time waited so far, since a look takes time from what it waits
    for.
    """
    loop = asyncio.get_running_loop()
    begun = loop.time()
    last_error: Exception | None = None
    try:
        async with asyncio.timeout(within):
            while True:
                try:
                    return await check()
                except (AssertionError, ApiError, aiohttp.ClientError, OSError) as error:
                    last_error = error
                waited = loop.time() - begun
                await asyncio.sleep(min(max(waited / 20, LOOK_SECONDS), LONGEST_LOOK_SECONDS))
    except TimeoutError:
        if last_error is None:
            raise AssertionError(f"no look ended within {within:g} s") from None
        last_error.add_note(f"did not hold within {within:g} s")
        raise last_error from None


@dataclass(frozen=True, slots=True)
class WorldNamespace:
    """One namespace of a world, for one test."""

    api: Api
    name: str

    async def create(self, manifest: Json) -> Json:
        meta = manifest["metadata"] | {"namespace": self.name}
        path = (await self.api.path_of(manifest | {"metadata": meta})).rpartition("/")[0]
        return await self.api.create(path, manifest | {"metadata": meta})

    async def read_pod(self, name: str) -> Json:
        return await self.api.get(PODS.path(self.name, name))

    async def list_pods(self, selector: str = "") -> list[Json]:
        path = PODS.path(self.name)
        pods: list[Json] = (await self.api.get(path, labelSelector=selector))["items"]
        return pods

    async def wait_for_pod(
        self, name: str, check: Callable[[Json], None], within: float = PATIENCE_SECONDS
    ) -> Json:
        """Wait for a pod of which all asserts of `check` hold."""

        async def pod_passes() -> Json:
            pod = await self.read_pod(name)
            check(pod)
            return pod

        return await eventually(pod_passes, within=within)

    async def wait_until_ready(self, name: str, within: float = PATIENCE_SECONDS) -> Json:
        def pod_is_ready(pod: Json) -> None:
            assert is_ready(pod), pod["status"]

        return await self.wait_for_pod(name, pod_is_ready, within)

    async def wait_for_restart(self, name: str, count: int = 1) -> Json:
        """Wait until the main container was restarted so often, and the pod is ready again."""

        def pod_was_restarted(pod: Json) -> None:
            assert container_status(pod).get("restartCount") == count, pod["status"]
            assert is_ready(pod), pod["status"]

        return await self.wait_for_pod(name, pod_was_restarted)

    async def wait_until_over(self, name: str, within: float = PATIENCE_SECONDS) -> Json:
        def pod_is_over(pod: Json) -> None:
            assert pod["status"].get("phase") in ("Succeeded", "Failed"), pod["status"]

        return await self.wait_for_pod(name, pod_is_over, within)

    async def wait_until_terminating(self, name: str) -> None:
        def pod_is_terminating(pod: Json) -> None:
            assert "deletionTimestamp" in pod["metadata"]

        await self.wait_for_pod(name, pod_is_terminating)

    async def wait_for_ready_pods(self, count: int, selector: str = "app=web") -> list[Json]:
        """Wait until there are exactly so many pods, and all of them are ready."""

        async def all_are_ready() -> list[Json]:
            pods = await self.list_pods(selector)
            readiness = {pod["metadata"]["name"]: is_ready(pod) for pod in pods}
            assert list(readiness.values()) == [True] * count, readiness
            return pods

        return await eventually(all_are_ready)

    async def wait_until_empty(self) -> None:
        async def no_pod_remains() -> None:
            assert [pod["metadata"]["name"] for pod in await self.list_pods()] == []

        await eventually(no_pod_remains)

    async def start_pod(self, manifest: Json, within: float = PATIENCE_SECONDS) -> Json:
        """Create a pod, and wait until it is ready."""
        await self.create(manifest)
        return await self.wait_until_ready(manifest["metadata"]["name"], within)

    async def run_pod(self, manifest: Json, within: float = PATIENCE_SECONDS) -> Json:
        """Create a pod, and wait for its end."""
        await self.create(manifest)
        return await self.wait_until_over(manifest["metadata"]["name"], within)


@asynccontextmanager
async def fresh_namespace(api: Api) -> AsyncIterator[WorldNamespace]:
    """A fresh namespace whose pods are gone afterwards."""
    name = f"test-{next(_numbers)}"
    await api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    await eventually(partial(api.get, SERVICE_ACCOUNTS.path(name, "default")))
    await eventually(partial(api.get, CONFIG_MAPS.path(name, "kube-root-ca.crt")))
    namespace = WorldNamespace(api, name)
    try:
        yield namespace
    finally:
        await api.delete(f"/api/v1/namespaces/{name}")
        for pod in await namespace.list_pods():
            path = PODS.path(name, pod["metadata"]["name"])
            try:
                await api.delete(path, {"gracePeriodSeconds": 0})
            except ApiError as error:
                if error.status != 404:  # it has ended by itself
                    raise


def a_container(script: str = "", **fields: object) -> Json:
    """Runs a shell script; without one, the small web server."""
    if script:
        return {"name": "main", "image": "world/sh:1", "args": [script], **fields}
    port = {"name": "http", "containerPort": 8000}
    return {"name": "main", "image": "world/http:1", "ports": [port], **fields}


def a_pod(
    name: str, *containers: Json, labels: dict[str, str] | None = None, **spec: object
) -> Json:
    plain = {"terminationGracePeriodSeconds": 5, "automountServiceAccountToken": False}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name} | (labels or {})},
        "spec": plain | {"containers": list(containers) or [a_container()]} | spec,
    }


def a_pool_pod(name: str, pool: str, **limits: int) -> Json:
    """A pod that needs a node with the label `pool`, and tolerates what keeps others off it."""
    tolerations = [
        {"key": "nvidia.com/gpu", "operator": "Exists"},
        {"key": "kubernetes.azure.com/scalesetpriority", "operator": "Exists"},
    ]
    container = a_container(resources={"limits": limits} if limits else {})
    return a_pod(name, container, nodeSelector={"pool": pool}, tolerations=tolerations)


def a_workload(kind: str, name: str, *containers: Json, **spec: object) -> Json:
    """A Deployment, DaemonSet or Job; `template` in the spec adds to that of its pods."""
    extra = spec.pop("template", {})
    pod = a_pod(name, *containers)
    template = {"metadata": pod["metadata"], "spec": pod["spec"] | (extra or {})}
    fields: Json = {"template": template} | spec
    if kind != "Job":
        fields["selector"] = {"matchLabels": {"app": name}}
    version = "batch/v1" if kind == "Job" else "apps/v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": fields}


def a_service(name: str, **spec: object) -> Json:
    plain = {
        "selector": {"app": name},
        "ports": [{"name": "http", "port": 8080, "targetPort": "http"}],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": plain | spec}


async def pool_nodes(api: Api, pool: str) -> list[Json]:
    """The nodes with the label `pool`."""
    nodes: list[Json] = (await api.get(NODES.path(), labelSelector=f"pool={pool}"))["items"]
    return nodes


async def wait_until_pool_is_empty(api: Api, pool: str, within: float = PATIENCE_SECONDS) -> None:
    async def no_node_remains() -> None:
        assert [node["metadata"]["name"] for node in await pool_nodes(api, pool)] == []

    await eventually(no_node_remains, within=within)


async def event_messages(
    api: Api, reason: str, about: str, namespace: str = "default"
) -> list[str]:
    """The messages of events about objects whose names begin so; nodes' are in `default`."""
    path = EVENTS.path(namespace)
    events: list[Json] = (await api.get(path, fieldSelector=f"reason={reason}"))["items"]
    return [
        event["message"] for event in events if event["involvedObject"]["name"].startswith(about)
    ]


async def wait_for_event(
    api: Api, reason: str, about: str, text: str, namespace: str = "default"
) -> None:
    """Wait for an event with this text in its message."""

    async def event_is_written() -> None:
        messages = await event_messages(api, reason, about, namespace)
        assert any(text in message for message in messages), messages

    await eventually(event_is_written)


def is_ready(pod: Json) -> bool:
    return condition(pod, "Ready") == "True"


def condition(body: Json, kind: str) -> str:
    """The status of a condition; empty when there is none."""
    conditions = body.get("status", {}).get("conditions", [])
    return next((entry["status"] for entry in conditions if entry["type"] == kind), "")


def container_status(pod: Json, name: str = "main") -> Json:
    """The status of one container, init containers too; empty when there is none yet."""
    status = pod.get("status", {})
    statuses = status.get("containerStatuses", []) + status.get("initContainerStatuses", [])
    return next((container for container in statuses if container["name"] == name), {})


def termination_message(pod: Json) -> str:
    return str(container_status(pod)["state"]["terminated"].get("message", ""))


async def http_get(pod: Json, path: str) -> aiohttp.ClientResponse:
    """Ask the small web server in a pod, which may listen later than the pod is ready."""

    async def answer() -> aiohttp.ClientResponse:
        async with aiohttp.ClientSession() as session:
            url = f"http://{pod['status']['podIP']}:8000{path}"
            async with session.get(url) as response:
                await response.read()
                return response

    return await eventually(answer)
