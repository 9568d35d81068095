"""`make record-course`: twelve minutes with bursts in a world, as the operator saw them.

One service has one pool. The other may use two: reserved devices, of which a pod that is not
Tessera's has one until the burst, and those on demand. Writes what the fleet simulator is compared
with (`bench.recorded_course`).
"""

import argparse
import asyncio
import json
import math
import pickle
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

import world as worlds
from bench.recorded_course import (
    RecordedCourse,
    RecordedCycle,
    RecordedDecision,
    RecordedRequest,
    RecordedService,
    Samples,
    write_course,
)
from demo.cluster import ROOT, InstalledCluster, Json, install
from scenarios.actions import ScenarioNamespace, a_budget
from scenarios.gateway import Gateway, answered, create_key, ready_pods
from scenarios.replay import Target, TracedRequest, failures, poisson_trace, replay
from scenarios.scaling import (
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    REPLICA_RATE,
    ScalingRecorder,
    apply_scaled_service,
    recording,
)
from tessera.api.ref import Ref
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS
from tessera.resources.api_resources import PODS
from world import World
from world.api import connect
from world.plan import FEW_FAKES
from world.testing import a_container, a_pod, eventually

RECORD = ROOT / "tests" / "lab" / "fleet" / "data" / "live_course.json.xz"
NAMESPACE = "course"
RESERVED, ON_DEMAND = "reserved", "on-demand"
_PRICES = {RESERVED: ("Reserved", "1.79"), ON_DEMAND: ("OnDemand", "4.20")}
# Without any request, so that their rate is known when they begin.
_QUIET_SECONDS = 60.0
_SECONDS = 720.0
# Arrivals in multiples of what a replica carries. The burst takes four, and is not so near
# to what three carry that the smallest error of a measured speed decides.
_BASE, _BURST = 1.0, 4.7
_FLOOR = 2
_GUEST, _GUEST_SECONDS = "guest", 285.0
# After the load, so that Prometheus has scraped all of it.
_REST_SECONDS = 35.0
_LATE_SECONDS = 0.05
_COUNTERS = (
    "request_success_total",
    "generation_tokens_total",
    "iteration_tokens_total_count",
    "iteration_tokens_total_sum",
    "inter_token_latency_seconds_count",
    "inter_token_latency_seconds_sum",
    "time_to_first_token_seconds_count",
    "time_to_first_token_seconds_sum",
    "request_prompt_tokens_sum",
    "request_generation_tokens_sum",
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
)
_COST = "tessera_cost_nanos_total"
_NAMES = f"vllm:({'|'.join(_COUNTERS)})|DCGM_FI_PROF_GR_ENGINE_ACTIVE|{_COST}"
_SAMPLES = f'{{__name__=~"{_NAMES}"}}[15m]'


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What comes to one service."""

    service: str
    pools: tuple[str, ...]
    burst: tuple[float, float]
    """When it begins and ends. Bursts of several services at once would delay the engines."""
    seed: int

    def rate(self, second: float) -> float:
        begin, end = self.burst
        return REPLICA_RATE * (_BURST if begin <= second < end else _BASE)

    def trace(self) -> tuple[TracedRequest, ...]:
        return poisson_trace(
            self.rate,
            _SECONDS,
            prompt_tokens=PROMPT_TOKENS,
            output_tokens=OUTPUT_TOKENS,
            seed=self.seed,
        )


LOADS = (
    Load(service="chat", pools=(ON_DEMAND,), burst=(90.0, 210.0), seed=23),
    Load(service="tiered", pools=(RESERVED, ON_DEMAND), burst=(210.0, 330.0), seed=25),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedCourse:
    """What was sent, what clients saw, and what Prometheus scraped."""

    begin: float
    """Wall clock of the first moment of the traces."""
    requests: Mapping[str, Sequence[RecordedRequest]]
    """By service."""
    delays: Sequence[tuple[float, float]]
    """By how many seconds this process ran late, and when."""
    samples: Sequence[dict[str, Any]]
    """Series of Prometheus, with the times of their scrapes."""


def main() -> None:
    """Play, and write the file."""
    parser = argparse.ArgumentParser(prog="record-course")
    parser.add_argument("--out", type=Path, default=RECORD, help="the file to write")
    options = parser.parse_args()
    # Not below /tmp, where the operator has a volume of its own.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary:
        folder = Path(temporary)
        with worlds.start(fleet=_write_fleet(folder), progress=print) as world:
            played = asyncio.run(_play(world, folder / "cycles.pickle"))
        cycles = _read_cycles(folder / "cycles.pickle")
    write_course(options.out, _course(played, cycles))
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


def _read_cycles(path: Path) -> list[RecordedCycle]:
    cycles = []
    with path.open("rb") as file:
        while file.peek(1):
            snapshot, decisions = pickle.load(file)  # noqa: S301 - the recording operator wrote it
            recorded = {
                ref: RecordedDecision(replicas=replicas, reason=reason, desired=desired)
                for ref, (replicas, reason, desired) in decisions.items()
            }
            cycles.append(RecordedCycle(snapshot=snapshot, decisions=recorded))
    return cycles


def _course(played: PlayedCourse, cycles: Sequence[RecordedCycle]) -> RecordedCourse:
    late = sum(delay > _LATE_SECONDS for _, delay in played.delays)
    return RecordedCourse(
        source="make record-course: simulated engines behind a real API server, Prometheus, "
        "gateway and operator",
        begin=datetime.fromtimestamp(played.begin, UTC),
        seconds=_SECONDS,
        late_share=round(late / len(played.delays), 4),
        services={
            Ref(NAMESPACE, load.service): _recorded_service(played, load.service) for load in LOADS
        },
        cycles=cycles,
    )


def _recorded_service(played: PlayedCourse, service: str) -> RecordedService:
    costs = _sums(played, "pool", lambda labels: labels.get("service") == service)
    return RecordedService(
        requests=played.requests[service],
        scrapes=_sums(played, "pod", lambda labels: labels["pod"].startswith(f"{service}-")),
        costs={pool: sums[_COST] for pool, sums in costs.items()},
    )


def _sums(
    played: PlayedCourse, group: str, matches: Callable[[Mapping[str, str]], bool]
) -> Mapping[str, Mapping[str, Samples]]:
    """Return the sums of the series whose labels match, by a label and metric."""
    sums: dict[str, dict[str, dict[float, float]]] = {}
    for series in played.samples:
        labels, name = series["metric"], series["metric"]["__name__"].removeprefix("vllm:")
        if matches(labels):
            values = sums.setdefault(labels[group], {}).setdefault(name, {})
            for at, value in series["values"]:
                second = round(at - played.begin, 3)
                values[second] = values.get(second, 0.0) + float(value)
    return {
        each: {name: sorted(values.items()) for name, values in sorted(by_name.items())}
        for each, by_name in sorted(sums.items())
    }


def _write_fleet(folder: Path) -> Path:
    """Write a fleet of equal slices, whose Prometheus scrapes as seldom as most do."""
    a100 = {"product": "NVIDIA-A100-SXM4-80GB", "cloud": "aws"}
    nodes = [
        {"name": "control", "kind": "cpu"},
        {"name": RESERVED, "tier": "Reserved", "gpus": [["1g.10gb"] * 3], **a100},
        {"name": ON_DEMAND, "count": 2, "tier": "OnDemand", "gpus": [["1g.10gb"] * 7], **a100},
        # A world of many nodes scrapes each 15 seconds.
        {
            "name": "idle",
            "kind": "kwok",
            "count": FEW_FAKES + 1,
            "taints": [{"key": "example.com/idle"}],
        },
    ]
    path = folder / "fleet.yaml"
    path.write_text(json.dumps({"nodes": nodes}), encoding="utf-8")
    return path


async def _play(world: World, file: Path) -> PlayedCourse:
    async with connect(world.kubeconfig) as api:
        cluster = InstalledCluster(world, api, print)
        await install(
            cluster,
            "gateway.enabled=true",
            "image.repository=tessera/operator-recording",
            f"extraEnv[0].name=RECORD_FILE,extraEnv[0].value={file}",
        )
        for name, (tier, price) in _PRICES.items():
            await api.apply(ACCELERATOR_POOLS.path(None, name), _pool(name, tier, price), "kubectl")
        await api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        namespace = ScenarioNamespace(cluster, NAMESPACE)
        (pod,) = await ready_pods(cluster, 1)
        async with a_budget(namespace, "100000"):
            key = await create_key(namespace, "first")
            address = pod["status"]["podIP"]
            gateway = Gateway(namespace, f"http://{address}:8443/v1", address, key)
            await api.create(PODS.path(NAMESPACE), _guest())
            for load in LOADS:
                await apply_scaled_service(namespace, load.service, "Capacity", load.pools)
            for load in LOADS:
                await _wait_for_floor(namespace, load.service)
                await answered(gateway, load.service)
            await asyncio.sleep(_QUIET_SECONDS)
            return await _load(gateway)


def _pool(name: str, tier: str, price: str) -> Json:
    return {
        "apiVersion": ACCELERATOR_POOLS.api_version,
        "kind": ACCELERATOR_POOLS.kind,
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"karpenter.sh/capacity-type": name},
            "tier": tier,
            "prices": [{"from": "2026-01-01", "perGPUHour": price}],
        },
    }


def _guest() -> Json:
    """Return a pod that has one of the reserved devices."""
    limits = {"nvidia.com/mig-1g.10gb": 1}
    container = a_container("sleep 3600", resources={"limits": limits})
    return a_pod(_GUEST, container, nodeSelector={"kubernetes.io/hostname": RESERVED})


async def _wait_for_floor(namespace: ScenarioNamespace, service: str) -> None:
    async def are_ready() -> None:
        status = await namespace.service_status(service)
        assert status.get("readyReplicas") == _FLOOR, status

    await eventually(are_ready, within=180)


async def _load(gateway: Gateway) -> PlayedCourse:
    namespace = gateway.namespace
    recorder: ScalingRecorder
    async with recording(namespace, *(load.service for load in LOADS)) as recorder:
        begin = time.time()
        async with asyncio.TaskGroup() as tasks:
            replays = {load.service: tasks.create_task(_replay(gateway, load)) for load in LOADS}
            await asyncio.sleep(_GUEST_SECONDS)
            await namespace.cluster.api.delete(
                PODS.path(namespace.name, _GUEST), {"gracePeriodSeconds": 0}
            )
        await asyncio.sleep(max(0.0, begin + _SECONDS + _REST_SECONDS - time.time()))
    for load in LOADS:
        namespace.cluster.say(recorder.report(load.service))
    url = f"{namespace.cluster.world.prometheus_url}/api/v1/query"
    async with httpx.AsyncClient(timeout=60) as http:
        response = await http.get(url, params={"query": _SAMPLES})
    return PlayedCourse(
        begin=begin,
        requests={service: replay.result() for service, replay in replays.items()},
        delays=recorder.delays,
        samples=response.json()["data"]["result"],
    )


async def _replay(gateway: Gateway, load: Load) -> Sequence[RecordedRequest]:
    trace = load.trace()
    headers = {"Authorization": f"Bearer {gateway.key}"}
    target = Target(base=gateway.base, model=load.service, headers=headers)
    answers = await replay(target, trace)
    failed = failures(answers)
    say = gateway.namespace.cluster.say
    say(f"{load.service}: {len(answers)} requests, {len(failed)} failures: {failed[:3]}")
    return [
        RecordedRequest(
            second=request.second,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            ttft=math.inf if answer.ttft is None else answer.ttft,
        )
        for request, answer in zip(trace, answers, strict=True)
    ]


if __name__ == "__main__":
    main()
