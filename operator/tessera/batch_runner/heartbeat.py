"""Heartbeat of long work: progress in the log, and a stop on SIGTERM."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from tessera.batch_runner.errors import StoppedError

log = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS = 10.0
STOP_MESSAGE = "received SIGTERM; the next attempt continues from here"


@dataclass(slots=True)
class WorkHeartbeat:
    """Logs progress every ten seconds and interrupts work that calls `beat` often."""

    clock: Callable[[], float]
    stopped: Callable[[], bool] = lambda: False
    record_movement: Callable[[], None] = lambda: None
    _due: float = field(init=False)

    def __post_init__(self) -> None:
        self._due = self.clock() + LOG_INTERVAL_SECONDS

    def beat(self, message: str, *figures: object) -> None:
        """Log the message if ten seconds have passed; raise StoppedError if the work must stop."""
        self.record_movement()
        if self.stopped():
            raise StoppedError(STOP_MESSAGE)
        now = self.clock()
        if now >= self._due:
            self._due = now + LOG_INTERVAL_SECONDS
            log.info(message, *figures)
