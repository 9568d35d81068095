"""The usage records of a worker that its supervisor does not have yet."""

import logging
from collections.abc import Callable, Iterable, Sequence

from tessera.domain.gateway.requests import Phase, UsageRecord
from tessera.gateway.frames import UsageBatch, UsageTaken
from tessera.gateway.journal import UsageJournal

log = logging.getLogger("tessera.gateway")

# About 50 MB, or some minutes of a busy worker without its supervisor.
_MAX_WAITING_RECORDS = 100_000
# Seconds of a busy worker. The supervisor has room for as much of six workers without a store.
_MAX_UNWRITTEN_RECORDS = 5_000


class UsageOutbox:
    """Sends records until they are taken, some perhaps twice: each has an id of its own."""

    def __init__(
        self, send: Callable[[UsageBatch], None], journal: UsageJournal | None = None
    ) -> None:
        self._send = send
        self._journal = journal
        self._records: list[UsageRecord] = []
        self._batches: dict[int, UsageBatch] = {}
        self._waiting = 0
        self._sent = 0
        self.dropped = 0
        """Records that were given up since the supervisor did not take them."""

    @property
    def has_room(self) -> bool:
        """Return whether new requests may begin: what is not recorded is not granted."""
        return self._waiting < _MAX_UNWRITTEN_RECORDS

    def add(self, record: UsageRecord) -> None:
        """Send a record with the next batch."""
        if self._waiting == _MAX_WAITING_RECORDS:
            self.dropped += 1
            return
        self._waiting += 1
        self._records.append(record)
        if record.phase is not Phase.REFUSED:
            self._note(lambda journal: journal.add(record))

    def note_begun(self, record: UsageRecord) -> None:
        """Keep that an engine got a request, in case this process is killed."""
        self._note(lambda journal: journal.add(record))

    def note_running(self, records: Sequence[UsageRecord]) -> None:
        """Keep what the requests that run used so far; what the supervisor has is dropped."""
        oldest = min(self._batches, default=self._sent + 1 if self._records else None)
        self._note(lambda journal: journal.note_running(records, oldest))

    def close(self) -> None:
        """Delete the journal, unless the supervisor lacks something."""
        if self.empty:
            self._note(UsageJournal.close)

    def flush(self) -> None:
        """Send what was added since the last time."""
        if not self._records:
            return
        self._sent += 1
        batch = self._batches[self._sent] = UsageBatch(self._sent, self._records)
        self._records = []
        number = self._sent
        self._note(lambda journal: journal.sent(number))
        self._send(batch)

    def taken(self, answer: UsageTaken) -> None:
        """Forget a batch."""
        batch = self._batches.pop(answer.number, None)
        if batch is not None:
            self._waiting -= len(batch.records)

    def greeting(self) -> Iterable[UsageBatch]:
        """Return what a new supervisor may not have."""
        return tuple(self._batches.values())

    def _note(self, write: Callable[[UsageJournal], None]) -> None:
        """Write into the journal; without a volume that takes it, requests go on."""
        if self._journal is None:
            return
        try:
            write(self._journal)
        except OSError as error:
            self._journal = None
            log.error("usage is lost if this process is killed: its journal failed: %s", error)

    @property
    def empty(self) -> bool:
        """Return whether the supervisor has everything."""
        return self._waiting == 0
