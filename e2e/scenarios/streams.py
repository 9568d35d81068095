"""Streams of clients while replicas come and go."""

import httpx

from demo.cluster import InstalledCluster, Json, Ref
from scenarios.actions import ScenarioNamespace
from world.testing import PATIENCE_SECONDS, eventually

TOKENS = 300


async def stream_completion(base: str, model: str, tokens: int = TOKENS) -> tuple[int, str | None]:
    """Stream one long completion; return the number of its pieces and its finish reason."""
    body = {
        "model": model,
        "prompt": "tell me everything",
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }
    pieces, reason = 0, None
    async with (
        httpx.AsyncClient(base_url=base, timeout=60) as http,
        http.stream("POST", "/v1/completions", json=body) as response,
    ):
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                pieces += line.count('"text":')
                if '"finish_reason":"' in line:
                    reason = line.partition('"finish_reason":"')[2].partition('"')[0]
    return pieces, reason


async def kubectl_scale(cluster: InstalledCluster, ref: Ref, replicas: int) -> None:
    await cluster.run(
        "kubectl", "--namespace", ref.namespace, "scale",
        f"tsvc/{ref.name}", f"--replicas={replicas}",
    )  # fmt: skip


async def wait_for_replicas(
    namespace: ScenarioNamespace, count: int, within: float = PATIENCE_SECONDS
) -> Json:
    """Wait until there are so many replicas, and all are ready; return the status."""

    async def are_ready() -> Json:
        status = await namespace.service_status()
        assert (status.get("replicas"), status.get("readyReplicas")) == (count, count), status
        return status

    return await eventually(are_ready, within=within)
