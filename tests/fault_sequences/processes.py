"""Processes under one simulated clock, each an event loop that is stepped from outside.

A process that is killed runs no `finally`, and one that is frozen goes on later, as after SIGKILL
and SIGSTOP. Time passes only while no process has anything left to do.
"""

import asyncio
import os
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from typing_extensions import TypeVarTuple, Unpack, override

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
# How long a thread of a process may work before it is looked at again, in real seconds.
_THREAD_POLL_SECONDS = 0.02


@dataclass(slots=True)
class SimulatedClock:
    """Seconds since the start."""

    now: float = 0.0


class _PollingSelector(selectors.DefaultSelector):
    """Never blocks, but for the threads of its loop."""

    threads = 0
    had_events = False

    @override
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        del timeout
        events = super().select(_THREAD_POLL_SECONDS if self.threads else 0)
        self.had_events = bool(events)
        return events


class ProcessLoop(asyncio.SelectorEventLoop):
    """An event loop on the simulated clock; `run_ready` steps it."""

    _ready: list[object]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, clock: SimulatedClock) -> None:
        self.polling_selector = _PollingSelector()
        self._simulated_clock = clock
        super().__init__(self.polling_selector)

    @override
    def time(self) -> float:
        return self._simulated_clock.now

    @override
    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[_Ts]], _T], *args: *_Ts
    ) -> "asyncio.Future[_T]":
        future = super().run_in_executor(executor, func, *args)
        self.polling_selector.threads += 1
        future.add_done_callback(self._end_thread)
        return future

    def _end_thread(self, _future: "asyncio.Future[Any]") -> None:
        self.polling_selector.threads -= 1

    def run_ready(self) -> bool:
        """Run what is due now, once; return whether there was anything."""
        due = bool(self._ready) or self.next_timer() <= self.time()
        self.stop()
        self.run_forever()
        selector = self.polling_selector
        return due or selector.had_events or bool(selector.threads) or bool(self._ready)

    def next_timer(self) -> float:
        """Return when the next timer is due; infinity without one."""
        timers = [handle.when() for handle in self._scheduled if not handle.cancelled()]
        return min(timers, default=float("inf"))


@dataclass(slots=True, eq=False)
class SimulatedProcess:
    """One process; `main` is its program, and what that returns its exit code."""

    name: str
    loop: ProcessLoop
    task: "asyncio.Task[int]"
    frozen: bool = False
    killed: bool = False

    @property
    def ended(self) -> bool:
        return self.killed or self.task.done()

    @property
    def exit_code(self) -> int:
        """Return its exit code: 137 when it was killed, 1 after an error."""
        if self.killed:
            return 137
        return 1 if self.task.exception() else self.task.result()

    def kill(self) -> None:
        """End it at once; the kernel closes its sockets."""
        if self.ended:
            return
        self.killed = True
        self.close_sockets()

    def close_sockets(self) -> None:
        for key in list(self.loop.polling_selector.get_map().values()):
            with suppress(OSError):
                os.close(key.fd)


@dataclass(slots=True)
class ProcessTable:
    """All processes; the ones that ended stay in it, so that nothing of them is finalized."""

    clock: SimulatedClock = field(default_factory=SimulatedClock)
    processes: list[SimulatedProcess] = field(default_factory=list)

    def start(self, name: str, main: Coroutine[Any, Any, int]) -> SimulatedProcess:
        loop = ProcessLoop(self.clock)
        loop.set_exception_handler(lambda _loop, _context: None)
        process = SimulatedProcess(name, loop, loop.create_task(main))
        self.processes.append(process)
        return process

    def run_until(self, at: float) -> None:
        """Run all processes until this time."""
        while True:
            self.run_ready()
            due = min((process.loop.next_timer() for process in self._running()), default=at)
            if due >= at:
                self.clock.now = max(self.clock.now, at)
                return
            self.clock.now = max(self.clock.now, due)

    def run_ready(self) -> None:
        """Run everything that needs no time to pass."""
        while any([process.loop.run_ready() for process in self._running()]):
            pass

    def _running(self) -> list[SimulatedProcess]:
        return [process for process in self.processes if not (process.ended or process.frozen)]
