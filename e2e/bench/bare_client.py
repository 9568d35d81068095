"""The same child objects by a client that decides nothing: what the API server alone takes."""

import json
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from bench.fleet import REPLICAS, Size, at_steady_rate, each, pool, service
from tessera.adapters.kube import object_parsing as wire
from tessera.domain.config import Config
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES
from tessera.domain.names import FIELD_MANAGER
from tessera.domain.observed.snapshot import Ref, Snapshot
from tessera.domain.planning.plan import PlanMemory, plan
from tessera.resources.api_resources import DEPLOYMENTS
from tessera.resources.children import namespace_owners, service_manifests
from tessera.resources.manifest import ObjectManifest
from world.api import Api, Json

_UID = "00000000-0000-0000-0000-000000000000"
_VISITORS = ("tessera-system", "monitoring")
# What belongs to each service, by namespace/name; what a namespace shares, by its name.
Children = Mapping[str, tuple[ObjectManifest, ...]]


def children(size: Size, nodes: Iterable[Json]) -> Children:
    """The manifests that the operator applies for these services on these nodes."""
    named = {"uid": _UID, "generation": 1}
    bodies = [service(*name) for name in size.names]
    services = [
        wire.parse_own(INFERENCE_SERVICES, body | {"metadata": body["metadata"] | named})
        for body in bodies
    ]
    fleet_plan = plan(
        Config(),
        Snapshot(
            at=datetime.now(UTC),  # noqa: TID251 - the benchmark is an entry point
            services=tuple(parsed for parsed in services if parsed is not None),
            pools=(wire.parse_own(ACCELERATOR_POOLS, pool()),),
            nodes=tuple(wire.parse_node(node) for node in nodes),
        ),
        PlanMemory(),
    )
    children_by_service: dict[str, tuple[ObjectManifest, ...]] = {
        str(ref): service_manifests(service_plan)
        for ref, service_plan in fleet_plan.service_plans.items()
    }
    assert all(children_by_service.values()), "a service was not placed"
    shared = {
        owners.namespace: owners.manifests(
            operator_namespace=_VISITORS[0], ingress_namespaces=_VISITORS, monitor_labels=None
        )
        for owners in namespace_owners(fleet_plan.service_plans, {})
    }
    return children_by_service | shared


async def apply_all(api: Api, size: Size, manifests_by_owner: Children) -> float:
    """Seconds from the first service created to the last child applied."""
    texts = {
        key: [_text(manifest) for manifest in manifests]
        for key, manifests in manifests_by_owner.items()
    }
    uids: dict[str, str] = {}
    begun = time.monotonic()

    async def create_service(namespace: str, name: str) -> None:
        created = await api.create(INFERENCE_SERVICES.path(namespace), service(namespace, name))
        shared = () if namespace in uids else texts[namespace]
        uids[namespace] = uid = created["metadata"]["uid"]
        for path, text in (*shared, *texts[str(Ref(namespace, name))]):
            await api.apply(path, _owned(json.loads(text.replace(_UID, uid))), FIELD_MANAGER)

    await each(size.names, create_service)
    return time.monotonic() - begun


async def edit_all(api: Api, size: Size, edits: int, manifests_by_owner: Children) -> list[float]:
    """Add a replica to services at the rate of the bench; seconds until the Deployment has it."""
    deployments = {
        owner: manifest.kind.path(manifest.namespace, manifest.name)
        for owner, manifests in manifests_by_owner.items()
        for manifest in manifests
        if manifest.kind is DEPLOYMENTS
    }

    async def edit(index: int) -> float:
        namespace, name = size.names[index]
        patch = {"spec": {"replicas": REPLICAS + 1}}
        begun = time.monotonic()
        await api.patch(INFERENCE_SERVICES.path(namespace, name), patch)
        await api.patch(deployments[str(Ref(namespace, name))], patch)
        return time.monotonic() - begun

    return await at_steady_rate(range(edits), edit)


def _text(manifest: ObjectManifest) -> tuple[str, str]:
    return manifest.kind.path(manifest.namespace, manifest.name), json.dumps(manifest.body)


def _owned(body: dict[str, Any]) -> dict[str, Any]:
    """With one owner, where the services of a namespace share: the others do not exist yet."""
    body["metadata"]["ownerReferences"] = body["metadata"]["ownerReferences"][:1]
    return body
