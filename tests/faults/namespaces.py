"""Actions of users in their own namespace, and its settled end state."""

from dataclasses import dataclass
from typing import Any

from tessera.api.meta import GROUP, VERSION
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.resources.api_resources import CHILDREN, DEPLOYMENTS
from tests.builders import A100, SMALL
from world.api import Api, ApiError, Json
from world.object_comparison import comparable_objects
from world.testing import eventually

API_VERSION = f"{GROUP}/{VERSION}"
# Pods of KWOK answer no request.
_SETTLED_REASONS = {"ScaledToZero", "CompletionFailed"}
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
class TenantNamespace:
    """One namespace, with a budget of the same name."""

    api: Api
    name: str

    async def create(self) -> None:
        await self.api.apply_manifest(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name}}
        )
        await self.apply_budget(self.name)

    async def delete(self) -> None:
        """Begin to delete everything."""
        await self.api.delete(TENANT_BUDGETS.path(None, self.name))
        await self.api.delete(f"/api/v1/namespaces/{self.name}")

    async def wait_until_gone(self, within: float = 90) -> None:
        async def is_gone() -> None:
            assert not await exists(self.api, f"/api/v1/namespaces/{self.name}")

        await eventually(is_gone, within=within)

    async def apply_budget(self, *namespaces: str, name: str | None = None) -> None:
        spec = {
            "owner": "anna@example.org",
            "tenant": {"namespaces": list(namespaces)},
            "limits": [{"window": "Month", "amount": "100000"}],
        }
        meta = {"name": name or self.name}
        body = {"apiVersion": API_VERSION, "kind": "TenantBudget", "metadata": meta, "spec": spec}
        await self.api.apply_manifest(body, "kubectl")

    async def apply_service(self, name: str, **spec: Any) -> None:
        body = {
            "apiVersion": API_VERSION,
            "kind": "InferenceService",
            "metadata": {"name": name, "namespace": self.name},
            "spec": {"model": {"uri": SMALL}, **spec},
        }
        await self.api.apply(INFERENCE_SERVICES.path(self.name, name), body, "kubectl")

    async def delete_service(self, name: str) -> None:
        await self.api.delete(INFERENCE_SERVICES.path(self.name, name))

    async def desired_replicas(self) -> dict[str, int]:
        """Return the desired replicas of Deployments, by service."""
        deployments = (await self.api.get(DEPLOYMENTS.path(self.name)))["items"]
        return {
            deployment["metadata"]["labels"][f"{GROUP}/service"]: deployment["spec"]["replicas"]
            for deployment in deployments
        }

    async def wait_for_replicas(self, within: float = 90, **replicas: int) -> None:
        async def replicas_are_desired() -> None:
            assert await self.desired_replicas() == replicas

        await eventually(replicas_are_desired, within=within)

    async def list_objects(self) -> list[Json]:
        """Return all objects of Tessera in it, as the API server has them."""
        objects = [await self.api.get(TENANT_BUDGETS.path(None, self.name))]
        for kind in (INFERENCE_SERVICES, *(kind for kind in CHILDREN if kind.watched)):
            response = await self.api.get(kind.path(self.name), labelSelector=kind.selector or "")
            objects += [body | {"kind": kind.kind} for body in response["items"]]
        return objects

    async def wait_until_settled(self, within: float = 90) -> dict[str, Any]:
        """Return all objects once all edits are observed, replicas are up and nothing changes."""
        last: dict[str, Any] = {}

        async def all_are_settled() -> dict[str, Any]:
            nonlocal last
            objects = await self.list_objects()
            current = comparable_objects(objects, {self.name: "<place>"})
            moved = [key for key in current | last if current.get(key) != last.get(key)]
            last = current
            services = sum(body["kind"] == INFERENCE_SERVICES.kind for body in objects)
            unsettled = [body for body in objects if not _is_settled(body, services)]
            names = [f"{body['kind']}/{body['metadata']['name']}" for body in unsettled]
            assert (moved, names) == ([], []), [body.get("status") for body in unsettled]
            return current

        return await eventually(all_are_settled, within=within)


def _is_settled(body: Json, services: int) -> bool:
    """Return whether its status is current; `services` counts those of its namespace."""
    generation, status = body["metadata"].get("generation"), body.get("status", {})
    match body["kind"]:
        case "InferenceService":
            reasons = {
                condition["type"]: condition["reason"] for condition in status.get("conditions", ())
            }
            return bool(
                status.get("observedGeneration") == generation
                and reasons.get("Progressing") == "RolloutComplete"
                and reasons.get("Ready") in _SETTLED_REASONS
                and status.get("readyReplicas") == body["spec"].get("replicas", 0)
            )
        case "Deployment":
            return bool(
                status.get("observedGeneration") == generation
                and status.get("availableReplicas", 0) == body["spec"]["replicas"]
            )
        case "TenantBudget":
            seen = status.get("services") == services
            return bool(seen and status.get("observedGeneration") == generation)
        case _:
            return True


async def wait_until_served(api: Api, path: str = "/readyz") -> None:
    async def is_served() -> None:
        assert await api.exists(path), path

    await eventually(is_served, within=90)


async def exists(api: Api, path: str) -> bool:
    try:
        await api.get(path)
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return True
