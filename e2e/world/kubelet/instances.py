"""One start of a container: a process with all its children, or a coroutine of this process."""

import asyncio
import contextlib
import contextvars
import os
import signal
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from world.errors import WorldError
from world.janitor import kill_tree
from world.kubelet import logs
from world.lifetimes import dies_with_parent

KILLED = 128 + signal.SIGKILL
AFTERLIFE_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a coroutine container is started with."""

    arguments: tuple[str, ...]
    host: str
    env: Mapping[str, str]
    node: str
    stop: asyncio.Event
    """Set when the container is asked to end, as SIGTERM asks a process."""


Serve = Callable[[Call], Awaitable[None]]


class Sessions(Protocol):
    """Hears which process sessions exist, so that none is left when this process is killed."""

    def opened(self, leader: int) -> None: ...

    def closed(self, leader: int) -> None: ...


class ContainerInstance(Protocol):
    """A started container."""

    @property
    def pid(self) -> int | None: ...

    async def ended(self) -> int:
        """The exit code, as the API gives it; any number of tasks may wait."""
        ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...

    def freeze(self, *, frozen: bool) -> None:
        """SIGSTOP, or SIGCONT; `WorldError` for a coroutine, which takes no signal."""
        ...


class ProcessInstance:
    """A process that leads a session of its own; when it ends, so does all that it started."""

    def __init__(
        self, process: asyncio.subprocess.Process, home: str | None, sessions: Sessions
    ) -> None:
        self._process = process
        self._home = home
        self._sessions = sessions
        self._end = asyncio.create_task(self._wait())

    @property
    def pid(self) -> int | None:
        return self._process.pid

    async def ended(self) -> int:
        return await asyncio.shield(self._end)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def freeze(self, *, frozen: bool) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # ended, and perhaps not heard of yet
            self._process.send_signal(number)

    async def _wait(self) -> int:
        code = await self._process.wait()
        kill_tree({self._process.pid}, self._home)
        self._sessions.closed(self._process.pid)
        return code if code >= 0 else 128 - code


async def start_process(
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    folder: Path,
    log: Path,
    sessions: Sessions,
    home: str | None = None,
) -> ProcessInstance:
    """With a home that no other process has, even its daemons are found at the end."""
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            cwd=folder,
            env=dict(env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=dies_with_parent(),
        )
    sessions.opened(process.pid)
    return ProcessInstance(process, home, sessions)


class CoroutineInstance:
    """A coroutine that is asked to stop by its event, and killed by cancelling it."""

    pid: int | None = None

    def __init__(self, serve: Serve, call: Call, log: Path) -> None:
        self._call = call
        self._sink = log.open("ab")
        self._end: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        context = contextvars.copy_context()
        context.run(logs.write_here, self._sink)
        self._task = asyncio.create_task(_guarded(serve, call), context=context)
        self._task.add_done_callback(self._done)

    async def ended(self) -> int:
        return await asyncio.shield(self._end)

    def terminate(self) -> None:
        self._call.stop.set()

    def kill(self) -> None:
        """The coroutine may close its sockets, but is not waited for much longer than a process."""
        self._task.cancel()
        asyncio.get_running_loop().call_later(AFTERLIFE_SECONDS, self._finish, KILLED)

    def freeze(self, *, frozen: bool) -> None:
        del frozen
        raise WorldError("a coroutine of the world takes no signal; ask the simulator to freeze")

    def _done(self, task: asyncio.Task[int]) -> None:
        if task.cancelled():
            self._finish(KILLED)
        elif error := task.exception():
            self._sink.write("".join(traceback.format_exception(error)).encode())
            self._finish(1)
        else:
            self._finish(task.result())
        self._sink.close()

    def _finish(self, code: int) -> None:
        if not self._end.done():
            self._end.set_result(code)


async def _guarded(serve: Serve, call: Call) -> int:
    """An exit inside a task would end the event loop, and with it the world."""
    try:
        await serve(call)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
