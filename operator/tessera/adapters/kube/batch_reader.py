"""Reads one BatchInference, for gateways that get messages about its rows."""

from http import HTTPStatus

from tessera.adapters.kube.client import KubeCluster, raise_for_status
from tessera.adapters.kube.object_parsing import parse_batch
from tessera.domain.observed.batches import Batch
from tessera.resources.api_resources import BATCH_INFERENCES


async def read_batch(cluster: KubeCluster, namespace: str, name: str) -> Batch | None:
    """Return a batch; None without any, and ClusterError while that is not known."""
    status, body = await cluster.request("GET", BATCH_INFERENCES.path(namespace, name))
    if status == HTTPStatus.NOT_FOUND:
        return None
    raise_for_status(status, body, f"get BatchInference {namespace}/{name}")
    return parse_batch(body)
