"""A namespace for one scenario, and what users do in it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp

from demo.cluster import InstalledCluster, Json, Ref, condition
from tessera.api.api_resource import ApiResource
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.resources.api_resources import CHILDREN, PODS
from world.testing import PATIENCE_SECONDS, eventually

SMALL = "hf://meta-llama/Llama-3.2-1B-Instruct"
_SERVICES = INFERENCE_SERVICES


@dataclass(frozen=True, slots=True)
class ScenarioNamespace:
    """The namespace of one scenario: users apply services in it and read their state."""

    cluster: InstalledCluster
    name: str

    def ref(self, name: str) -> Ref:
        return Ref(self.name, name)

    async def apply_service(self, name: str = "chat", **spec: Any) -> Ref:
        """Apply an InferenceService, as a user would."""
        body = {
            "apiVersion": _SERVICES.api_version,
            "kind": _SERVICES.kind,
            "metadata": {"name": name, "namespace": self.name},
            "spec": {"model": {"uri": SMALL}, **spec},
        }
        await self.cluster.api.apply(_SERVICES.path(self.name, name), body, "kubectl")
        return self.ref(name)

    async def delete_service(self, name: str = "chat") -> None:
        await self.cluster.api.delete(_SERVICES.path(self.name, name))

    async def service_status(self, name: str = "chat") -> Json:
        service = await self.cluster.api.get(_SERVICES.path(self.name, name))
        status: Json = service.get("status", {})
        return status

    async def check_condition(
        self, name: str, kind: str, reason: str, words: tuple[str, ...] = ()
    ) -> Json:
        """Assert a condition's reason, and words of its message; return the condition."""
        entry = condition(await self.cluster.api.get(_SERVICES.path(self.name, name)), kind)
        assert entry.get("reason") == reason, entry
        for word in words:
            assert word in entry["message"]
        return entry

    async def wait_for_condition(
        self,
        name: str,
        kind: str,
        reason: str,
        within: float = PATIENCE_SECONDS,
        *,
        words: tuple[str, ...] = (),
    ) -> Json:
        """Wait for a condition's reason, and for words of its message; return the condition."""
        check = partial(self.check_condition, name, kind, reason, words)
        return await eventually(check, within=within)

    async def wait_until_ready(self, name: str = "chat", within: float = PATIENCE_SECONDS) -> None:
        await self.wait_for_condition(name, "Ready", "CompletionSucceeded", within)

    async def query_prometheus(self, query: str) -> list[Json]:
        """Return what Prometheus answers now."""
        url = f"{self.cluster.world.prometheus_url}/api/v1/query"
        async with (
            aiohttp.ClientSession(raise_for_status=True) as http,
            http.get(url, params={"query": query}) as response,
        ):
            samples: list[Json] = (await response.json())["data"]["result"]
        return samples

    async def wait_for_samples(self, query: str) -> list[Json]:
        """Wait until Prometheus has samples of a query; return them."""

        async def are_present() -> list[Json]:
            samples = await self.query_prometheus(query)
            assert samples != [], query
            return samples

        return await eventually(are_present)

    async def list_objects(self, kind: ApiResource) -> list[Json]:
        object_list = await self.cluster.api.get(kind.path(self.name))
        objects: list[Json] = object_list["items"]
        return objects

    async def list_children(self) -> dict[str, Json]:
        """Return every object that the operator applied here, by kind and name."""
        children = {}
        for kind in CHILDREN:
            if kind.watched or await self.cluster.api.exists(kind.path(self.name)):
                for body in await self.list_objects(kind):
                    if body["metadata"].get("labels", {}).get(MANAGED) == "tessera":
                        children[f"{kind.kind}/{body['metadata']['name']}"] = body
        return children

    async def delete(self) -> None:
        """Delete the namespace, and wait until nothing in it uses hardware any more.

        Services and pods are deleted explicitly: the cluster empties a namespace slowly.
        """
        await self.cluster.api.delete(f"/api/v1/namespaces/{self.name}")
        await self.cluster.api.delete(_SERVICES.path(self.name))
        await self.cluster.api.delete(PODS.path(self.name), {"gracePeriodSeconds": 0})

        async def is_empty() -> None:
            objects = [*await self.list_objects(_SERVICES), *await self.list_objects(PODS)]
            assert [body["metadata"]["name"] for body in objects] == []

        await eventually(is_empty)


MANAGED = "app.kubernetes.io/managed-by"


@asynccontextmanager
async def a_budget(
    namespace: ScenarioNamespace, amount: str, time_zone: str = "UTC"
) -> AsyncIterator[None]:
    """Give the namespace a month's budget of its own name, as long as the block runs."""
    path = TENANT_BUDGETS.path(None, namespace.name)
    body = {
        "apiVersion": TENANT_BUDGETS.api_version,
        "kind": TENANT_BUDGETS.kind,
        "metadata": {"name": namespace.name},
        "spec": {
            "owner": "team@example.org",
            "tenant": {"namespaces": [namespace.name]},
            "limits": [{"window": "Month", "amount": amount}],
            "timeZone": time_zone,
        },
    }
    await namespace.cluster.api.apply(path, body, "kubectl")
    try:
        yield
    finally:
        await namespace.cluster.api.delete(path)
