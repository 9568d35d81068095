"""Services that scale under a replayed load, and what their status says meanwhile."""

import asyncio
import contextlib
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from demo.cluster import Json, condition
from scenarios.actions import ScenarioNamespace
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.resources.api_resources import PODS
from world import World

# What a replica on a 1g.10gb slice carries of such requests within the default SLO; a whole fleet
# of them streams few enough tokens for a small machine.
PROMPT_TOKENS, OUTPUT_TOKENS, REPLICA_RATE = 1000, 15, 6.4
# Real engines take minutes to start; of a simulated one it is time in which requests wait.
START_SECONDS = 20
_NODES, _GPUS = 3, 2
_LOOK_SECONDS = 1.0
_DELAY_LOOK_SECONDS, _LATE_SECONDS, _LATE_SHARE = 0.05, 0.05, 0.02


def write_fleet(folder: Path) -> Path:
    """Write a fleet file with slices of one size, so that there is one choice of hardware."""
    gpus = [["1g.10gb"] * 7] * _GPUS
    a100 = {"product": "NVIDIA-A100-SXM4-80GB", "tier": "Reserved", "cloud": "aws", "gpus": gpus}
    nodes = [{"name": "control", "kind": "cpu"}, {"name": "a100", "count": _NODES, **a100}]
    path = folder / "fleet.yaml"
    path.write_text(json.dumps({"nodes": nodes}), encoding="utf-8")
    return path


async def apply_scaled_service(
    namespace: ScenarioNamespace,
    name: str,
    policy: str,
    pools: Sequence[str] | None = None,
    /,
    **scaling: object,
) -> None:
    """Apply a service with default settings beside its policy, whose engines start slowly.

    It may use all pools unless some are named.
    """
    start = {"name": "TESSERA_SIM_START_SECONDS", "value": str(START_SECONDS)}
    await namespace.apply_service(
        name,
        scaling={"policy": policy, **scaling},
        podTemplate={"env": [start]},
        placement={} if pools is None else {"pools": list(pools)},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The status of a service at one moment."""

    second: float
    desired: int
    ready: int
    reason: str
    message: str
    slo: str
    balanced: str


@dataclass(slots=True)
class ScalingRecorder:
    """Looks at the statuses each second."""

    namespace: ScenarioNamespace
    begin: float = field(default_factory=time.monotonic)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    delays: list[tuple[float, float]] = field(default_factory=list)
    """By how many seconds this process ran late, and when: other work on the machine delays the
    engines, too."""

    @property
    def second(self) -> float:
        return time.monotonic() - self.begin

    async def look(self, name: str) -> Sample:
        service = await self.namespace.cluster.service(self.namespace.ref(name))
        status: Json = service.get("status", {})
        scaling: Json = status.get("scaling") or {}
        sample = Sample(
            second=self.second,
            desired=scaling.get("desiredReplicas", 0),
            ready=status.get("readyReplicas", 0),
            reason=scaling.get("reason", ""),
            message=scaling.get("message", ""),
            slo=condition(service, "SLOMet").get("reason", ""),
            balanced=condition(service, "LoadBalanced").get("reason", ""),
        )
        self.samples.setdefault(name, []).append(sample)
        return sample

    def changes(self, name: str, since: float = 0.0) -> list[Sample]:
        """Return the samples at which another number was desired than before."""
        samples = [sample for sample in self.samples[name] if sample.second >= since]
        return [
            after
            for before, after in itertools.pairwise(samples)
            if before.desired != after.desired
        ]

    async def measure_delays(self) -> None:
        """Record forever by how much sleeps last longer than they should."""
        while True:
            due = time.monotonic() + _DELAY_LOOK_SECONDS
            await asyncio.sleep(_DELAY_LOOK_SECONDS)
            self.delays.append((self.second, max(0.0, time.monotonic() - due)))

    def is_late(self, begin: float, end: float) -> bool:
        """Return whether the machine delayed more than a few moments of this time."""
        delays = [delay for second, delay in self.delays if begin <= second < end]
        late = sum(delay > _LATE_SECONDS for delay in delays)
        return late > _LATE_SHARE * len(delays)

    def reasons(self, name: str) -> Counter[str]:
        return Counter(sample.reason for sample in self.samples[name])

    def report(self, name: str) -> str:
        """Return each change with its reason, for people."""
        first = self.samples[name][0]
        lines = [f"{name}: {first.desired} replicas at first"]
        lines += [
            f"  {change.second:5.0f} s: {change.desired} desired, {change.ready} ready: "
            f"{change.reason}: {change.message}"
            for change in self.changes(name)
        ]
        return "\n".join([*lines, f"  reasons: {dict(self.reasons(name))}"])


@contextlib.asynccontextmanager
async def recording(namespace: ScenarioNamespace, *names: str) -> AsyncIterator[ScalingRecorder]:
    """Record the statuses of services for the time of the block."""
    recorder = ScalingRecorder(namespace)

    async def look_on(name: str) -> None:
        while True:
            # The API server may be late, and a sample less is no harm.
            with contextlib.suppress(OSError, TimeoutError):
                await recorder.look(name)
            await asyncio.sleep(_LOOK_SECONDS)

    tasks = [asyncio.create_task(look_on(name)) for name in names]
    tasks.append(asyncio.create_task(recorder.measure_delays()))
    try:
        yield recorder
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def start_up_seconds(namespace: ScenarioNamespace, name: str) -> float:
    """Return the longest time from the binding of a replica until it was ready."""
    pods = [
        pod
        for pod in await namespace.list_objects(PODS)
        if pod["metadata"]["labels"].get("tessera.dev/service") == name
    ]
    return max(_moment(pod, "Ready") - _moment(pod, "PodScheduled") for pod in pods)


def status_writes(world: World, namespace: str, name: str) -> list[float]:
    """Return when the status of a service was written, in seconds of the wall clock."""
    path = f"{INFERENCE_SERVICES.path(namespace, name)}/status"
    writes = []
    for line in world.audit_log.read_text(encoding="utf-8").splitlines():
        if path in line:
            event = json.loads(line)
            if event["verb"] in {"patch", "update"}:
                writes.append(_timestamp(event["requestReceivedTimestamp"]))
    return writes


def _moment(pod: Json, kind: str) -> float:
    return _timestamp(condition(pod, kind)["lastTransitionTime"])


def _timestamp(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
