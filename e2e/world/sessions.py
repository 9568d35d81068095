"""The supervisor's end of the pipe to the janitor."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from world.folders import HERE

STDIN = 0


@dataclass(frozen=True, slots=True)
class Janitor:
    """Learns of every session of processes, since it may have to end them."""

    _pipe: asyncio.StreamWriter

    def opened(self, leader: int) -> None:
        self._pipe.write(f"+{leader}\n".encode())

    def closed(self, leader: int) -> None:
        self._pipe.write(f"-{leader}\n".encode())


@asynccontextmanager
async def janitor(homes: Path, *, lifeline: bool) -> AsyncIterator[Janitor]:
    """A janitor for containers whose homes are in a folder.

    It has a session of its own; with a lifeline it watches our standard input too.
    """
    arguments = [str(os.getpid()), f"{homes}/"]
    inherited: tuple[int, ...] = ()
    if lifeline:
        copy = os.dup(STDIN)
        arguments, inherited = [*arguments, str(copy)], (copy,)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-S", "-P", str(HERE / "janitor.py")),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        pass_fds=inherited,
        start_new_session=True,
    )
    for copy in inherited:
        os.close(copy)
    assert process.stdin is not None
    try:
        yield Janitor(process.stdin)
    finally:
        process.stdin.close()
        await process.wait()
