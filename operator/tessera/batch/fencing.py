"""Only the current attempt publishes."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Protocol

from tessera.batch.errors import FencedError, TroubleError
from tessera.domain.batch.names import BATCH_ACCOUNT
from tessera.ports import NotFoundError

log = logging.getLogger(__name__)

_ASK_AGAIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Limit:
    """How long the fence is asked, and how long between two questions."""

    seconds: float
    pause: float = _ASK_AGAIN_SECONDS


FIRST = Limit(120)
"""Before anything is paid: an attempt that could never publish ends soon."""
LAST = Limit(900)
"""With all rows paid for, a longer outage of the API server is waited for."""


class Fence(Protocol):
    """Knows which attempt is the current one."""

    async def current(self) -> int | None:
        """The current attempt; None when it cannot be asked, GoneError when there is no batch."""


async def refuse_stale(fence: Fence, attempt: int) -> bool:
    """FencedError if a newer attempt is current; is this one?"""
    try:
        current = await fence.current()
    except NotFoundError as error:
        raise FencedError(f"{error}; nothing is published") from error
    if current is not None and current > attempt:
        raise FencedError(f"attempt {current} has taken over; this one publishes nothing")
    return current == attempt


async def hold(fence: Fence, attempt: int, limit: Limit) -> None:
    """Wait until the fence says that this attempt is the current one; TroubleError at the limit."""
    try:
        async with asyncio.timeout(limit.seconds):
            while not await refuse_stale(fence, attempt):
                log.warning("cannot be sure yet to be the current attempt; asking again")
                await asyncio.sleep(limit.pause)
    except TimeoutError as error:
        raise TroubleError(
            f"the API server did not say within {limit.seconds:.0f} s that attempt {attempt} is "
            "the current one, and only that one publishes; all rows are kept. The pod needs egress "
            f"to the API server (NetworkPolicies) and the RoleBinding {BATCH_ACCOUNT} of its "
            "namespace"
        ) from error
