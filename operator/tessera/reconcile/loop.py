"""When a turn is due."""

import asyncio
import time
from collections.abc import Awaitable, Callable

# Seconds after which a turn comes even if nothing happened.
PERIOD = 5.0
# Seconds between two turns at least, so that a burst costs one.
MIN_INTERVAL = 0.25
# So many times as long as a turn computed nothing is computed, so that others get the loop; it
# matters from a thousand services on.
REST_RATIO = 4.0
MAX_REST = 1.0


async def run_loop(
    changed: asyncio.Event,
    reconcile: Callable[[], Awaitable[None]],
    *,
    period: float = PERIOD,
    min_interval: float = MIN_INTERVAL,
) -> None:
    """Run turns for ever: at once on the first change, bursts gathered, and on every tick.

    The event is cleared before the turn, or a change during the turn would be lost.
    """
    while True:
        changed.clear()
        started = time.thread_time()
        await reconcile()
        rest = max(min_interval, min(MAX_REST, REST_RATIO * (time.thread_time() - started)))
        await asyncio.sleep(rest)
        try:
            async with asyncio.timeout(period - rest):
                await changed.wait()
        except TimeoutError:
            continue
