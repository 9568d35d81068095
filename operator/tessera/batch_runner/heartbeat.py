"""Long work shows that it goes on, and ends when it is told to."""

import logging
from collections.abc import Callable

from tessera.batch_runner.errors import StoppedError

log = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS = 10.0
STOP_MESSAGE = "told to stop; the next attempt goes on from here"


class WorkHeartbeat:
    """For work that asks often: a line in the log every ten seconds, and the end on demand."""

    def __init__(
        self, clock: Callable[[], float], stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._clock = clock
        self._stopped = stopped
        self._due = clock() + LOG_INTERVAL_SECONDS

    def beat(self, message: str, *figures: object) -> None:
        """Log this, if it is time; StoppedError if the work should end."""
        if self._stopped():
            raise StoppedError(STOP_MESSAGE)
        now = self._clock()
        if now >= self._due:
            self._due = now + LOG_INTERVAL_SECONDS
            log.info(message, *figures)
