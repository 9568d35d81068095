"""The current attempt of a batch, read from the status of its BatchInference."""

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

from tessera.adapters.kube.client import KubeCluster
from tessera.adapters.kube.connection import connect
from tessera.api.meta import API_VERSION
from tessera.ports import ClusterError, NotFoundError

log = logging.getLogger(__name__)

_PLURAL = "batchinferences"
# How long a token that was valid may be refused: a rotation is over sooner.
_REFUSED_TOKEN_SECONDS = 30


class KubeFence:
    """`Fence` over the API server."""

    def __init__(
        self,
        cluster: KubeCluster,
        namespace: str,
        name: str,
        uid: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._path = f"/apis/{API_VERSION}/namespaces/{namespace}/{_PLURAL}/{name}"
        self._description = f"BatchInference {namespace}/{name}"
        self._uid = uid
        self._monotonic = monotonic
        self._authenticated = False
        self._refused_at: float | None = None
        """When the API server began to refuse a token that it had accepted."""

    async def current(self) -> int | None:
        """Return the attempt in the status; None without a response.

        Raises NotFoundError if the object does not exist or is being deleted. A ServiceAccount
        goes with the last batch of its namespace, so a token that stays refused says the same.
        """
        try:
            status, body = await self._cluster.request("GET", self._path)
        except ClusterError as error:
            log.warning("%s", error)
            return None
        if status == HTTPStatus.UNAUTHORIZED and self._authenticated:
            now = self._monotonic()
            self._refused_at = now if self._refused_at is None else self._refused_at
            if now - self._refused_at >= _REFUSED_TOKEN_SECONDS:
                message = f"{self._description}: the ServiceAccount of this pod was deleted"
                raise NotFoundError(f"{message} (401 for {_REFUSED_TOKEN_SECONDS} s)")
        else:
            self._refused_at = None
        if status == HTTPStatus.NOT_FOUND:
            raise NotFoundError(f"{self._description} not found")
        if status != HTTPStatus.OK:
            log.warning("get %s: %s %.300s", self._description, status, body)
            return None
        if body["metadata"]["uid"] != self._uid:
            raise NotFoundError(f"{self._description} was replaced: its UID differs")
        self._authenticated = True
        if "deletionTimestamp" in body["metadata"]:
            raise NotFoundError(f"{self._description} is being deleted")
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
