"""What a running operator uses and says of itself."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from world import World

_TICK = os.sysconf("SC_CLK_TCK")
_LINE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)", re.MULTILINE)
METRICS_PORT = 8080


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorProcess:
    """One operator's process, with those that it started."""

    pid: int
    address: str
    scrape_headers: Mapping[str, str]

    def cpu_seconds(self) -> float:
        return sum(_cpu(pid) for pid in self._pids())

    def rss_mib(self) -> float:
        return sum(_rss_kib(pid) for pid in self._pids()) / 1024

    async def metrics(self) -> dict[str, float]:
        """Samples by name, with the labels where there are any; empty while it does not answer."""
        url = f"https://{self.address}:{METRICS_PORT}/metrics"
        try:
            async with (
                aiohttp.ClientSession(headers=self.scrape_headers) as session,
                session.get(url, ssl=False) as response,
            ):
                text = await response.text()
        except aiohttp.ClientError:
            return {}
        return {
            f"{name}{{{labels}}}" if labels else name: float(value)
            for name, labels, value in _LINE.findall(text)
        }

    def _pids(self) -> Iterator[int]:
        yield self.pid
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        yield from map(int, children.read_text().split() if children.exists() else ())


def running(world: World) -> OperatorProcess | None:
    """The operator that runs now."""
    for container in world.containers():
        if container.container == "operator" and container.pid is not None:
            return OperatorProcess(
                pid=container.pid,
                address=container.address,
                scrape_headers=world.scrape_headers(),
            )
    return None


def quantile(before: dict[str, float], after: dict[str, float], name: str, share: float) -> float:
    """Upper bound of the histogram's bucket that holds the quantile of what came in between."""
    pattern = re.compile(rf'{name}_bucket{{le="([^"]+)"}}')
    counts = sorted(
        (float(match[1]), value - before.get(key, 0.0))
        for key, value in after.items()
        if (match := pattern.fullmatch(key))
    )
    total = counts[-1][1]
    return next(bound for bound, count in counts if count >= share * total)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _rss_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS")))
