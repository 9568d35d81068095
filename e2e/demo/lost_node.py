"""A spot node is lost under streams, which go on at another one."""

import asyncio
import json
from collections import Counter

from demo.cluster import InstalledCluster, Json, Ref, StepError, until
from demo.protected_streams import ProtectedStream, percentile_95, protected_streams, run_streams

_STREAMS, _TOKENS, _REPLICAS = 20, 100, 2
# Of a step, so that streams last as long as those of large models.
_STEP_SECONDS = 0.1
_PATIENCE = 120.0

SPOT_SPEC: Json = {
    "class": "Batch",
    "replicas": _REPLICAS,
    "placement": {"tiers": ["Spot"]},
    "podTemplate": {
        "env": [{"name": "TESSERA_SIM_SPEED", "value": json.dumps({"weights": _STEP_SECONDS})}]
    },
}


async def lose_node(cluster: InstalledCluster, ref: Ref, base: str, key: str) -> None:
    """Let the node of a replica of a service die under streams, of which none may break."""
    node_by_pod = await _wait_for_nodes(cluster, ref)
    streams = protected_streams(ref.name, _STREAMS, _TOKENS)
    tasks = asyncio.create_task(run_streams(base, key, streams))
    try:
        await _wait_for_tokens(streams)
        pod, count = Counter(stream.replica for stream in streams).most_common()[0]
        node = node_by_pod[pod]
        cluster.world.end_node(node)
        await tasks
    finally:
        tasks.cancel()
    cluster.world.wake(node)
    _show(cluster, streams, node, count)


async def _wait_for_nodes(cluster: InstalledCluster, ref: Ref) -> dict[str, str]:
    """Wait for the replicas; return their nodes, by pod."""

    async def read() -> dict[str, str]:
        pods = await cluster.api.get(
            f"/api/v1/namespaces/{ref.namespace}/pods",
            labelSelector=f"tessera.dev/service={ref.name}",
        )
        return {
            pod["metadata"]["name"]: pod["spec"].get("nodeName", "")
            for pod in pods["items"]
            if pod["metadata"]["name"].startswith(f"{ref.name}-")
        }

    await until(
        lambda: cluster.service(ref),
        lambda body: body.get("status", {}).get("readyReplicas") == _REPLICAS,
        f"{ref} has {_REPLICAS} ready replicas",
        _PATIENCE,
    )
    node_by_pod = await read()
    if len(set(node_by_pod.values())) != _REPLICAS:
        raise StepError(f"the replicas of {ref} are not on {_REPLICAS} nodes: {node_by_pod}")
    return node_by_pod


async def _wait_for_tokens(streams: list[ProtectedStream]) -> None:
    """Wait until every stream has tokens."""

    async def failures_or_begun() -> tuple[list[str], bool]:
        failures = [stream.failure for stream in streams if stream.failure]
        return failures, all(len(stream.pieces) > _TOKENS / 10 for stream in streams)

    failures, _ = await until(
        failures_or_begun, any, f"{len(streams)} streams have tokens", _PATIENCE
    )
    if failures:
        raise StepError(f"{len(failures)} streams failed, first: {failures[0]}")


def _show(
    cluster: InstalledCluster,
    streams: list[ProtectedStream],
    node: str,
    count: int,
) -> None:
    resumed = [stream for stream in streams if stream.resumed]
    lost = [stream for stream in streams if not stream.is_whole]
    if lost or len(resumed) < count:
        first = f", first: {lost[0].failure}" if lost else ""
        raise StepError(
            f"Node/{node} was lost under {count} streams: {len(resumed)} went on elsewhere, "
            f"{len(lost)} broke{first}"
        )
    gap = percentile_95([stream.longest_gap for stream in resumed])
    cluster.say(
        f"{len(streams)} streams ran at {_REPLICAS} replicas, and Node/{node} was lost with one: "
        f"{len(resumed)} of them went on at the other one, P95 {gap:.2f} s after their last token "
        f"(a step takes {_STEP_SECONDS} s); none was lost, and all have {_TOKENS} tokens"
    )
