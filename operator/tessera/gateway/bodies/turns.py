"""Turns of the event loop, so that large bodies leave it to others in between."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

# Smaller ones take 2 ms at most.
LARGE_BYTES = 2**18

_T = TypeVar("_T")


class Turns:
    """What is done with large bodies: one thing at a time, at most half of the time together."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def take(self, size: int, step: Callable[[], _T]) -> _T:
        """Do a step with so many bytes, after others that wait for it; at once if they are few."""
        if size <= LARGE_BYTES:
            return step()
        async with self._lock:
            began = time.thread_time()
            try:
                return step()
            finally:
                await asyncio.sleep(time.thread_time() - began)
