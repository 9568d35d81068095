"""Faults of engines, and the conditions that kubectl and `tessera explain` print."""

import asyncio
import json
from dataclasses import dataclass
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


def write_fleet(folder: Path, spot: int = 0) -> Path:
    """Write a fleet file: a node for the operator, two with four small slices, and with spot nodes
    two more whose slices no pool of the examples has, and groups without nodes."""
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
    path = folder / "fleet.yaml"
    path.write_text(json.dumps({"nodes": nodes, "groups": groups}), encoding="utf-8")
    return path


async def shorten_stall_timeout(cluster: InstalledCluster) -> None:
    """Let the operator replace a stalled engine within the time of a test."""
    command = ("kubectl", "--namespace", NAMESPACE)
    deployment = "deployment/tessera-operator"
    await cluster.run(*command, "set", "env", deployment, f"TESSERA_STALL_SECONDS={STALL_SECONDS}")
    await cluster.run(*command, "rollout", "status", deployment, "--timeout=60s")


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


async def wait_for_printed_reason(
    namespace: ScenarioNamespace, reason: str, kind: str = "Progressing", within: float = 90
) -> PrintedCondition:
    """Wait until kubectl prints a condition with this reason."""
    return await eventually(
        lambda: read_printed_condition(namespace, kind),
        lambda condition: condition.reason == reason,
        within=within,
    )


async def wait_for_explained_reason(
    namespace: ScenarioNamespace, reason: str, kind: str = "Progressing", within: float = 90
) -> PrintedCondition:
    """Wait as above, and until `tessera explain` has the same reason and message."""
    await wait_for_printed_reason(namespace, reason, kind, within)

    async def read_both() -> tuple[PrintedCondition, Json]:
        decisions = await explain(namespace)
        return await read_printed_condition(namespace, kind), decisions[_TOPICS.get(kind, kind)]

    def agree(condition: PrintedCondition, decision: Json) -> bool:
        explanation = decision["reason"], decision["message"]
        return (reason, condition.message) == explanation and condition.reason == reason

    condition, _ = await eventually(read_both, lambda pair: agree(*pair), within=90)
    return condition


async def read_printed_condition(
    namespace: ScenarioNamespace, kind: str = "Progressing"
) -> PrintedCondition:
    """Return a condition as kubectl prints it now."""
    prefix = f'.status.conditions[?(@.type=="{kind}")]'
    path = "{'\\n'}".join(f"{{{prefix}.{field}}}" for field in ("status", "reason", "message"))
    status, reason, message = [*(await read_jsonpath(namespace, path)).split("\n", 2), "", ""][:3]
    return PrintedCondition(status, reason, message)


async def wait_until_printed(
    namespace: ScenarioNamespace, jsonpath: str, expected: str, within: float = 60
) -> None:
    await eventually(
        lambda: read_jsonpath(namespace, jsonpath), lambda text: text == expected, within=within
    )


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
    async with httpx.AsyncClient(base_url=base, timeout=10) as http:
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
