"""What users do in a namespace of their own, and how it ends."""

from dataclasses import dataclass
from typing import Any

from tessera.api.meta import GROUP, VERSION
from tessera.resources.api_resources import (
    CHILDREN,
    DEPLOYMENTS,
    INFERENCE_SERVICES,
    TENANT_BUDGETS,
)
from tests.builders import A100, SMALL
from world.api import Api, ApiError, Json
from world.ends import ends
from world.testing import eventually

API_VERSION = f"{GROUP}/{VERSION}"
# Pods of KWOK answer nobody.
_SETTLED = {"ScaledToZero", "CompletionFailed"}
POOL: Json = {
    "apiVersion": API_VERSION,
    "kind": "AcceleratorPool",
    "metadata": {"name": "a100"},
    "spec": {
        "nodeSelector": {"nvidia.com/gpu.product": A100},
        "tier": "Reserved",
        "prices": [{"from": "2026-01-01", "perGPUHour": "2.00"}],
    },
}


@dataclass(frozen=True, slots=True)
class Place:
    """One namespace, with a budget of the same name."""

    api: Api
    name: str

    async def open(self) -> None:
        await self.api.apply_manifest(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name}}
        )
        await self.budget(self.name)

    async def close(self) -> None:
        """Begin to take everything away."""
        await self.api.delete(TENANT_BUDGETS.path(None, self.name))
        await self.api.delete(f"/api/v1/namespaces/{self.name}")

    async def budget(self, *namespaces: str, name: str | None = None) -> None:
        spec = {
            "owner": "anna@example.org",
            "tenant": {"namespaces": list(namespaces)},
            "limits": [{"window": "Month", "amount": "100000"}],
        }
        meta = {"name": name or self.name}
        body = {"apiVersion": API_VERSION, "kind": "TenantBudget", "metadata": meta, "spec": spec}
        await self.api.apply_manifest(body, "kubectl")

    async def serve(self, name: str, **spec: Any) -> None:
        body = {
            "apiVersion": API_VERSION,
            "kind": "InferenceService",
            "metadata": {"name": name, "namespace": self.name},
            "spec": {"model": {"uri": SMALL}, **spec},
        }
        await self.api.apply(INFERENCE_SERVICES.path(self.name, name), body, "kubectl")

    async def unserve(self, name: str) -> None:
        await self.api.delete(INFERENCE_SERVICES.path(self.name, name))

    async def deployed(self) -> dict[str, int]:
        """Replicas that Deployments want, by service."""
        listed = (await self.api.get(DEPLOYMENTS.path(self.name)))["items"]
        return {
            one["metadata"]["labels"][f"{GROUP}/service"]: one["spec"]["replicas"] for one in listed
        }

    async def until_deployed(self, within: float = 30, **replicas: int) -> None:
        await eventually(self.deployed, lambda found: found == replicas, within=within)

    async def objects(self) -> list[Json]:
        """Everything of ours in it, as the API server has it."""
        listed = [await self.api.get(TENANT_BUDGETS.path(None, self.name))]
        for kind in (INFERENCE_SERVICES, *(kind for kind in CHILDREN if kind.watched)):
            found = await self.api.get(kind.path(self.name), labelSelector=kind.selector or "")
            listed += [one | {"kind": kind.kind} for one in found["items"]]
        return listed

    async def end(self, within: float = 30) -> dict[str, Any]:
        """All that is there once every edit was seen, every replica is up, and nothing moves."""
        last: dict[str, Any] = {}

        async def read() -> list[str]:
            nonlocal last
            found = await self.objects()
            now = ends(found, {self.name: "<place>"})
            moved = [key for key in now | last if now.get(key) != last.get(key)]
            last = now
            services = sum(one["kind"] == INFERENCE_SERVICES.kind for one in found)
            return moved + [one["metadata"]["name"] for one in found if not _settled(one, services)]

        await eventually(read, lambda waiting: not waiting, within=within)
        return last


def _settled(one: Json, services: int) -> bool:
    """It tells of all that is there; `services` are those of its namespace."""
    generation, status = one["metadata"].get("generation"), one.get("status", {})
    match one["kind"]:
        case "InferenceService":
            reasons = {item["type"]: item["reason"] for item in status.get("conditions", ())}
            return bool(
                status.get("observedGeneration") == generation
                and reasons.get("Progressing") == "RolloutComplete"
                and reasons.get("Ready") in _SETTLED
                and status.get("readyReplicas") == one["spec"].get("replicas", 0)
            )
        case "Deployment":
            return bool(
                status.get("observedGeneration") == generation
                and status.get("availableReplicas", 0) == one["spec"]["replicas"]
            )
        case "TenantBudget":
            seen = status.get("services") == services
            return bool(seen and status.get("observedGeneration") == generation)
        case _:
            return True


async def exists(api: Api, path: str) -> bool:
    try:
        await api.get(path)
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return True
