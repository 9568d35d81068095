"""Access to the NodeLayout of the agent's own node."""

from http import HTTPStatus
from typing import Any

from tessera.adapters.kube import object_parsing as wire
from tessera.adapters.kube.client import KubeCluster, raise_for_status, read_object
from tessera.api.node_layout import NodeLayoutStatus
from tessera.domain.kinds.kinds import NODE_LAYOUTS
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.domain.observed.snapshot import Ref
from tessera.ports import NotFoundError
from tessera.resources.api_resources import NODES
from tessera.resources.manifest import Owner, owner_reference, partial_manifest, wire_format

_FIELD_MANAGER = "tessera-node"
_MERGE = "application/merge-patch+json"


class KubeOwnLayout:
    """`OwnLayout` over the API server."""

    def __init__(self, cluster: KubeCluster, node: str) -> None:
        self._cluster = cluster
        self._node = node
        self._path = NODE_LAYOUTS.path(None, node)
        self._version = 0
        self._generation = 0

    async def read(self) -> ObservedNodeLayout:
        body = await read_object(self._cluster, self._path, f"get NodeLayout/{self._node}")
        if body is None:
            status, body = await self._create()
            raise_for_status(status, body, f"get NodeLayout/{self._node}")
        self._version = int(body["metadata"]["resourceVersion"])
        layout = wire.parse_layout(body)
        self._generation = layout.generation
        return layout

    async def write(self, status: NodeLayoutStatus) -> None:
        path, patch = f"{self._path}/status", {"status": wire_format(status)}
        code, body = await self._cluster.request(
            "PATCH", path, {"fieldManager": _FIELD_MANAGER}, patch, _MERGE
        )
        if code == HTTPStatus.NOT_FOUND:
            raise NotFoundError(f"NodeLayout/{self._node} does not exist")
        raise_for_status(code, body, f"write the status of NodeLayout/{self._node}")

    async def wait_for_change(self) -> None:
        async for change in self._cluster.watch(NODE_LAYOUTS, self._version, name=self._node):
            self._version = change.version
            layout = change.cluster_object.plan_input if change.cluster_object else None
            spec_changed = (
                isinstance(layout, ObservedNodeLayout) and layout.generation != self._generation
            )
            if change.deleted or spec_changed:
                return

    async def _create(self) -> tuple[int, Any]:
        """Create the NodeLayout with the node as its owner, and return the response."""
        status, node = await self._cluster.request("GET", NODES.path(None, self._node))
        raise_for_status(status, node, f"get Node/{self._node}")
        owner = Owner(NODES, Ref("", self._node), node["metadata"]["uid"])
        reference = wire_format(owner_reference(owner, controller=False))
        metadata = {"name": self._node, "ownerReferences": [reference]}
        body = partial_manifest(NODE_LAYOUTS, metadata).body
        query = {"fieldManager": _FIELD_MANAGER}
        status, created = await self._cluster.request("POST", NODE_LAYOUTS.path(None), query, body)
        # Another agent of the node created the same object first.
        if status == HTTPStatus.CONFLICT:
            return await self._cluster.request("GET", self._path)
        return status, created
