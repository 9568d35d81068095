"""Resident memory of the operator's processes over time, and how fast it grows."""

import asyncio
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from demo.stage import NAMESPACE
from world import World

EVERY_SECONDS = 10.0
# A young process still fills its caches.
WARM_UP_SECONDS = 120.0
_TEN_MINUTES = 600.0


@dataclass(slots=True)
class Life:
    """One process from its start to its end."""

    pod: str
    samples: list[tuple[float, float]] = field(default_factory=list)
    """Seconds and MiB."""

    @property
    def seconds(self) -> float:
        return self.samples[-1][0] - self.samples[0][0]

    @property
    def warm(self) -> list[tuple[float, float]]:
        begun = self.samples[0][0]
        return [one for one in self.samples if one[0] - begun >= WARM_UP_SECONDS]

    def slope(self) -> float | None:
        """MiB in ten minutes by least squares; None for a life too short to say."""
        if len(self.warm) < 3:
            return None
        moments, sizes = zip(*self.warm, strict=True)
        return float(statistics.linear_regression(moments, sizes).slope) * _TEN_MINUTES


async def watch(world: World, lives: dict[int, Life]) -> None:
    """Sample every process of the operator, by its pid, until cancelled."""
    while True:
        running = await asyncio.to_thread(world.containers)
        for one in running:
            if (one.namespace, one.container) == (NAMESPACE, "operator") and one.pid:
                size = _resident(one.pid)
                if size is not None:
                    life = lives.setdefault(one.pid, Life(one.pod))
                    life.samples.append((time.monotonic(), size))
        await asyncio.sleep(EVERY_SECONDS)


def _resident(pid: int) -> float | None:
    try:
        told = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    lines = (line.split() for line in told.splitlines() if line.startswith("VmRSS"))
    return next((int(kilobytes) / 1024 for _, kilobytes, _ in lines), None)
