"""The loop that decides when a reconcile cycle is due."""

import asyncio
from collections.abc import Awaitable, Callable

# Seconds after which a cycle runs even if nothing changed.
PERIOD = 5.0
# Minimum seconds between two cycles, so that a burst of changes costs one cycle.
MIN_INTERVAL = 0.25
# The loop then idles this many times as long as the cycle computed, so that other tasks get the
# event loop; it matters from some hundred services on.
REST_RATIO = 4.0
# While more is to be written than at a time: cycles do not wait for writes, and the plans of a
# burst need no more than a tenth of a core.
BURST_REST_RATIO = 10.0
MAX_REST = 2.0


async def run_loop(
    changed: asyncio.Event,
    reconcile: Callable[[], Awaitable[float]],
    *,
    period: float = PERIOD,
    min_interval: float = MIN_INTERVAL,
) -> None:
    """Run cycles forever: at once on the first change, once per burst, and every `period`.

    `reconcile` returns the seconds for which the loop idles.
    """
    # The event is cleared before the cycle, or a change during the cycle would be lost.
    while True:
        changed.clear()
        rest = max(min_interval, min(MAX_REST, await reconcile()))
        await asyncio.sleep(rest)
        try:
            async with asyncio.timeout(period - rest):
                await changed.wait()
        except TimeoutError:
            continue
