"""Heartbeat of long work: progress in the log, and a stop on SIGTERM."""

import logging
from collections.abc import Callable

from tessera.batch_runner.errors import StoppedError

log = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS = 10.0
STOP_MESSAGE = "received SIGTERM; the next attempt continues from here"


class WorkHeartbeat:
    """Logs progress every ten seconds and interrupts work that calls `beat` often."""

    def __init__(
        self,
        clock: Callable[[], float],
        stopped: Callable[[], bool] = lambda: False,
        record_movement: Callable[[], None] = lambda: None,
    ) -> None:
        self._record_movement = record_movement
        self._clock = clock
        self._stopped = stopped
        self._due = clock() + LOG_INTERVAL_SECONDS

    def beat(self, message: str, *figures: object) -> None:
        """Log the message if ten seconds have passed; raise StoppedError if the work must stop."""
        self._record_movement()
        if self._stopped():
            raise StoppedError(STOP_MESSAGE)
        now = self._clock()
        if now >= self._due:
            self._due = now + LOG_INTERVAL_SECONDS
            log.info(message, *figures)
