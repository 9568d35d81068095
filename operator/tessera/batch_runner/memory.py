"""Bounds the memory of rows in flight, whatever their size."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

MAX_BYTES = 64 * 2**20


class MemoryLimiter:
    """Lets rows in while they fit; a row larger than the whole room goes alone."""

    def __init__(self, size: int = MAX_BYTES) -> None:
        self._size = size
        self._used = 0
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def reserve(self, size: int) -> AsyncIterator[None]:
        """Wait for room and keep it for as long as the block runs."""
        while self._used and self._used + size > self._size:
            self._freed.clear()
            await self._freed.wait()
        self._used += size
        try:
            yield
        finally:
            self._used -= size
            self._freed.set()
