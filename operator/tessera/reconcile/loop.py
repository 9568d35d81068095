"""The loop that decides when a reconcile cycle is due."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

from tessera.resources.api_resources import (
    ACCELERATOR_POOLS,
    BATCH_INFERENCES,
    INFERENCE_SERVICES,
    TENANT_BUDGETS,
    ApiResource,
)

# Seconds after which a cycle runs even if nothing changed.
PERIOD = 5.0
# Minimum seconds between two cycles, so that a burst of changes costs one cycle.
MIN_INTERVAL = 0.25
# The loop then idles this many times as long as the cycle computed, so that other tasks get the
# event loop; it matters from some hundred services on.
REST_RATIO = 4.0
# The same until somebody edits an object, such as a service: that is not waited for so long.
EDIT_REST_RATIO = 1.0
# While more is to be written than at a time: the next plan would not be written sooner.
BURST_REST_RATIO = 10.0
MAX_REST = 2.0
# The operator writes only the statuses of these, and its own writes wake nobody.
_EDITED = frozenset(
    kind.plural
    for kind in (INFERENCE_SERVICES, BATCH_INFERENCES, ACCELERATOR_POOLS, TENANT_BUDGETS)
)


class Rest(NamedTuple):
    """For how many seconds the loop idles after a cycle, and at least, until an edit."""

    seconds: float = 0.0
    until_edit: float = 0.0


def rest_after(cpu_seconds: float, *, is_burst: bool) -> Rest:
    """Return the rest after a cycle that took so much CPU time."""
    if is_burst:
        return Rest(BURST_REST_RATIO * cpu_seconds, BURST_REST_RATIO * cpu_seconds)
    return Rest(REST_RATIO * cpu_seconds, EDIT_REST_RATIO * cpu_seconds)


class Wakes:
    """What asks for a cycle."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._edited = asyncio.Event()

    def change(self) -> None:
        """Ask for a cycle after the rest."""
        self._changed.set()

    def observe(self, kind: ApiResource) -> None:
        """Ask for a cycle since an object changed, without a long rest if a user wrote it."""
        if kind.plural in _EDITED:
            self._edited.set()
        self._changed.set()

    def clear(self) -> None:
        self._changed.clear()
        self._edited.clear()

    async def wait(self, shortest: float, rest: float, period: float) -> None:
        """Wait `shortest` seconds, until an edit or `rest`, and until a change or `period`."""
        await asyncio.sleep(shortest)
        with suppress(TimeoutError):
            async with asyncio.timeout(rest - shortest):
                await self._edited.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(period - rest):
                await self._changed.wait()


async def run_loop(
    wakes: Wakes,
    reconcile: Callable[[], Awaitable[Rest]],
    *,
    period: float = PERIOD,
    min_interval: float = MIN_INTERVAL,
) -> None:
    """Run cycles forever: at once on the first change, once per burst, and every `period`."""
    # The wakes are cleared before the cycle, or a change during the cycle would be lost.
    while True:
        wakes.clear()
        shortest, rest = sorted(
            max(min_interval, min(MAX_REST, seconds)) for seconds in await reconcile()
        )
        await wakes.wait(shortest, rest, period)
