"""The ledger of a batch: which attempt answered each row, and what was paid twice.

The first intact answer of a row wins: that of the earliest attempt with a part file when this
attempt started, else its own. Later writes of a stale attempt change nothing.
"""

from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.batch_runner.answers import parts
from tessera.batch_runner.answers.parts import AnsweredEntry, AttemptParts, Entry, SentEntry
from tessera.batch_runner.heartbeat import WorkHeartbeat
from tessera.batch_runner.input.manifest import InputManifest
from tessera.batch_runner.input.rows import clamp_tokens


@dataclass(slots=True, kw_only=True)
class BatchCounts:
    """Counts of the whole batch over all attempts so far."""

    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    resent_rows: int = 0
    """Requests that were repeated because their answer was lost."""
    resent_tokens: int = 0
    """An estimate: an answer without max_tokens counts as the mean answer."""

    @property
    def done(self) -> int:
        """Rows with an answer or an error."""
        return self.completed + self.failed


class Ledger:
    """The winning attempt of every row and its tokens, in twelve bytes per row."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._winners = array("I", bytes(4 * rows))
        self._prompts = array("I", bytes(4 * rows))
        self._outputs = array("I", bytes(4 * rows))
        self._counts = BatchCounts()
        # Repaid rows without max_tokens.
        self._resent_unlimited = 0

    def counts(self) -> BatchCounts:
        """Return the counts as they are now; later records do not change them."""
        counts = self._counts
        mean = counts.output_tokens / counts.completed if counts.completed else 0
        resent_tokens = counts.resent_tokens + round(self._resent_unlimited * mean)
        return replace(counts, resent_tokens=resent_tokens)

    def is_answered(self, row: int) -> bool:
        return self._winners[row] != 0

    def winner(self, row: int) -> int:
        """Return the attempt whose answer counts; 0 while the row has none."""
        return self._winners[row]

    def tokens(self, row: int) -> tuple[int, int]:
        """Return the tokens of the prompt and of the answer that counts; 0 without one."""
        return self._prompts[row], self._outputs[row]

    def record_answer(self, attempt: int, entry: AnsweredEntry) -> None:
        """Record an answer; only the first of a row counts."""
        if self._winners[entry.row]:
            return
        self._winners[entry.row] = attempt
        # Part files may be those of a runner that clamped nothing.
        prompt = self._prompts[entry.row] = clamp_tokens(entry.prompt_tokens)
        output = self._outputs[entry.row] = clamp_tokens(entry.output_tokens)
        self._counts.prompt_tokens += prompt
        self._counts.output_tokens += output
        self._counts.completed += entry.good
        self._counts.failed += not entry.good

    def record_resent(self, sent: SentEntry) -> None:
        """Record a request whose answer was lost, so that it is sent again."""
        self._counts.resent_rows += 1
        self._counts.resent_tokens += sent.prompt_tokens + clamp_tokens(sent.max_tokens)
        self._resent_unlimited += sent.max_tokens is None


def replay(manifest: InputManifest, part_files: AttemptParts, heartbeat: WorkHeartbeat) -> Ledger:
    """Build the ledger from all part files."""
    ledger = Ledger(manifest.rows)
    for number, shard in enumerate(manifest.shards):
        heartbeat.beat("%s of %s rows replayed", shard.first_row, manifest.rows)
        rows = range(shard.first_row, shard.first_row + shard.rows)
        sendings: defaultdict[int, list[SentEntry]] = defaultdict(list)
        for attempt in part_files.attempts(number):
            with part_files.open(number, attempt) as part:
                for line in part:
                    entry = parts.read_entry(line, manifest.input_id)
                    if entry is not None and entry.row in rows:
                        _apply_entry(ledger, attempt, entry, sendings[entry.row])
        _count_lost(ledger, sendings)
    return ledger


def _apply_entry(ledger: Ledger, attempt: int, entry: Entry, sendings: list[SentEntry]) -> None:
    if isinstance(entry, AnsweredEntry):
        ledger.record_answer(attempt, entry)
    elif isinstance(entry, SentEntry):
        sendings.append(entry)
    elif sendings:
        sendings.pop()


def _count_lost(ledger: Ledger, sendings: Mapping[int, Sequence[SentEntry]]) -> None:
    # One request of an answered row was worth its price; without an answer none was.
    for row, row_sendings in sendings.items():
        for sending in row_sendings[1:] if ledger.is_answered(row) else row_sendings:
            ledger.record_resent(sending)
