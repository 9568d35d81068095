"""How long the operator takes to decide on another number of replicas, in a world.

From the first request of a load to the new number in the Deployment. Three kinds of load: more
requests at once than an engine runs, which its gauge of waiting requests shows; the same at the
gateway, which reports them itself; and requests one after the other, more than a replica carries,
of which engines show only how many are finished. And one request for a service at zero.

All are hints: they are wall time.
"""

import asyncio
import contextlib
import json
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx

import world as worlds
from demo.cluster import (
    EXAMPLES,
    InstalledCluster,
    Json,
    Ref,
    fund,
    install,
    until,
)
from demo.tenants import apply_spec, gateway_address
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.resources.api_resources import DEPLOYMENTS
from world.api import connect
from world.plan import FEW_FAKES

SCRAPE_SECONDS = 15
_TENANT = "bench"
_MODEL = "hf://meta-llama/Llama-3.2-1B-Instruct"
_GPUS = 6
_PROMPT_TOKENS, _OUTPUT_TOKENS = 400, 60
# So many times what a replica carries arrive in each second, or wait at once as if for 90 seconds:
# a backlog that it serves in a minute adds none.
_ARRIVALS, _WAITING_SECONDS = 2.0, 90.0
_SMALL = {"minReplicas": 1, "maxReplicas": 2}
_SLEEPING = {"minReplicas": 0, "maxReplicas": 2, "idle": {"after": "30s"}}
# Before a load nothing was asked for as long as the rate of arrivals looks back.
_QUIET_SECONDS = 35.0
_PATIENCE = 180.0
# What each kind of load is named in the figures.
_KINDS = {
    "gauge": "scale_latency_gauge_s",
    "rate": "scale_latency_rate_s",
    "door": "scale_latency_door_s",
    "wake": "wake_overhead_s",
}
_CARRIED = re.compile(r"a replica carries ([0-9.]+)/s")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """Where a load is sent."""

    cluster: InstalledCluster
    ref: Ref
    url: str
    key: str = ""

    async def scaling(self) -> Json:
        status: Json = (await self.cluster.service(self.ref)).get("status", {})
        return status.get("scaling") or {}

    async def replicas(self) -> int:
        variant = (await self.cluster.service(self.ref))["status"]["variant"]["name"]
        path = DEPLOYMENTS.path(self.ref.namespace, f"{self.ref.name}-{variant}")
        replicas: int = (await self.cluster.api.get(path))["spec"]["replicas"]
        return replicas

    @contextlib.asynccontextmanager
    async def requests(self, count: int, pause_seconds: float) -> AsyncIterator[None]:
        """Send requests for the time of the block, one in each pause, or all at once."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx.Limits(max_keepalive_connections=0, max_connections=None)
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=_PATIENCE) as http:

            async def send() -> None:
                prompt = "tile" * _PROMPT_TOKENS
                body = {"model": self.ref.name, "prompt": prompt, "max_tokens": _OUTPUT_TOKENS}
                await http.post(f"{self.url}/v1/completions", json=body)

            async def send_all(tasks: list[asyncio.Task[None]]) -> None:
                for _ in range(count):
                    tasks.append(asyncio.create_task(send()))
                    await asyncio.sleep(pause_seconds)

            tasks: list[asyncio.Task[None]] = []
            tasks.append(asyncio.create_task(send_all(tasks)))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def seconds_until(self, replicas: int, count: int, pause_seconds: float) -> float:
        """Return after how long so many replicas are desired, from the first request on."""
        begin = time.monotonic()
        async with self.requests(count, pause_seconds):
            await until(
                self.replicas,
                lambda desired: desired >= replicas,
                f"{self.ref} wants {replicas} replicas",
                _PATIENCE,
            )
        return time.monotonic() - begin


def measure(rounds: int) -> dict[str, float]:
    """Return the medians of all kinds of load, by the names of the figures."""
    with (
        tempfile.TemporaryDirectory() as folder,
        worlds.start(fleet=_fleet(Path(folder)), progress=print) as world,
    ):
        seconds = asyncio.run(_measure(world, rounds))
    for name, values in seconds.items():
        print(f"{name:24} {', '.join(f'{value:.1f}' for value in values)}")
    figures = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    wake = figures.pop("wake_overhead_s")
    return {**figures, "wake_overhead_ms": round(wake * 1000), "scrape_seconds": SCRAPE_SECONDS}


def _fleet(folder: Path) -> Path:
    slices = {
        "name": "a100-0",
        "product": "NVIDIA-A100-SXM4-80GB",
        "tier": "Reserved",
        "cloud": "aws",
        "gpus": [["1g.10gb"] * 7] * _GPUS,
    }
    # A world of many nodes scrapes as seldom as the chart asks for.
    taints = [{"key": "example.com/idle"}]
    idle = {"name": "idle", "kind": "kwok", "count": FEW_FAKES + 1, "taints": taints}
    path = folder / "fleet.yaml"
    path.write_text(json.dumps({"nodes": [{"name": "control", "kind": "cpu"}, slices, idle]}))
    return path


async def _measure(world: worlds.World, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {}
    async with connect(world.kubeconfig) as api:
        cluster = InstalledCluster(world, api, print)
        gateway, key = await _install(cluster)
        services = {
            Ref(_TENANT, f"{kind}-{count}"): _SLEEPING if kind == "wake" else _SMALL
            for count in range(rounds)
            for kind in _KINDS
        }
        for ref, scaling in services.items():
            await _apply(cluster, ref, scaling)
        for ref in services:
            await _wait_for_replica(cluster, ref)
        await asyncio.sleep(_QUIET_SECONDS)
        for count in range(rounds):
            for kind, figure in _KINDS.items():
                ref = Ref(_TENANT, f"{kind}-{count}")
                direct = _Target(cluster=cluster, ref=ref, url=await cluster.address(ref))
                through = _Target(cluster=cluster, ref=ref, url=gateway, key=key)
                target = direct if kind in ("gauge", "rate") else through
                value = await _latency(kind, target)
                seconds.setdefault(figure, []).append(value)
                cluster.say(f"{ref.name}: {value:.2f} s")
    return seconds


async def _latency(kind: str, target: _Target) -> float:
    if kind == "wake":
        await until(
            target.scaling,
            lambda scaling: scaling.get("desiredReplicas") == 0,
            f"{target.ref} sleeps",
            _PATIENCE,
        )
        return await target.seconds_until(1, 1, 0.0)
    message = (await target.scaling())["message"]
    carried = _CARRIED.search(message)
    assert carried is not None, message
    rate = float(carried[1])
    if kind == "rate":
        return await target.seconds_until(2, 10_000, 1 / (_ARRIVALS * rate))
    status = (await target.cluster.service(target.ref))["status"]
    running: int = status["variant"]["maxNumSeqs"]
    return await target.seconds_until(2, running + round(_WAITING_SECONDS * rate), 0.0)


async def _install(cluster: InstalledCluster) -> tuple[str, str]:
    """Install Tessera with a gateway; return its address and a key of the tenant."""
    await install(cluster, "gateway.enabled=true")
    address = await gateway_address(cluster)
    await cluster.run("kubectl", "apply", "-f", str(EXAMPLES / "00-pools.yaml"))
    await cluster.api.create("/api/v1/namespaces", {"metadata": {"name": _TENANT}})
    await fund(cluster, _TENANT, _TENANT)
    command = ("key", "create", "bench", "--tenant", _TENANT, "--output", "json")
    key: str = json.loads(await cluster.tessera(*command))["key"]
    return f"http://{address}:8443", key


async def _apply(cluster: InstalledCluster, ref: Ref, scaling: Json) -> None:
    spec = {
        "model": {"uri": _MODEL},
        "context": {"typicalInputTokens": _PROMPT_TOKENS, "typicalOutputTokens": _OUTPUT_TOKENS},
        "scaling": {"policy": "Capacity", **scaling},
    }
    await apply_spec(cluster, INFERENCE_SERVICES.kind, INFERENCE_SERVICES.plural, ref, spec)


async def _wait_for_replica(cluster: InstalledCluster, ref: Ref) -> None:
    await until(
        lambda: cluster.service(ref),
        lambda service: service.get("status", {}).get("readyReplicas"),
        f"{ref} has a replica",
        _PATIENCE,
    )
