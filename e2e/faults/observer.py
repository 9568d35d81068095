"""Samples a scene twice a second: floors, streams, taints and devices."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp

from demo.cluster import Json
from faults.layout_fleet import FLOORS, LayoutFleet
from tessera.domain.observed.node_layout import TAINT
from world.api import ApiError
from world.testing import is_ready

_SAMPLE_SECONDS = 0.5
_SERVICE = "tessera.dev/service"


@dataclass(slots=True)
class FleetObserver:
    """What was wrong at some moment, and a log of what changed."""

    fleet: LayoutFleet
    findings: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    excused: set[str] = field(default_factory=set)
    """Services that a fault took capacity from, until they have their floors again."""
    worked_on: set[str] = field(default_factory=set)
    """Nodes that were in work at some moment."""
    _begin: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    _last: str = ""

    async def sample(self) -> None:
        try:
            await self.fleet.look()
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            self.note(f"no sample: {error!r}")
            return
        self.worked_on.update(self.fleet.nodes_in_work())
        ready = self._ready()
        for service, floor in FLOORS.items():
            if ready[service] >= floor:
                self.excused.discard(service)
            elif service not in self.excused:
                self._find(f"{service} has {ready[service]} ready of {floor}")
        if (current := self._describe(ready)) != self._last:
            self._last = current
            self.note(current)

    def note(self, text: str) -> None:
        self.log.append(f"{asyncio.get_running_loop().time() - self._begin:6.1f} s {text}")

    def end_findings(self) -> list[str]:
        """Return what is neither as planned nor clean."""
        layout_ready = self.fleet.layout_ready
        findings = []
        if layout_ready.get("reason") != "AsPlanned":
            findings.append(f"{layout_ready.get('reason')}: {layout_ready.get('message')}")
        if not self.worked_on:
            # Between the change of the pool and its first plan, nothing has happened yet.
            findings.append("no node was in work")
        ready = self._ready()
        findings += [
            f"{service} has {ready[service]} ready of {floor} at the end"
            for service, floor in FLOORS.items()
            if ready[service] < floor
        ]
        for node in self.fleet.nodes:
            findings += self._node_findings(node)
        return findings

    def _node_findings(self, node: Json) -> list[str]:
        name = node["metadata"]["name"]
        findings = []
        if name in self.fleet.nodes_in_work():
            findings.append(f"{name} is left with the taint")
        if name in self.fleet.stopped_plugins():
            findings.append(f"{name} is left without its device plugin")
        offered = self.fleet.offered_slices(node)
        slices = Counter(
            piece["profile"] for gpu in self.fleet.gpus[name] for piece in gpu["slices"]
        )
        if offered != slices:
            findings.append(f"{name} offers {offered} and has the slices {dict(slices)}")
        return findings

    def _ready(self) -> Counter[str]:
        return Counter(
            pod["metadata"]["labels"][_SERVICE]
            for pod in self.fleet.pods
            if is_ready(pod) and "deletionTimestamp" not in pod["metadata"]
        )

    def _describe(self, ready: Counter[str]) -> str:
        nodes = []
        for node in self.fleet.nodes:
            taints = [taint["key"] for taint in node["spec"].get("taints", ())]
            marks = ("tainted " if TAINT in taints else "") + str(self.fleet.offered_slices(node))
            nodes.append(f"{node['metadata']['name']} {marks}")
        reason = self.fleet.layout_ready.get("reason")
        message = self.fleet.layout_ready.get("message")
        return f"{reason} {dict(sorted(ready.items()))} {'; '.join(nodes)}: {message}"

    def _find(self, finding: str) -> None:
        if finding not in self.findings:
            self.findings.append(finding)
            self.note(finding)


@contextlib.asynccontextmanager
async def observing(fleet: LayoutFleet) -> AsyncIterator[FleetObserver]:
    """Sample until the block ends."""
    observer = FleetObserver(fleet)
    await observer.sample()

    async def sample_forever() -> None:
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            await observer.sample()

    task = asyncio.create_task(sample_forever())
    try:
        yield observer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
