"""The current attempt of a batch, read from the status of its BatchInference."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from tessera.adapters.kube import KubeCluster, connect
from tessera.api.meta import API_VERSION
from tessera.ports import ClusterError, NotFoundError

log = logging.getLogger(__name__)

_PLURAL = "batchinferences"


class KubeFence:
    """`Fence` over the API server."""

    def __init__(self, cluster: KubeCluster, namespace: str, name: str, uid: str) -> None:
        self._cluster = cluster
        self._path = f"/apis/{API_VERSION}/namespaces/{namespace}/{_PLURAL}/{name}"
        self._description = f"BatchInference {namespace}/{name}"
        self._uid = uid

    async def current(self) -> int | None:
        """Return the attempt in the status; None without a response.

        Raises NotFoundError if the object does not exist.
        """
        try:
            status, body = await self._cluster.request("GET", self._path)
        except ClusterError as error:
            log.warning("%s", error)
            return None
        if status == HTTPStatus.NOT_FOUND:
            raise NotFoundError(f"{self._description} not found")
        if status != HTTPStatus.OK:
            log.warning("get %s: %s %.300s", self._description, status, body)
            return None
        if body["metadata"]["uid"] != self._uid:
            raise NotFoundError(f"{self._description} was replaced: its UID differs")
        number = body.get("status", {}).get("attempt", {}).get("number")
        return number if isinstance(number, int) else None


@asynccontextmanager
async def kube_fence(
    kubeconfig: str | None, namespace: str, name: str, uid: str
) -> AsyncIterator[KubeFence]:
    """Yield the fence of one object for the duration of the block."""
    cluster = KubeCluster(await connect(kubeconfig))
    try:
        yield KubeFence(cluster, namespace, name, uid)
    finally:
        await cluster.close()
