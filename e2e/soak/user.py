"""What users do: it is written down, so that it can be done again without faults."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp

from demo.cluster import Json
from tessera.api.meta import GROUP, VERSION
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES, TENANT_BUDGETS
from world.api import Api, ApiError

# The namespace that stays.
HOME = "soak"
SMALL = "hf://meta-llama/Llama-3.2-1B-Instruct"
PATIENCE_SECONDS = 60
_RETRY_SECONDS = 0.3


@dataclass(slots=True)
class User:
    """Retries what the API server refuses, as people at a terminal do."""

    api: Api
    done: list[tuple[str, str, Json]] = field(default_factory=list)

    async def replay(self, actions: list[tuple[str, str, Json]]) -> None:
        """Do all of it again, in its order."""
        for verb, path, body in actions:
            await self._do(verb, path, body)

    async def namespace(self, name: str) -> None:
        await self._do("apply", f"/api/v1/namespaces/{name}", _object("v1", "Namespace", name))

    async def end_namespace(self, name: str) -> None:
        await self._do("delete", f"/api/v1/namespaces/{name}", {})

    async def serve(self, name: str, namespace: str = HOME, **spec: object) -> None:
        body = _object(f"{GROUP}/{VERSION}", INFERENCE_SERVICES.kind, name, namespace)
        body["spec"] = {"model": {"uri": SMALL}, **spec}
        await self._do("apply", INFERENCE_SERVICES.path(namespace, name), body)

    async def scale(self, name: str, replicas: int) -> None:
        path = f"{INFERENCE_SERVICES.path(HOME, name)}/scale"
        await self._do("patch", path, {"spec": {"replicas": replicas}})

    async def pool(self, per_gpu_hour: str) -> None:
        body = _object(f"{GROUP}/{VERSION}", ACCELERATOR_POOLS.kind, "a100-reserved")
        body["spec"] = {
            "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
            "tier": "Reserved",
            "prices": [{"from": "2026-01-01", "perGPUHour": per_gpu_hour}],
        }
        await self._do("apply", ACCELERATOR_POOLS.path(None, "a100-reserved"), body)

    async def budget(self) -> None:
        body = _object(f"{GROUP}/{VERSION}", TENANT_BUDGETS.kind, HOME)
        body["spec"] = {
            "owner": "anna@soak.example",
            "tenant": {"namespaces": [HOME]},
            "limits": [{"window": "Month", "amount": "100000"}],
        }
        await self._do("apply", TENANT_BUDGETS.path(None, HOME), body)

    async def _do(self, verb: str, path: str, body: Json) -> None:
        self.done.append((verb, path, body))
        match verb:
            case "apply":
                await retry_until_accepted(lambda: self._apply(path, body))
            case "patch":
                await retry_until_accepted(lambda: self.api.patch(path, body))
            case _:
                await retry_until_accepted(lambda: delete(self.api, path))

    async def _apply(self, path: str, body: Json) -> None:
        """Apply an object; a terminating namespace accepts it and deletes it nevertheless."""
        applied = await self.api.apply(path, body, "kubectl")
        if applied["metadata"].get("deletionTimestamp"):
            raise ApiError(409, "Terminating", f"{path} is still being deleted")


async def retry_until_accepted(act: Callable[[], Awaitable[object]]) -> None:
    """Retry until it is accepted: a namespace may be terminating, the server may be down."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                await act()
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                if isinstance(error, ApiError) and error.status == 422:
                    raise
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return


async def delete(api: Api, path: str) -> None:
    """Delete an object; one that does not exist is no error."""
    try:
        await api.delete(path)
    except ApiError as error:
        if error.status != 404:
            raise


def _object(version: str, kind: str, name: str, namespace: str | None = None) -> Json:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": version, "kind": kind, "metadata": metadata}
