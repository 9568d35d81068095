"""The processes of one gateway: each is started again when it ends."""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

log = logging.getLogger("tessera")

_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.1, 10.0
# Who ran for so long is started again at once.
_HEALTHY_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayCommands:
    """What the processes run."""

    supervisor: Sequence[str]
    worker: Sequence[str]
    workers: int


class ChildProcess:
    """One process, started again with a growing pause until it is stopped."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._name = name
        self._command = command
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def stop(self, seconds: float) -> None:
        """Ask it to end, and end it by force after so many seconds."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        done, _ = await asyncio.wait((self._task,), timeout=seconds)
        if not done:
            log.warning("%s did not end within %g s", self._name, seconds)
            self._signal(signal.SIGKILL)
        await self._task

    async def _run(self) -> None:
        pause, clock = _MIN_PAUSE_SECONDS, asyncio.get_running_loop().time
        while not self._stopping.is_set():
            started = clock()
            self._process = await asyncio.create_subprocess_exec(
                *self._command, env=self._environment
            )
            code = await self._process.wait()
            if self._stopping.is_set():
                return
            if clock() - started >= _HEALTHY_SECONDS:
                pause = _MIN_PAUSE_SECONDS
            log.error("%s ended with %d, starting it again in %g s", self._name, code, pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)


async def keep_running(
    commands: GatewayCommands,
    environment: Mapping[str, str],
    stop: asyncio.Event,
    drain_seconds: float,
) -> None:
    """Run all processes until `stop` is set, then drain them.

    Workers end first, when their streams have ended or `drain_seconds` are over, and the supervisor
    last, since it takes their usage records.
    """
    supervisor = ChildProcess("supervisor", commands.supervisor, environment)
    workers = [
        ChildProcess(f"worker {number}", commands.worker, environment)
        for number in range(commands.workers)
    ]
    await stop.wait()
    await asyncio.gather(*(worker.stop(drain_seconds) for worker in workers))
    await supervisor.stop(_SUPERVISOR_SECONDS)


# For the last usage records.
_SUPERVISOR_SECONDS = 20.0


def python_module(module: str, *arguments: str) -> Sequence[str]:
    """Return the command that runs a module with this interpreter."""
    return (sys.executable, "-P", "-m", module, *arguments)
