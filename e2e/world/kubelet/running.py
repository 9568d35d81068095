"""One start of a container while it runs: its hooks, its probes and its gentle end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from world.api import Json
from world.kubelet import handlers, probes
from world.kubelet.handlers import Target
from world.kubelet.instances import ContainerInstance
from world.kubelet.launch import ContainerContext, Launch
from world.kubelet.waits import first

HOOK_SECONDS = 600
# What is left of the grace after a preStop hook that used it all up.
LEAST_GRACE_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """An instance with all that looks after it."""

    pod: Json
    context: ContainerContext
    launch: Launch
    instance: ContainerInstance

    async def run_hooks_and_probes(self, ready: Callable[[bool], None]) -> None:
        """Hook and probes for as long as the instance lives.

        `ready` is called first when the container counts as started, and on each change after.
        """
        if not await self._post_start():
            return
        if not await self._passes("startupProbe"):
            return
        ready("readinessProbe" not in self.context.container)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._passes("livenessProbe", for_ever=True))
            group.create_task(self._readiness(ready))

    async def end(self, grace: float) -> None:
        """Run the preStop hook, then SIGTERM, and SIGKILL when the grace is over."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.record_event("Killing", f"Stopping container {self.context.name}")
        if grace and (hook := self._hook("preStop")):
            await first(handlers.run(hook, self.target, grace), self.instance.ended())
        self.instance.terminate()
        left = max(grace - (loop.time() - began), LEAST_GRACE_SECONDS if grace else 0)
        await first(self.instance.ended(), asyncio.sleep(left))
        self.instance.kill()
        await self.instance.ended()

    def record_event(self, reason: str, message: str, *, warning: bool = False) -> None:
        self.context.host.machine.events.record(self.pod, reason, message, warning=warning)

    @property
    def target(self) -> Target:
        machine = self.context.host.machine
        ports = self.context.container.get("ports", [])
        return Target(
            address=self.context.address,
            ports={port["name"]: port["containerPort"] for port in ports if "name" in port},
            env=self.launch.env,
            folder=self.launch.folder,
            rewrite=self.launch.rewrite,
            session=machine.session,
            sessions=machine.sessions,
        )

    async def _post_start(self) -> bool:
        hook = self._hook("postStart")
        problem = await handlers.run(hook, self.target, HOOK_SECONDS) if hook else None
        if problem:
            self.record_event("FailedPostStartHook", problem, warning=True)
            await self.end(self.grace)
        return not problem

    async def _passes(self, kind: str, *, for_ever: bool = False) -> bool:
        """Whether a startup or liveness probe passes; if not, the instance is ended."""
        probe = self.context.container.get(kind)
        if probe is None:
            return True
        async for passed in self._verdicts(kind, probe):
            if not passed:
                await self.end(probe.get("terminationGracePeriodSeconds") or self.grace)
                return False
            if not for_ever:
                break
        return True

    async def _readiness(self, ready: Callable[[bool], None]) -> None:
        probe = self.context.container.get("readinessProbe")
        if probe is not None:
            async for passed in self._verdicts("readinessProbe", probe):
                ready(passed)

    def _verdicts(self, kind: str, probe: Json) -> AsyncIterator[bool]:
        timing, target = probes.probe_timing(probe), self.target
        label = kind.removesuffix("Probe").capitalize()

        async def ask() -> bool:
            problem = await handlers.run(handlers.probe_handler(probe), target, timing.timeout)
            if problem:
                self.record_event("Unhealthy", f"{label} probe failed: {problem}", warning=True)
            return problem is None

        return probes.verdicts(timing, ask)

    @property
    def grace(self) -> float:
        return float(self.pod["spec"].get("terminationGracePeriodSeconds", 30))

    def _hook(self, kind: str) -> Json | None:
        hook: Json | None = (self.context.container.get("lifecycle") or {}).get(kind)
        return hook
