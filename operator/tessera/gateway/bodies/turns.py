"""Turns of the event loop, so that large bodies leave it to others in between."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

# Smaller ones take 2 ms at most.
LARGE_BYTES = 2**18

_T = TypeVar("_T")


class Turns:
    """What is done with large bodies: one thing at a time, at most half of the time together."""

    def __init__(self, thread_time: Callable[[], float], large_bytes: int = LARGE_BYTES) -> None:
        """Take the seconds for which this thread computed, and what is no large body."""
        self._thread_time, self._large_bytes = thread_time, large_bytes
        self._lock = asyncio.Lock()

    async def take(self, size: int, step: Callable[[], _T]) -> _T:
        """Do a step with so many bytes, after others that wait for it; at once if they are few."""
        if size <= self._large_bytes:
            return step()
        async with self._lock:
            began = self._thread_time()
            try:
                return step()
            finally:
                await asyncio.sleep(self._thread_time() - began)
