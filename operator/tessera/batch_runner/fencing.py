"""Only the current attempt publishes."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Protocol

from tessera.batch_runner.errors import FencedError, TransientError
from tessera.domain.batch.names import BATCH_ACCOUNT
from tessera.ports import NotFoundError

log = logging.getLogger(__name__)

_POLL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class FenceTimeout:
    """How long the fence is asked, and how long between two questions."""

    seconds: float
    interval: float = _POLL_SECONDS


# Before anything is paid: an attempt that could never publish ends soon.
START_TIMEOUT = FenceTimeout(120)
# With all rows paid for, a longer outage of the API server is waited for.
PUBLISH_TIMEOUT = FenceTimeout(900)


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


async def wait_until_current(fence: Fence, attempt: int, timeout: FenceTimeout) -> None:  # noqa: ASYNC109
    """Wait until the fence says that this attempt is the current one; TroubleError at the limit."""
    try:
        async with asyncio.timeout(timeout.seconds):
            while not await refuse_stale(fence, attempt):
                log.warning("cannot be sure yet to be the current attempt; asking again")
                await asyncio.sleep(timeout.interval)
    except TimeoutError as error:
        raise TransientError(
            f"the API server did not say within {timeout.seconds:.0f} s that attempt {attempt} is "
            "the current one, and only that one publishes; all rows are kept. The pod needs egress "
            f"to the API server (NetworkPolicies) and the RoleBinding {BATCH_ACCOUNT} of its "
            "namespace"
        ) from error
