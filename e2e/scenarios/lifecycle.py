"""Faults of engines, and the conditions that kubectl and `tessera explain` print."""

import asyncio
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from demo.cluster import NAMESPACE, InstalledCluster, Json
from scenarios.actions import ScenarioNamespace
from scenarios.commands import explain
from tessera.domain.hardware.device import GPU
from tessera.domain.names import PORT
from tessera.resources.api_resources import PODS
from world.testing import eventually

# How long an engine may make no step here; two minutes by default.
STALL_SECONDS = 8
# The topic that explains a condition, where it is not the condition's own name.
_TOPICS = {"Progressing": "rollout", "Placed": "placed", "Ready": "ready"}
_PRODUCT = "NVIDIA-A100-SXM4-80GB"
# Node groups of Karpenter, each with a node that comes when a pod waits for it.
NODE_GROUPS = ("coming", "never", "no-capacity")
POOL_LABEL = "example.org/pool"
# Nodes of the scenes about floors, for pools of their labels: two of two whole GPUs, one with two
# slices, and one of a dearer GPU. No pool of the examples selects them.
FLOOR_NODES: tuple[Json, ...] = (
    {"name": "floor-reserved", "product": _PRODUCT, "gpus": ["whole", "whole"]},
    {"name": "floor-od", "product": _PRODUCT, "gpus": ["whole", "whole"]},
    {"name": "floor-slices", "product": _PRODUCT, "gpus": [["1g.10gb", "1g.10gb"]]},
    {"name": "floor-h100", "product": "NVIDIA-H100-80GB-HBM3", "gpus": ["whole", "whole"]},
)
# A look starts kubectl, which takes seconds on a busy machine.
_PATIENCE_SECONDS = 180


def write_fleet(folder: Path, spot: int = 0, *, floors: bool = False) -> Path:
    """Write a fleet file: a node for the operator, two with four small slices, and with spot nodes
    two more whose slices no pool of the examples has, and groups without nodes. The nodes of the
    scenes about floors come with these."""
    gpus = {"product": _PRODUCT, "tier": "Reserved", "cloud": "aws", "gpus": [["1g.10gb"] * 4]}
    nodes = [{"name": "control", "kind": "cpu"}, {"name": "a100", "count": 2, **gpus}]
    groups: list[Json] = []
    if spot:
        spots = {**gpus, "tier": "Spot", "gpus": [["3g.40gb"]]}
        nodes.append({"name": "spot", "count": spot, **spots})
        nodes.append({**gpus, "name": "burst", "tier": "OnDemand"})
        nodes.append({**gpus, "name": "burst-spot", "tier": "Spot", "cloud": "gcp"})
        whole = {**gpus, "tier": "OnDemand", "gpus": ["whole"], "taints": [{"key": GPU}]}
        groups = [
            {**whole, "name": name, "labels": {POOL_LABEL: name}, "emptySeconds": 3}
            for name in NODE_GROUPS
        ]
    if floors:
        nodes += [{**node, "labels": {POOL_LABEL: node["name"]}} for node in FLOOR_NODES]
    path = folder / "fleet.yaml"
    path.write_text(json.dumps({"nodes": nodes, "groups": groups}), encoding="utf-8")
    return path


async def shorten_stall_timeout(cluster: InstalledCluster) -> None:
    """Let the operator replace a stalled engine within the time of a test."""
    command = ("kubectl", "--namespace", NAMESPACE)
    deployment = "deployment/tessera-operator"
    await cluster.run(*command, "set", "env", deployment, f"TESSERA_STALL_SECONDS={STALL_SECONDS}")
    await cluster.run(*command, "rollout", "status", deployment, "--timeout=180s")


@dataclass(frozen=True, slots=True)
class PrintedCondition:
    """One condition as kubectl prints it."""

    status: str
    reason: str
    message: str


async def read_jsonpath(namespace: ScenarioNamespace, jsonpath: str, name: str = "chat") -> str:
    """Return what `kubectl get tsvc -o jsonpath=...` prints."""
    return await namespace.cluster.run(
        *("kubectl", "--namespace", namespace.name, "get", "tsvc", name),
        *("--output", f"jsonpath={jsonpath}"),
    )


async def check_printed_reason(
    namespace: ScenarioNamespace,
    reason: str,
    kind: str = "Progressing",
    words: tuple[str, ...] = (),
) -> PrintedCondition:
    """Assert a condition's reason and words of its message, and that kubectl prints both."""
    # Starts no process as long as it does not hold.
    body = await namespace.check_condition("chat", kind, reason, words)
    condition = await read_printed_condition(namespace, kind)
    assert condition == PrintedCondition(body["status"], body["reason"], body["message"])
    return condition


async def wait_for_printed_reason(
    namespace: ScenarioNamespace,
    reason: str,
    kind: str = "Progressing",
    *,
    words: tuple[str, ...] = (),
) -> PrintedCondition:
    """Wait until kubectl prints a condition with this reason, and with words in its message."""
    check = partial(check_printed_reason, namespace, reason, kind, words)
    return await eventually(check, within=_PATIENCE_SECONDS)


async def wait_for_explained_reason(
    namespace: ScenarioNamespace,
    reason: str,
    kind: str = "Progressing",
    *,
    words: tuple[str, ...] = (),
) -> PrintedCondition:
    """Wait as above, and until `tessera explain` has the same reason and message."""

    async def is_explained() -> PrintedCondition:
        condition = await check_printed_reason(namespace, reason, kind, words)
        decision = (await explain(namespace))[_TOPICS.get(kind, kind)]
        assert (decision["reason"], decision["message"]) == (reason, condition.message)
        return condition

    return await eventually(is_explained, within=_PATIENCE_SECONDS)


async def read_printed_condition(
    namespace: ScenarioNamespace, kind: str = "Progressing"
) -> PrintedCondition:
    """Return a condition as kubectl prints it now."""
    prefix = f'.status.conditions[?(@.type=="{kind}")]'
    path = "{'\\n'}".join(f"{{{prefix}.{field}}}" for field in ("status", "reason", "message"))
    status, reason, message = [*(await read_jsonpath(namespace, path)).split("\n", 2), "", ""][:3]
    return PrintedCondition(status, reason, message)


async def list_replicas(namespace: ScenarioNamespace) -> list[Json]:
    """Return the pods that are not terminating, by name."""
    pods = [
        pod
        for pod in await namespace.list_objects(PODS)
        if "deletionTimestamp" not in pod["metadata"]
    ]
    return sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))


async def freeze_engine(pod: Json, model: str) -> "asyncio.Task[str]":
    """Freeze an engine that has made steps, and send it a request, which will hang.

    The task ends once the request's connection is closed; its result says how.
    """
    base = f"http://{pod['status']['podIP']}:{PORT}"
    async with httpx.AsyncClient(base_url=base, timeout=60) as http:
        response = await http.post("/v1/completions", json=_request(model))
        response.raise_for_status()
        (await http.post("/sim/freeze")).raise_for_status()
    return asyncio.create_task(_send_hanging_request(base, model))


async def _send_hanging_request(base: str, model: str) -> str:
    async with httpx.AsyncClient(base_url=base, timeout=180) as http:
        try:
            response = await http.post("/v1/completions", json=_request(model))
        except httpx.HTTPError as error:
            return type(error).__name__
    return response.text


def _request(model: str) -> Json:
    return {"model": model, "prompt": "a", "max_tokens": 4}
