"""What a gateway takes: processor for a request and a chunk, memory of many requests.

It runs as in a pod, with keys, limits, picking, polls, usage records and a store; only its
directory comes from a file, and not from a cluster. Engine, provider and clients are a Go program,
so that they take little. Only processor time of the gateway is compared, since wall time depends on
what else the machine does.
The same is measured with vllm-router and LiteLLM before the same engine. The last line is `BENCH`
and the figures as JSON; a peer that cannot be installed is null there.
"""

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from bench_client_gone import gone_seconds
from bench_left_early import charged_vs_computed
from environments import ROOT, environment, say
from figures import benchmark
from gateway_process import answers, running, write_directory
from tessera.api.model_provider import ModelCost, ModelProviderSpec, ProviderKey, ProviderModel
from tessera.api.model_route import ModelRouteSpec
from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import (
    ApiKey,
    Directory,
    EngineReplica,
    OfferedModel,
    TenantLimits,
)
from tessera.domain.gateway.outside import outside_models
from tessera.domain.observed.providers import ObservedProvider
from tessera.domain.perf.step import StepTime
from world.folders import cache, make_once
from world.keys import Authority, Pair
from world.slots import free_port

FIGURES = ROOT / "docs" / "figures" / "gateway.json"
KEYS, REVOKED = 10_000, 1_000
SETTLING_REQUESTS = 5_000
CHUNKS = 20
GAP_MS = 10
STEP = StepTime(weights=6e-3, kv_token=4e-8, token=3e-5, pair=2e-10)
PROMPT = "lorem ipsum " * 40
LONG_PROMPT = "lorem ipsum " * 18_300


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What clients send."""

    body: str
    connections: int
    requests: int
    slow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one load took."""

    cpu_ms: float
    """Of the gateway, for a request."""
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another gateway, in an environment of its own."""

    environment: str
    ready: str
    """Path that answers 200 once it serves."""
    command: Callable[[Path, int, str], list[str]]
    """Takes the folder of its programs, its port, and the address of the engine."""
    fewer_requests: int = 1
    """It gets one of so many requests, since it is slow."""


async def measure(
    *,
    requests: int = 3000,
    memory_requests: int = 20_000,
    leaves: int = 1000,
    times: int = 3,
    without_peers: bool = False,
    save: bool = False,
) -> dict[str, object]:
    """Measure each load, and print a table."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tessera-")))
        program = _built()
        bodies = _bodies(folder)
        loads = {
            "json": Load(body=bodies["json"], connections=16, requests=requests),
            "stream": Load(body=bodies["stream"], connections=16, requests=requests),
            "slow": Load(body=bodies["stream"], connections=32, requests=requests // 4, slow=True),
            "long": Load(body=bodies["long"], connections=8, requests=requests // 6),
        }
        fast = stack.enter_context(_engine(program, 0))
        slow = stack.enter_context(_engine(program, GAP_MS))
        authority = Authority(folder / "authority")
        pair = authority.server("provider", "127.0.0.1")
        provider = stack.enter_context(_engine(program, 0, pair))
        gateway, slope, direct = {}, None, {}
        for name, load in loads.items():
            engine = slow if load.slow else fast
            direct[name] = await _run(program, engine, load)
            async with running(folder, _directory(engine)) as (address, pid):
                gateway[name] = await _cpu_of(program, address, load, pid)
        outside = {}
        for name in ("json", "stream"):
            # Gateways of one store share the places of a provider.
            (own := folder / f"provider-{name}").mkdir()
            shutil.copy(authority.own.certificate, own / "provider.crt")
            async with running(own, provider_directory(provider)) as (address, pid):
                outside[name] = await _cpu_of(program, address, loads[name], pid)
        if memory_requests:
            slope = await _memory(folder, program, fast, bodies["json"], memory_requests)
        peers: dict[str, dict[str, Result]] = {}
        if not without_peers:
            for name, peer in PEERS.items():
                peers[name] = await _measure_peer(program, {False: fast, True: slow}, loads, peer)
    figures = _figures(gateway, direct, peers) | {
        **{f"provider_{name}_cpu_ms": round(each.cpu_ms, 3) for name, each in outside.items()},
        "rss_slope_bytes_per_request": None if slope is None else round(slope, 1),
        "left_early_charged_vs_computed": await charged_vs_computed(
            leaves, with_tokenizer=not without_peers
        ),
        "client_gone_seconds": await gone_seconds(times),
        "memory_requests": memory_requests,
        "load_average": os.getloadavg()[0],
    }
    if save:
        FIGURES.write_text(json.dumps(figures, indent=2) + "\n", encoding="ascii")
    return figures


def _figures(
    gateway: dict[str, Result], direct: dict[str, float], peers: dict[str, dict[str, Result]]
) -> dict[str, object]:
    """Print a table, and return its figures."""
    print(f"{'CPU ms':8} {'gateway':>10} {'vllm-router':>12} {'LiteLLM':>10} {'added p99 ms':>14}")
    for name, result in gateway.items():
        columns = [
            f"{peers[peer][name].cpu_ms:.3f}" if peers.get(peer) else "absent" for peer in PEERS
        ]
        added = result.p99_ms - direct[name]
        print(f"{name:8} {result.cpu_ms:10.3f} {columns[0]:>12} {columns[1]:>10} {added:14.1f}")
    return {
        "json_cpu_ms": round(gateway["json"].cpu_ms, 3),
        "stream_cpu_ms": round(gateway["stream"].cpu_ms, 3),
        "chunk_cpu_us": round(gateway["slow"].cpu_ms * 1000 / CHUNKS, 1),
        "long_prompt_cpu_ms": round(gateway["long"].cpu_ms, 3),
        "json_vs_vllm_router": _ratio(gateway, peers.get("router"), "json"),
        "chunk_vs_vllm_router": _ratio(gateway, peers.get("router"), "slow"),
        "stream_vs_vllm_router": _ratio(gateway, peers.get("router"), "stream"),
        "vs_litellm": _ratio(gateway, peers.get("litellm"), "stream"),
        "added_p99_ms": round(gateway["slow"].p99_ms - direct["slow"], 1),
    }


def _ratio(gateway: dict[str, Result], peer: dict[str, Result] | None, name: str) -> float | None:
    return round(gateway[name].cpu_ms / peer[name].cpu_ms, 4) if peer else None


def _bodies(folder: Path) -> dict[str, str]:
    def written(name: str, prompt: str, **fields: object) -> str:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": "chat", "messages": messages, "max_tokens": CHUNKS, **fields}
        path = folder / f"{name}.json"
        path.write_text(json.dumps(body, separators=(",", ":")), encoding="utf-8")
        return str(path)

    return {
        "json": written("json", PROMPT),
        "stream": written("stream", PROMPT, stream=True),
        "long": written("long", LONG_PROMPT),
    }


def _built() -> str:
    """The Go program, built once for each version of its source."""
    source = ROOT / "tools" / "gateway_load" / "load.go"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]

    def build(partial: Path) -> None:
        command = ["go", "build", "-o", str(partial / "load"), str(source)]
        subprocess.run(command, check=True)

    return str(make_once(cache() / "gateway-load" / digest, build, say) / "load")


@contextmanager
def _engine(program: str, gap_ms: int, pair: Pair | None = None) -> Iterator[str]:
    """Run an engine, or a provider by HTTPS with a certificate; yield its address."""
    address = f"127.0.0.1:{free_port()}"
    files = [] if pair is None else [str(pair.certificate), str(pair.key)]
    with subprocess.Popen([program, "serve", address, str(gap_ms), *files]) as process:
        try:
            yield address
        finally:
            process.kill()


def _directory(engine: str) -> Directory:
    replicas = tuple(
        EngineReplica(
            pod=Ref("team-a", f"chat-{number}"),
            uid=f"uid-{number}",
            address=engine,
            ready_since=datetime(2026, 1, 1, tzinfo=UTC),
            max_num_seqs=256,
            max_num_batched_tokens=8192,
            step_time=STEP,
        )
        for number in range(2)
    )
    model = OfferedModel(
        service=Ref("team-a", "chat"),
        uid="uid-chat",
        names=("chat",),
        tenant="team-a",
        max_model_len=131_072,
        replicas=replicas,
    )
    many = PeriodLimits(per_minute=10**9)
    limits = RateLimitsSpec(requests=many, total_tokens=PeriodLimits(per_minute=10**12))
    tenant = TenantLimits(name="team-a", namespaces=("team-a",), limits=limits)
    keys = (
        ApiKey(
            name=f"key-{number}",
            digest=hashlib.sha256(f"tsk-{number:06d}".encode()).hexdigest(),
            tenant="team-a",
        )
        for number in range(KEYS)
    )
    return Directory(
        models=(model,), tenants={"team-a": tenant}, keys={key.digest: key for key in keys}
    )


def provider_directory(address: str) -> Directory:
    """Return a directory in which a route of the same name leads to a provider alone."""
    directory = _directory("")
    cost = ModelCost(input=Decimal(1), output=Decimal(4))
    spec = ModelProviderSpec(
        base_url=f"https://{address}/v1",
        protocols=("OpenAIChat",),
        secret=ProviderKey(name="acme"),
        tenants=("team-a",),
        models=(
            ProviderModel(
                name="chat", max_context_tokens=131_072, max_output_tokens=1024, cost=cost
            ),
        ),
    )
    provider = ObservedProvider(
        ref=Ref("", "acme"),
        uid="uid-acme",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        generation=1,
        spec=spec,
    )
    target = {"name": "outside", "provider": {"name": "acme", "model": "chat"}}
    route = OfferedModel(
        service=Ref("team-a", "chat"),
        uid="uid-route",
        names=("chat",),
        tenant="team-a",
        route=ModelRouteSpec.model_validate({"targets": [target]}),
    )
    outside = outside_models((provider,), directory.tenants)
    return replace(directory, models=(route,), outside=outside)


async def _clients(program: str, address: str, load: Load, requests: int) -> dict[str, float]:
    command = ("run", f"http://{address}", load.body, str(load.connections), str(requests))
    process = await asyncio.create_subprocess_exec(
        program, *command, str(KEYS), stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    figures: dict[str, float] = json.loads(out)
    if figures["failed"]:
        sys.exit(f"{address}: not all were answered: {figures}")
    return figures


async def _run(program: str, address: str, load: Load) -> float:
    """The 99th percentile without a gateway."""
    await answers(address, "/health")
    return (await _clients(program, address, load, load.requests))["p99_ms"]


async def _cpu_of(program: str, address: str, load: Load, pid: int) -> Result:
    await _clients(program, address, load, min(300, load.requests))
    before = cpu_seconds(pid)
    figures = await _clients(program, address, load, load.requests)
    cpu_ms = (cpu_seconds(pid) - before) / load.requests * 1e3
    return Result(cpu_ms=cpu_ms, p99_ms=figures["p99_ms"])


async def _memory(folder: Path, program: str, engine: str, body: str, requests: int) -> float:
    """Bytes by which it grows with a request in the second half, with keys revoked."""
    load = Load(body=body, connections=16, requests=requests // 2)
    directory = _directory(engine)
    async with running(folder, directory) as (address, pid):
        await _clients(program, address, load, load.requests)
        keys = {digest: directory.keys[digest] for digest in sorted(directory.keys)[REVOKED:]}
        write_directory(folder, replace(directory, keys=keys))
        os.kill(pid, signal.SIGHUP)
        # The new directory is taken meanwhile: what it needs is no growth by requests.
        await _clients(program, address, load, min(SETTLING_REQUESTS, requests // 4))
        before = memory_bytes(pid, "VmRSS")
        await _clients(program, address, load, load.requests)
        return (memory_bytes(pid, "VmRSS") - before) / load.requests


async def _measure_peer(
    program: str, engines: dict[bool, str], loads: dict[str, Load], peer: Peer
) -> dict[str, Result]:
    """Return what each load takes; nothing for a peer that is absent."""
    try:
        folder = environment(peer.environment) / "bin"
    except (SystemExit, OSError) as error:
        print(f"{peer.environment}: absent, {error}")
        return {}
    results = {}
    for name, load in loads.items():
        fewer = replace(load, requests=max(load.requests // peer.fewer_requests, 30))
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            *peer.command(folder, port, engines[load.slow]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | PEER_ENVIRONMENT,
        )
        try:
            await answers(f"127.0.0.1:{port}", peer.ready)
            results[name] = await _cpu_of(program, f"127.0.0.1:{port}", fewer, process.pid)
        finally:
            process.kill()
            await process.wait()
    return results


def _router_command(folder: Path, port: int, engine: str) -> list[str]:
    return [
        *(str(folder / "python"), "-m", "vllm_router.launch_router", "--host", "127.0.0.1"),
        *("--port", str(port), "--prometheus-port", str(free_port())),
        *("--worker-urls", f"http://{engine}", "--policy", "round_robin"),
    ]


def _litellm_command(folder: Path, port: int, engine: str) -> list[str]:
    return [
        *(str(folder / "litellm"), "--model", "openai/chat", "--alias", "chat"),
        *("--api_base", f"http://{engine}/v1", "--host", "127.0.0.1", "--port", str(port)),
        *("--num_workers", "1", "--telemetry", "False"),
    ]


PEER_ENVIRONMENT = {
    "PYTHONPATH": "",
    # LiteLLM fetches prices otherwise, takes only requests with its own key, and wants one to send.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "OPENAI_API_KEY": "none",
}
PEERS = {
    "router": Peer(environment="router", ready="/health", command=_router_command),
    "litellm": Peer(
        environment="litellm",
        ready="/health/liveliness",
        command=_litellm_command,
        fewer_requests=20,
    ),
}


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads that are there."""
    return (
        sum(
            int((task / "schedstat").read_text(encoding="ascii").split()[0])
            for task in Path(f"/proc/{pid}/task").iterdir()
        )
        / 1e9
    )


def memory_bytes(pid: int, field: str) -> int:
    """Memory as a field of a process's status has it, such as `VmRSS` or `VmHWM`, its peak."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    benchmark(
        measure,
        short={
            "requests": 48,
            "memory_requests": 64,
            "leaves": 20,
            "times": 1,
            "without_peers": True,
        },
        requests={"help": "of each load"},
        leaves={"help": "clients that leave early"},
        times={"help": "clients of each kind that leave at once"},
        without_peers={"help": "measure none, and count tokens as 4 bytes"},
        memory_requests={"help": "for the growth of memory; 0 for none"},
        save={"help": "make these the committed figures"},
    )
