"""The only module that reads the time of day, and the clock by which a process leads."""

import time
from collections.abc import Callable
from datetime import UTC, datetime


def now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)  # noqa: TID251 - this is the clock


def seconds_since_boot(read: Callable[[int], float] = time.clock_gettime) -> float:
    """Return seconds that never go back, and that go on while the machine is suspended."""
    # Not on every platform: elsewhere a process that was suspended leads until its next request.
    return read(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
