"""The only module that reads the time of day, and the clocks of a process."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


def now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)  # noqa: TID251 - this is the clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """What a part of a process reads the time from; a test passes other functions."""

    utc: Callable[[], datetime] = now
    time_ns: Callable[[], int] = time.time_ns
    """Unix time."""
    monotonic: Callable[[], float] = time.monotonic
    monotonic_ns: Callable[[], int] = time.monotonic_ns
    """The same in nanoseconds."""
    thread_time: Callable[[], float] = time.thread_time
    """Seconds for which the thread computed."""


CLOCK = Clock()


def seconds_since_boot(read: Callable[[int], float] = time.clock_gettime) -> float:
    """Return seconds that never go back, and that go on while the machine is suspended."""
    # Not on every platform: elsewhere a process that was suspended leads until its next request.
    return read(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
