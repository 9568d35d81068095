"""When a turn is due."""

import asyncio
from collections.abc import Awaitable, Callable

PERIOD = 5.0
"""Seconds after which a turn comes even if nothing happened."""
GATHER = 0.25
"""Seconds between two turns at least, so that a burst costs one."""


async def loop(
    changed: asyncio.Event,
    turn: Callable[[], Awaitable[None]],
    *,
    period: float = PERIOD,
    gather: float = GATHER,
) -> None:
    """Run turns for ever: at once on the first change, bursts gathered, and on every tick.

    The event is cleared before the turn, or a change during the turn would be lost.
    """
    while True:
        changed.clear()
        await turn()
        await asyncio.sleep(gather)
        try:
            async with asyncio.timeout(period - gather):
                await changed.wait()
        except TimeoutError:
            continue
