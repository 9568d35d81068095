"""What scenarios do in a namespace of their own."""

from dataclasses import dataclass
from typing import Any

import httpx

from demo.stage import Json, Ref, Stage, condition
from tessera.resources.api_resources import CHILDREN, INFERENCE_SERVICES, PODS, ApiResource
from world.testing import eventually

SMALL = "hf://meta-llama/Llama-3.2-1B-Instruct"
_SERVICES = INFERENCE_SERVICES


@dataclass(frozen=True, slots=True)
class Place:
    """One namespace."""

    stage: Stage
    namespace: str

    def ref(self, name: str) -> Ref:
        return Ref(self.namespace, name)

    async def serve(self, name: str = "chat", **spec: Any) -> Ref:
        """Apply an InferenceService, as a user would."""
        body = {
            "apiVersion": _SERVICES.api_version,
            "kind": _SERVICES.kind,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"model": {"uri": SMALL}, **spec},
        }
        await self.stage.api.apply(_SERVICES.path(self.namespace, name), body, "kubectl")
        return self.ref(name)

    async def unserve(self, name: str = "chat") -> None:
        await self.stage.api.delete(_SERVICES.path(self.namespace, name))

    async def status(self, name: str = "chat") -> Json:
        found = await self.stage.api.get(_SERVICES.path(self.namespace, name))
        status: Json = found.get("status", {})
        return status

    async def until_condition(self, name: str, kind: str, reason: str, within: float = 30) -> Json:
        """Wait for a condition's reason; the condition."""

        async def told() -> Json:
            return condition(await self.stage.api.get(_SERVICES.path(self.namespace, name)), kind)

        return await eventually(told, lambda one: one.get("reason") == reason, within=within)

    async def until_known(self, name: str, kind: str, within: float = 30) -> Json:
        """Wait until a condition is not Unknown; the condition."""

        async def told() -> Json:
            return condition(await self.stage.api.get(_SERVICES.path(self.namespace, name)), kind)

        return await eventually(
            told, lambda one: one.get("status") in ("True", "False"), within=within
        )

    async def asked(self, query: str) -> list[Json]:
        """What Prometheus answers now."""
        url = f"{self.stage.world.prometheus_url}/api/v1/query"
        async with httpx.AsyncClient() as http:
            answer = await http.get(url, params={"query": query})
        found: list[Json] = answer.json()["data"]["result"]
        return found

    async def until_ready(self, name: str = "chat", within: float = 30) -> None:
        await self.until_condition(name, "Ready", "CompletionSucceeded", within)

    async def all(self, kind: ApiResource) -> list[Json]:
        listed = await self.stage.api.get(kind.path(self.namespace))
        found: list[Json] = listed["items"]
        return found

    async def children(self) -> dict[str, Json]:
        """Every object that the operator applied here, by kind and name."""
        found = {}
        for kind in CHILDREN:
            if kind.watched or await self.stage.api.exists(kind.path(self.namespace)):
                for one in await self.all(kind):
                    if one["metadata"].get("labels", {}).get(MANAGED) == "tessera":
                        found[f"{kind.kind}/{one['metadata']['name']}"] = one
        return found

    async def clear(self) -> None:
        """Delete the namespace, and wait until nothing in it holds hardware any more.

        What lets others wait goes by name: the cluster takes its time with all that is in one.
        """
        await self.stage.api.delete(f"/api/v1/namespaces/{self.namespace}")
        await self.stage.api.delete(_SERVICES.path(self.namespace))
        await self.stage.api.delete(PODS.path(self.namespace), {"gracePeriodSeconds": 0})

        async def left() -> list[str]:
            found = [*await self.all(_SERVICES), *await self.all(PODS)]
            return [one["metadata"]["name"] for one in found]

        await eventually(left, lambda names: not names, within=90)


MANAGED = "app.kubernetes.io/managed-by"
