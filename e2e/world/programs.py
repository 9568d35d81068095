"""The programs beside a world, each of which a test may end, start, pause and resume."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from world.child_processes import ChildProcess, spawn
from world.errors import WorldError


class Programs:
    """What runs just now; one that ends by itself ends the world."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._arguments: dict[str, Sequence[str]] = {}
        self._running: dict[str, ChildProcess] = {}
        self._changed = asyncio.Event()

    @property
    def running(self) -> Sequence[ChildProcess]:
        return tuple(self._running.values())

    async def add(self, programs: dict[str, list[str]]) -> None:
        for name, arguments in programs.items():
            self._arguments[name] = arguments
            await self.start(name)

    async def start(self, name: str) -> None:
        """Run it, with the arguments that it had; what runs already goes on."""
        if name not in self._arguments:
            raise WorldError(f"no program is named {name}")
        if name not in self._running:
            self._running[name] = await spawn(name, self._arguments[name], self._logs)
            self._changed.set()

    async def end(self, name: str) -> None:
        """SIGKILL, and wait until it is gone."""
        child = self._running.pop(name, None)
        if child is None:
            raise WorldError(f"no program {name} runs")
        self._changed.set()
        await child.end()

    def pause(self, name: str) -> None:
        """Send SIGSTOP: it keeps its connections, and answers no request."""
        self._signal(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self._signal(name, signal.SIGCONT)

    async def watch(self) -> None:
        """Raise as soon as a program has ended by itself."""
        while True:
            tasks = [asyncio.create_task(child.process.wait()) for child in self.running]
            tasks.append(asyncio.create_task(self._wait_for_change()))
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
            for child in self.running:
                child.check()

    async def _wait_for_change(self) -> int:
        await self._changed.wait()
        self._changed.clear()
        return 0

    def _signal(self, name: str, number: signal.Signals) -> None:
        if name not in self._running:
            raise WorldError(f"no program {name} runs")
        self._running[name].process.send_signal(number)


@contextlib.asynccontextmanager
async def programs(logs: Path) -> AsyncIterator[Programs]:
    """At the end of the block all of them are ended, the last first."""
    running_programs = Programs(logs)
    try:
        yield running_programs
    finally:
        for child in reversed(running_programs.running):
            await child.end()
