"""Programs that a world runs beside itself: etcd, the control plane, Prometheus."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from world.errors import WorldError
from world.lifetimes import dies_with_parent

TAIL_BYTES = 1500
# Percentage for Go programs: collecting a quarter as often saves a fifth of the API server's CPU.
GARBAGE_COLLECTION = "400"
LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class ChildProcess:
    name: str
    process: asyncio.subprocess.Process
    log: Path

    def check(self) -> None:
        """Raise, with the last words of the program, when it has ended."""
        if (code := self.process.returncode) is not None:
            raise WorldError(
                f"{self.name} ended with {code}; the end of {self.log}:\n{self._tail()}"
            )

    def _tail(self) -> str:
        return self.log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()

    async def end(self) -> None:
        """Nothing of a world outlives it, so nothing needs a graceful end."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


async def spawn(name: str, arguments: Sequence[str], logs: Path) -> ChildProcess:
    """Start a program in a session of its own, so that Ctrl-C reaches the supervisor alone."""
    log = logs / f"{name}.log"
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={"PATH": os.defpath, "HOME": str(logs), "GOGC": GARBAGE_COLLECTION},
            start_new_session=True,
            preexec_fn=dies_with_parent(),
        )
    return ChildProcess(name, process, log)


async def until(
    ready: Callable[[], Awaitable[bool]],
    children: Sequence[ChildProcess],
    *,
    what: str,
    seconds: float,
) -> None:
    """Wait for a state of the children, and no longer than the first of them lives."""
    try:
        async with asyncio.timeout(seconds):
            while not await ready():
                for child in children:
                    child.check()
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError as error:
        logs = ", ".join(str(child.log) for child in children)
        raise WorldError(f"{what} did not happen within {seconds:.0f} s; logs: {logs}") from error
