"""Reads one BatchInference, for gateways that get messages about its rows."""

from http import HTTPStatus

from tessera.adapters.kube.client import KubeCluster, raise_for_status
from tessera.adapters.kube.object_parsing import parse_own
from tessera.domain.kinds.kinds import BATCH_INFERENCES
from tessera.domain.observed.batches import Batch


async def read_batch(cluster: KubeCluster, namespace: str, name: str) -> Batch | None:
    """Return a batch; None without any, and ClusterError while that is not known."""
    status, body = await cluster.request("GET", BATCH_INFERENCES.path(namespace, name))
    if status == HTTPStatus.NOT_FOUND:
        return None
    raise_for_status(status, body, f"get BatchInference {namespace}/{name}")
    return parse_own(BATCH_INFERENCES, body)
