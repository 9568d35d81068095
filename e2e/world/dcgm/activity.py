"""How busy the engine on a device is."""

import asyncio
import re
from dataclasses import dataclass, field

import aiohttp

from world.api import Json
from world.kubelet.devices import Holder

TIMEOUT = aiohttp.ClientTimeout(total=0.5)
ENGINE_PORT = 8000


@dataclass(frozen=True, slots=True)
class Reading:
    """Seconds with a step in progress since the engine's start, and when they were read."""

    busy_seconds: float
    at: float


@dataclass(slots=True)
class Meter:
    """Follows the engine of one pod."""

    base: str
    activity: float = 0.0
    """Share of the time since the reading before with a step in progress."""
    _last: Reading | None = None
    _has_counter: bool = True

    async def sample(self, session: aiohttp.ClientSession) -> None:
        try:
            if self._has_counter:
                self._has_counter = await self._from_counter(session)
            if not self._has_counter:
                await self._from_metrics(session)
        except (OSError, aiohttp.ClientError, TimeoutError):
            self._last, self.activity = None, 0.0

    async def _from_counter(self, session: aiohttp.ClientSession) -> bool:
        """The simulator counts its busy seconds; anything else has no such page."""
        async with session.get(f"{self.base}/sim/busy", timeout=TIMEOUT) as response:
            if response.status == 404:
                return False
            busy_seconds = (await response.json())["busy_seconds"]
        reading = Reading(busy_seconds, asyncio.get_running_loop().time())
        self.activity = share(self._last, reading)
        self._last = reading
        return True

    async def _from_metrics(self, session: aiohttp.ClientSession) -> None:
        """A real engine on the CPU shows only whether requests run."""
        async with session.get(f"{self.base}/metrics", timeout=TIMEOUT) as response:
            running = re.findall(
                r"^vllm:num_requests_running\S* (\S+)", await response.text(), re.M
            )
        self.activity = float(any(float(value) > 0 for value in running))


@dataclass(slots=True)
class Meters:
    """The meters of one node, by the pod that is followed."""

    session: aiohttp.ClientSession
    _known: dict[tuple[Holder, str], Meter] = field(default_factory=dict)

    async def sample(self, engines: dict[Holder, str]) -> dict[Holder, float]:
        """One reading of every engine; given are their base URLs."""
        self._known = {key: self._known.get(key) or Meter(key[1]) for key in engines.items()}
        async with asyncio.TaskGroup() as group:
            for meter in self._known.values():
                group.create_task(meter.sample(self.session))
        return {holder: meter.activity for (holder, _), meter in self._known.items()}


def share(before: Reading | None, now: Reading) -> float:
    """Busy share between two readings; 0 when there is nothing to compare with."""
    if before is None or now.at <= before.at or now.busy_seconds < before.busy_seconds:
        return 0.0
    return min((now.busy_seconds - before.busy_seconds) / (now.at - before.at), 1.0)


def engine_url(pod: Json, container: str, address: str) -> str:
    """Where the engine answers: the port named http, or the first, or vLLM's own."""
    container_spec = next(spec for spec in pod["spec"]["containers"] if spec["name"] == container)
    ports = container_spec.get("ports", [])
    named = [port["containerPort"] for port in ports if port.get("name") == "http"]
    number = (named or [port["containerPort"] for port in ports] or [ENGINE_PORT])[0]
    return f"http://{address}:{number}"
