"""How long one target of a route may take."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.receive.receiver import Received
from tessera.gateway.refusals import RequestError


async def in_time(
    received: Received, answer: Coroutine[Any, Any, None], has_begun: Callable[[], bool]
) -> None:
    """Await the answer of a target within its time-outs.

    Raises RequestError with status 504, and what the answer raises.
    """
    routed = received.routed
    assert routed is not None  # noqa: S101 - every call has a target
    limits, loop, first = routed.timeouts, asyncio.get_running_loop(), None
    try:
        async with asyncio.timeout(_seconds(limits.total)) as total:
            if limits.first_token is not None:

                def expect_begun() -> None:
                    if not has_begun():
                        total.reschedule(loop.time())

                first = loop.call_later(limits.first_token.total_seconds(), expect_begun)
            await answer
    except TimeoutError:
        raise RequestError(RequestReason.TARGET_TIMEOUT, routed.target) from None
    finally:
        if first is not None:
            first.cancel()


def _seconds(limit: timedelta | None) -> float | None:
    return None if limit is None else limit.total_seconds()
