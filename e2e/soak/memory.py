"""Resident memory of the operator's processes over time, and how fast it grows."""

import asyncio
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from demo.cluster import NAMESPACE
from world import World

EVERY_SECONDS = 10.0
# A young process still fills its caches.
WARM_UP_SECONDS = 120.0
_TEN_MINUTES = 600.0


@dataclass(slots=True)
class ProcessMemory:
    """One process from its start to its end."""

    pod: str
    samples: list[tuple[float, float]] = field(default_factory=list)
    """Seconds and MiB."""

    @property
    def seconds(self) -> float:
        return self.samples[-1][0] - self.samples[0][0]

    @property
    def warm_samples(self) -> list[tuple[float, float]]:
        begun = self.samples[0][0]
        return [sample for sample in self.samples if sample[0] - begun >= WARM_UP_SECONDS]

    def slope(self) -> float | None:
        """MiB in ten minutes by least squares; None for a life too short to say."""
        if len(self.warm_samples) < 3:
            return None
        moments, sizes = zip(*self.warm_samples, strict=True)
        return float(statistics.linear_regression(moments, sizes).slope) * _TEN_MINUTES


async def sample_memory(world: World, processes: dict[int, ProcessMemory]) -> None:
    """Sample every process of the operator, by its pid, until cancelled."""
    while True:
        running = await asyncio.to_thread(world.containers)
        for container in running:
            if (container.namespace, container.container) == (
                NAMESPACE,
                "operator",
            ) and container.pid:
                size = _resident_mib(container.pid)
                if size is not None:
                    process = processes.setdefault(container.pid, ProcessMemory(container.pod))
                    process.samples.append((time.monotonic(), size))
        await asyncio.sleep(EVERY_SECONDS)


def _resident_mib(pid: int) -> float | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    lines = (line.split() for line in status.splitlines() if line.startswith("VmRSS"))
    return next((int(kilobytes) / 1024 for _, kilobytes, _ in lines), None)
