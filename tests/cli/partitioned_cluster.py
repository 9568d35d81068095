"""A pool of partitioned A100s, in the objects of an in-memory API server."""

from collections.abc import Mapping, Sequence
from typing import Any

from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, NODE_LAYOUTS
from tessera.resources.api_resources import NODES, PODS
from tests.cli.memory_api import MemoryApi, a_pod_body
from tests.memory_cluster import MemoryCluster

Json = dict[str, Any]
PRODUCT = "NVIDIA-A100-SXM4-80GB"
AT = "2026-11-20T11:59:20Z"


def a_partitioned_cluster(
    mig: Json | None, status: Json | None = None, reason: str = "AsPlanned", price: str = "2"
) -> MemoryApi:
    """`a100-0` has an agent: 7x 1g.10gb on GPU 0, 3g.40gb@4 on GPU 1; `a100-1` has none."""
    api = MemoryApi(MemoryCluster())
    put_pool(api, mig, status, reason, price)
    put_node(api, "a100-0", 2, {"mig-1g.10gb": 7, "mig-3g.40gb": 1})
    put_node(api, "a100-1", 1, {"mig-2g.20gb": 3})
    small = [a_slice("1g.10gb", start, *(("chat-0",) if start == 2 else ())) for start in range(7)]
    put_layout(api, "a100-0", [small, [a_slice("3g.40gb", 4, "code-0")]])
    put_pod(api, "chat-0", "chat", "a100-0", "mig-1g.10gb")
    put_pod(api, "code-0", "code", "a100-0", "mig-3g.40gb")
    put_pod(api, "code-1", "code", "a100-1", "mig-2g.20gb")
    return api


def put_pool(
    api: MemoryApi, mig: Json | None, status: Json | None, reason: str, price: str = "2"
) -> None:
    spec: Json = {"nodeSelector": {"pool": "a100"}, "prices": [{"from": "2026-01-01"}]}
    spec["prices"][0]["perGPUHour"] = price
    pool_status: Json = {"mig": status} if status is not None else {}
    if mig is not None:
        spec["mig"] = mig
        condition = {
            "type": "LayoutReady",
            "status": "True" if reason == "AsPlanned" else "False",
            "reason": reason,
            "message": f"so it is: {reason}",
            "observedGeneration": 1,
            "lastTransitionTime": AT,
        }
        pool_status["conditions"] = [condition]
    body = {"metadata": {"name": "a100"}, "spec": spec, "status": pool_status}
    api.cluster.put(ACCELERATOR_POOLS, body)


def put_node(api: MemoryApi, name: str, gpus: int, offered: Mapping[str, int]) -> None:
    labels = {
        "pool": "a100",
        "nvidia.com/gpu.product": PRODUCT,
        "nvidia.com/gpu.count": str(gpus),
    }
    allocatable = {f"nvidia.com/{name}": str(count) for name, count in offered.items()}
    conditions = [{"type": "Ready", "status": "True"}]
    status = {"allocatable": allocatable, "conditions": conditions}
    api.cluster.put(NODES, {"metadata": {"name": name, "labels": labels}, "status": status})


def put_layout(api: MemoryApi, node: str, gpus: Sequence[Sequence[Json]], **more: Any) -> None:
    status = {
        "partitioningEnabled": True,
        "driverVersion": "580.95.05",
        "gpus": [
            {
                "index": index,
                "uuid": f"GPU-{index}",
                "product": PRODUCT,
                "memoryMiB": 81920,
                "mode": "Enabled",
                "slices": list(slices),
                **more,
            }
            for index, slices in enumerate(gpus)
        ],
    }
    api.cluster.put(NODE_LAYOUTS, {"metadata": {"name": node}, "spec": {}, "status": status})


def a_slice(profile: str, start: int, *pods: str) -> Json:
    holders = [pod if "/" in pod else f"team-a/{pod}" for pod in pods]
    return {"profile": profile, "start": start, "pods": holders, "processes": len(pods)}


def put_pod(api: MemoryApi, name: str, service: str, node: str, resource: str) -> None:
    body = a_pod_body(name, service)
    body["spec"]["nodeName"] = node
    body["spec"]["containers"][0]["resources"] = {"limits": {f"nvidia.com/{resource}": "1"}}
    api.cluster.put(PODS, body)


def a_plan(name: str = "3f2a91c0", **fields: Any) -> Json:
    """GPU 0 of a100-0 is repartitioned for another replica of code; replicas on a100-1 stay."""
    return {
        "name": name,
        "at": AT,
        "gpusBefore": 3,
        "gpusAfter": 2,
        "perHourBefore": "6",
        "perHourAfter": "4",
        "lowerBound": "3.9",
        "gap": "0.025",
        "moves": 1,
        "services": [
            {
                "service": "team-a/chat",
                "profile": "2g.20gb",
                "replicas": 1,
                "previousProfile": "1g.10gb",
                "message": "310 tokens/s on 2g.20gb serve 300",
            },
            {"service": "team-a/code", "profile": "3g.40gb", "replicas": 2},
        ],
        "changes": [
            {
                "service": "team-a/chat",
                "moves": 1,
                "perHourBefore": "0.27",
                "perHourAfter": "0.54",
            }
        ],
        "nodes": [
            {
                "node": "a100-0",
                "gpus": [
                    {"gpu": 0, "slices": ["2g.20gb@0", "3g.40gb@4"]},
                    {"gpu": 1, "slices": ["3g.40gb@4"]},
                ],
            },
            {"node": "a100-1", "gpus": [{"gpu": 0, "slices": ["2g.20gb"] * 3}]},
        ],
        **fields,
    }
