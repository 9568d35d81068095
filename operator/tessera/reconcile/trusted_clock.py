"""The time of day that decisions use, where the clock of the node may step.

Three sources are compared: the wall clock, the `Date` of the API server's latest response, and the
monotonic clock, which goes on from the last time that wall clock and API server agreed on. Of two
that agree, the time is taken.
"""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from tessera.domain.budget.metering import MAX_CLOCK_ERROR
from tessera.ports import Clock, ClockReading

log = logging.getLogger("tessera")


class TrustedClock:
    """A clock that steps only together with the API server or with the monotonic clock."""

    def __init__(
        self,
        wall: Clock,
        monotonic: Callable[[], float],
        server_date: Callable[[], ClockReading | None],
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._server_date = server_date
        self._anchor: ClockReading | None = None
        """The reading from which the monotonic clock goes on."""
        self.error = timedelta()
        """How far the wall clock was ahead at the last reading; zero while it is believed."""

    def __call__(self) -> datetime:
        """Return the current time in UTC."""
        wall = self._wall()
        believed = self._believed(wall)
        error = timedelta() if believed == wall else wall - believed
        if bool(error) != bool(self.error):
            if error:
                log.error(
                    "the clock of this node is %+.0f s off the API server and the monotonic clock "
                    "and is not used; correct the time of the node",
                    error.total_seconds(),
                )
            else:
                log.warning("the clock of this node is right again")
        self.error = error
        return believed

    def _believed(self, wall: datetime) -> datetime:
        monotonic, date = self._monotonic(), self._server_date()
        if date is None:  # before the first response
            return wall
        server = date.after(monotonic)
        if _agree(wall, server):
            self._anchor = ClockReading(wall, monotonic)
            return wall
        # At the start nothing outvotes the API server, which also dates all objects.
        if self._anchor is None:
            self._anchor = ClockReading(server, monotonic)
        continued = self._anchor.after(monotonic)
        return wall if _agree(wall, continued) else continued


def _agree(first: datetime, second: datetime) -> bool:
    return abs(first - second) <= MAX_CLOCK_ERROR
