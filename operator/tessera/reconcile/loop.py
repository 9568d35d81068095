"""The loop that decides when a reconcile cycle is due."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum, auto
from typing import NamedTuple

from tessera.api.api_resource import ApiResource
from tessera.domain.kinds.kinds import (
    ACCELERATOR_POOLS,
    BATCH_INFERENCES,
    INFERENCE_SERVICES,
    TENANT_BUDGETS,
)

# Seconds after which a cycle runs even if nothing changed.
PERIOD = 5.0
# Minimum seconds between two cycles, so that a burst of changes costs one cycle.
MIN_INTERVAL = 0.25
# The loop then idles this many times as long as the cycle computed, so that other tasks get the
# event loop: until somebody edits an object, such as a service, and at most. It matters from some
# hundred services on.
REST_RATIOS = 1.0, 4.0
# The same while much is left to write: a newer plan would not be written sooner, of objects not
# even that of an edit.
STATUSES_REST_RATIOS = 1.0, 30.0
BURST_REST_RATIOS = 10.0, 30.0
MAX_REST, MAX_BURST_REST = 2.0, 10.0
# The operator writes only the statuses of these, and its own writes wake nothing.
_EDITED = frozenset(
    kind.plural
    for kind in (INFERENCE_SERVICES, BATCH_INFERENCES, ACCELERATOR_POOLS, TENANT_BUDGETS)
)


class Rest(NamedTuple):
    """For how many seconds the loop idles after a cycle."""

    shortest: float = 0.0
    longest: float = 0.0
    """Unless somebody edits an object, or in a burst all but few objects are written."""
    is_burst: bool = False


class Backlog(Enum):
    """Of what so much is left to write that it takes some seconds."""

    NONE = auto()
    STATUSES = auto()
    OBJECTS = auto()
    """A burst."""


def rest_after(cpu_seconds: float, backlog: Backlog) -> Rest:
    """Return the rest after a cycle that took so much CPU time."""
    ratios = _RATIOS[backlog]
    most = MAX_REST if backlog is Backlog.NONE else MAX_BURST_REST
    shortest, longest = (min(most, ratio * cpu_seconds) for ratio in ratios)
    return Rest(shortest, longest, backlog is Backlog.OBJECTS)


_RATIOS = {
    Backlog.NONE: REST_RATIOS,
    Backlog.STATUSES: STATUSES_REST_RATIOS,
    Backlog.OBJECTS: BURST_REST_RATIOS,
}


class Wakes:
    """What asks for a cycle."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._edited = asyncio.Event()
        self._written = asyncio.Event()

    def change(self) -> None:
        """Ask for a cycle after the rest."""
        self._changed.set()

    def observe(self, kind: ApiResource) -> None:
        """Ask for a cycle since an object changed, without a long rest if a user wrote it."""
        if kind.plural in _EDITED:
            self._edited.set()
        self._changed.set()

    def end_burst(self) -> None:
        """Ask for a cycle since all but few objects are written."""
        self._written.set()
        self._changed.set()

    def clear(self) -> None:
        for event in (self._changed, self._edited, self._written):
            event.clear()

    async def wait(self, rest: Rest, period: float) -> None:
        """Wait through the rest, and then until a change or `period`."""
        await asyncio.sleep(rest.shortest)
        with suppress(TimeoutError):
            async with asyncio.timeout(rest.longest - rest.shortest):
                await (self._written if rest.is_burst else self._edited).wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(period - rest.longest):
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
        shortest, longest, is_burst = await reconcile()
        rest = Rest(max(min_interval, shortest), max(min_interval, longest), is_burst)
        await wakes.wait(rest, period)
