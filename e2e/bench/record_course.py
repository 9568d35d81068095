"""`make record-course`: ten minutes with a burst in a world, as the operator saw them.

Writes what the fleet simulator is compared with (`bench.recorded_course`).
"""

import argparse
import asyncio
import json
import math
import pickle
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

import world as worlds
from bench.recorded_course import RecordedCourse, RecordedCycle, RecordedRequest, write_course
from demo.cluster import EXAMPLES, ROOT, InstalledCluster, install
from scenarios.actions import ScenarioNamespace, a_budget
from scenarios.gateway import Gateway, answered, create_key, ready_pods
from scenarios.replay import Answer, Target, TracedRequest, failures, poisson_trace, replay
from scenarios.scaling import (
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    REPLICA_RATE,
    ScalingRecorder,
    apply_scaled_service,
    recording,
)
from tessera.domain.observed.snapshot import Ref, Snapshot
from world import World
from world.api import connect
from world.plan import FEW_FAKES
from world.testing import eventually

RECORD = ROOT / "tests" / "lab" / "fleet" / "data" / "live_course.json.gz"
NAMESPACE, SERVICE = "course", "chat"
# Arrivals in multiples of what a replica carries.
_BASE, _BURST = 1.0, 4.5
_BURST_BEGIN, _BURST_END, _SECONDS = 90.0, 210.0, 600.0
_FLOOR = 2
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
_SAMPLES = f'{{__name__=~"vllm:({"|".join(_COUNTERS)})|DCGM_FI_PROF_GR_ENGINE_ACTIVE"}}[15m]'


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedCourse:
    """What was sent, what clients saw, and what Prometheus scraped."""

    begin: float
    """Wall clock of the first moment of the trace."""
    trace: Sequence[TracedRequest]
    answers: Sequence[Answer]
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


def _read_cycles(path: Path) -> list[tuple[Snapshot, dict[Ref, tuple[int, str]]]]:
    cycles = []
    with path.open("rb") as file:
        while file.peek(1):
            cycles.append(pickle.load(file))  # noqa: S301 - the recording operator wrote it
    return cycles


def _course(
    played: PlayedCourse, cycles: Sequence[tuple[Snapshot, dict[Ref, tuple[int, str]]]]
) -> RecordedCourse:
    service = Ref(NAMESPACE, SERVICE)
    scrapes: dict[str, dict[str, dict[float, float]]] = {}
    for series in played.samples:
        labels, name = series["metric"], series["metric"]["__name__"].removeprefix("vllm:")
        if labels["pod"].startswith(f"{SERVICE}-"):
            values = scrapes.setdefault(labels["pod"], {}).setdefault(name, {})
            for at, value in series["values"]:
                second = round(at - played.begin, 3)
                values[second] = values.get(second, 0.0) + float(value)
    late = sum(delay > _LATE_SECONDS for _, delay in played.delays)
    return RecordedCourse(
        source="make record-course: simulated engines behind a real API server, Prometheus, "
        "gateway and operator",
        service=service,
        begin=datetime.fromtimestamp(played.begin, UTC),
        seconds=_SECONDS,
        late_share=round(late / len(played.delays), 4),
        requests=[
            RecordedRequest(
                second=request.second,
                prompt_tokens=request.prompt_tokens,
                output_tokens=request.output_tokens,
                ttft=math.inf if answer.ttft is None else answer.ttft,
            )
            for request, answer in zip(played.trace, played.answers, strict=True)
        ],
        scrapes={
            pod: {name: sorted(values.items()) for name, values in sorted(by_name.items())}
            for pod, by_name in sorted(scrapes.items())
        },
        cycles=[
            RecordedCycle(snapshot=snapshot, replicas=replicas, reason=reason)
            for snapshot, decisions in cycles
            for replicas, reason in [decisions.get(service, (0, ""))]
        ],
    )


def _write_fleet(folder: Path) -> Path:
    """Write a fleet of equal slices, whose Prometheus scrapes as seldom as most do."""
    nodes = [
        {"name": "control", "kind": "cpu"},
        {
            "name": "a100",
            "count": 2,
            "product": "NVIDIA-A100-SXM4-80GB",
            "tier": "Reserved",
            "cloud": "aws",
            "gpus": [["1g.10gb"] * 7],
        },
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
        await cluster.run("kubectl", "apply", "-f", str(EXAMPLES / "00-pools.yaml"))
        await api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        namespace = ScenarioNamespace(cluster, NAMESPACE)
        (pod,) = await ready_pods(cluster, 1)
        async with a_budget(namespace, "100000"):
            key = await create_key(namespace, "first")
            address = pod["status"]["podIP"]
            gateway = Gateway(namespace, f"http://{address}:8443/v1", address, key)
            await apply_scaled_service(namespace, SERVICE, "Capacity")
            await _wait_for_floor(namespace)
            await answered(gateway, SERVICE)
            return await _load(gateway)


async def _wait_for_floor(namespace: ScenarioNamespace) -> None:
    async def ready() -> int:
        replicas: int = (await namespace.service_status(SERVICE)).get("readyReplicas", 0)
        return replicas

    await eventually(ready, lambda count: count == _FLOOR, within=180)


def _rate(second: float) -> float:
    return REPLICA_RATE * (_BURST if _BURST_BEGIN <= second < _BURST_END else _BASE)


async def _load(gateway: Gateway) -> PlayedCourse:
    trace = poisson_trace(
        _rate, _SECONDS, prompt_tokens=PROMPT_TOKENS, output_tokens=OUTPUT_TOKENS, seed=20
    )
    target = Target(
        base=gateway.base, model=SERVICE, headers={"Authorization": f"Bearer {gateway.key}"}
    )
    recorder: ScalingRecorder
    async with recording(gateway.namespace, SERVICE) as recorder:
        begin = time.time()
        answers = await replay(target, trace)
        await asyncio.sleep(max(0.0, begin + _SECONDS + _REST_SECONDS - time.time()))
    say = gateway.namespace.cluster.say
    say(recorder.report(SERVICE))
    failed = failures(answers)
    say(f"{len(answers)} requests, {len(failed)} failures: {failed[:3]}")
    url = f"{gateway.namespace.cluster.world.prometheus_url}/api/v1/query"
    async with httpx.AsyncClient(timeout=60) as http:
        response = await http.get(url, params={"query": _SAMPLES})
    return PlayedCourse(
        begin=begin,
        trace=trace,
        answers=answers,
        delays=recorder.delays,
        samples=response.json()["data"]["result"],
    )


if __name__ == "__main__":
    main()
