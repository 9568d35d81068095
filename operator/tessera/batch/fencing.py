"""Only the current attempt publishes."""

import asyncio
import logging
from typing import Protocol

from tessera.batch.errors import FencedError
from tessera.ports import GoneError

log = logging.getLogger(__name__)

_ASK_AGAIN_SECONDS = 2.0


class Fence(Protocol):
    """Knows which attempt is the current one."""

    async def current(self) -> int | None:
        """The current attempt; None when it cannot be asked, GoneError when there is no batch."""


async def refuse_stale(fence: Fence, attempt: int) -> bool:
    """FencedError if a newer attempt is current; is this one?"""
    try:
        current = await fence.current()
    except GoneError as error:
        raise FencedError(f"{error}; nothing is published") from error
    if current is not None and current > attempt:
        raise FencedError(f"attempt {current} has taken over; this one publishes nothing")
    return current == attempt


async def hold(fence: Fence, attempt: int, pause: float = _ASK_AGAIN_SECONDS) -> None:
    """Wait until the fence says that this attempt is the current one."""
    while not await refuse_stale(fence, attempt):
        log.warning("cannot be sure yet to be the current attempt; asking again")
        await asyncio.sleep(pause)
