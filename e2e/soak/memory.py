"""Resident memory of the operator's processes over time, and how fast it grows."""

import asyncio
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.cluster import NAMESPACE
from world import World

EVERY_SECONDS = 10.0
# A young process still fills its caches.
WARM_UP_SECONDS = 120.0
_TEN_MINUTES, _HOUR = 600.0, 3600.0


@dataclass(slots=True)
class ProcessMemory:
    """One process from its start to its end."""

    pod: str
    samples: list[tuple[float, float]] = field(default_factory=list)
    """Seconds and MiB."""

    @property
    def seconds(self) -> float:
        return self.samples[-1][0] - self.samples[0][0]

    def slope(self) -> float | None:
        """MiB in ten minutes by least squares; None for a life too short to say."""
        begun = self.samples[0][0]
        warm = [sample for sample in self.samples if sample[0] - begun >= WARM_UP_SECONDS]
        return None if len(warm) < 3 else _slope(warm) * _TEN_MINUTES

    def since(self, moment: float) -> "ProcessMemory":
        """The same process from a moment on."""
        return ProcessMemory(self.pod, [sample for sample in self.samples if sample[0] >= moment])

    def quarters(self) -> list[list[tuple[float, float]]]:
        """The samples in four parts of the same length."""
        count = len(self.samples)
        return [self.samples[count * part // 4 : count * (part + 1) // 4] for part in range(4)]


def memory_at_rest(processes: list[ProcessMemory]) -> dict[str, Any]:
    """MiB in each quarter of a time without faults, and the growth in an hour after the first.

    Of the process that grew most of those that were there all the time.
    """
    longest = max((len(process.samples) for process in processes), default=0)
    if longest < 12:
        return {}
    whole = [process for process in processes if len(process.samples) > 0.9 * longest]
    growth, steepest = max(
        (
            (_slope(process.samples[len(process.samples) // 4 :]) * _HOUR, process)
            for process in whole
        ),
        key=lambda grown: grown[0],
    )
    sizes = [[size for _, size in quarter] for quarter in steepest.quarters()]
    return {
        "rss_mib_quarters_at_rest": [round(statistics.fmean(quarter), 1) for quarter in sizes],
        "rss_mib_per_hour_at_rest": round(growth, 2),
    }


def _slope(samples: list[tuple[float, float]]) -> float:
    moments, sizes = zip(*samples, strict=True)
    return float(statistics.linear_regression(moments, sizes).slope)


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
