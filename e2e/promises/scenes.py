"""The scenes, and the stage on which they play at the same time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeAlias

from anyio.from_thread import BlockingPortal

from demo.cluster import InstalledCluster
from promises import capacity, release, serving, tenants
from promises.installation import create_namespace
from scenarios.actions import ScenarioNamespace
from world import World
from world.api import Api

Scene: TypeAlias = Callable[[ScenarioNamespace], Awaitable[None]]
_LONGEST_SECONDS = 900
SCENES: dict[str, Scene] = {
    "serve": serving.serve,
    "scale": serving.scale,
    "sleep": serving.sleep_and_wake,
    "tier": capacity.move_between_tiers,
    "repartition": capacity.repartition,
    "batch": capacity.lose_a_batch_node,
    "gateway": tenants.use_keys,
    "budget": tenants.limit_spend,
    "upgrade": release.upgrade,
}


@dataclass(frozen=True, slots=True)
class Stage:
    """Scenes that play on one world, each in a namespace of its own."""

    portal: BlockingPortal
    world: World
    api: Api
    results: dict[str, Future[str]] = field(default_factory=dict)
    """What each scene saw, with the seconds since the first one began."""
    _begun: float = field(default_factory=time.monotonic)

    def play(self, name: str, scene: Scene) -> Future[str]:
        self.results[name] = self.portal.start_task_soon(self._play, name, scene)
        return self.results[name]

    async def _play(self, name: str, scene: Scene) -> str:
        lines: list[str] = []

        def say(text: str) -> None:
            lines.append(f"[{name} {time.monotonic() - self._begun:5.1f} s] {text}")

        cluster = InstalledCluster(self.world, self.api, say)
        try:
            async with asyncio.timeout(_LONGEST_SECONDS):
                await scene(await create_namespace(cluster, name))
        except Exception as error:
            say("it failed")
            error.add_note("\n".join(lines))
            raise
        say("it holds")
        return "\n".join(lines)
