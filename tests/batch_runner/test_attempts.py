"""Any sequence of attempts, truncated at any byte, gives every row exactly once."""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.batch_runner.answers import parts
from tessera.batch_runner.answers.assemble import ResultSink, assemble
from tessera.batch_runner.answers.ledger import Ledger, replay
from tessera.batch_runner.errors import StoppedError, TransientError
from tessera.batch_runner.heartbeat import WorkHeartbeat
from tessera.batch_runner.input.manifest import InputManifest, Shard

ROWS_OF_A_SHARD = 3
PULSE = WorkHeartbeat(lambda: 0.0)


@dataclass
class MemoryParts:
    """Implements `Parts` in memory."""

    contents: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def attempts(self, shard: int) -> Sequence[int]:
        return sorted(attempt for number, attempt in self.contents if number == shard)

    def open(self, shard: int, attempt: int) -> BinaryIO:
        return io.BytesIO(self.contents[shard, attempt])

    def append(self, shard: int, attempt: int, content: bytes) -> None:
        self.contents[shard, attempt] = self.contents.get((shard, attempt), b"") + content


def a_manifest(rows: int) -> InputManifest:
    shards = tuple(
        Shard(first_row=first, offset=0, rows=min(ROWS_OF_A_SHARD, rows - first))
        for first in range(0, rows, ROWS_OF_A_SHARD)
    )
    return InputManifest(
        rows=rows,
        bytes=0,
        sha256="0123456789ab" + "0" * 52,
        url="/v1/completions",
        input_tokens=0,
        max_tokens=0,
        shards=shards,
    )


def an_answer(manifest: InputManifest, row: int, attempt: int, *, good: bool) -> bytes:
    line = f'{{"id":"{parts.line_id(manifest.input_id, row)}","row":{row},"of":{attempt}}}'
    return parts.encode_answered(row, line.encode(), good=good, prompt=1, output=2)


def assemble_results(
    manifest: InputManifest, ledger: Ledger, part_files: MemoryParts
) -> tuple[bytes, bytes]:
    good, bad = io.BytesIO(), io.BytesIO()
    sinks = {True: ResultSink(good), False: ResultSink(bad)}
    assemble(manifest, ledger, part_files, sinks.__getitem__, PULSE)
    assert sinks[True].result_file("x").rows == ledger.counts().completed
    return good.getvalue(), bad.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptPlan:
    """The work of an attempt before its files are truncated."""

    order: int
    """Seed of the order in which rows end."""
    answers: int
    written_shares: Sequence[float]
    """The share of each part file that is written."""
    resumes: bool
    """The rest appears later, as from a runner that was only unreachable."""


PLANS = st.lists(
    st.builds(
        AttemptPlan,
        order=st.integers(0, 2**16),
        answers=st.integers(0, 12),
        written_shares=st.lists(st.floats(0, 1), min_size=4, max_size=4),
        resumes=st.booleans(),
    ),
    max_size=5,
)


def _part_files_of(
    manifest: InputManifest, ledger: Ledger, attempt: int, plan: AttemptPlan
) -> dict[int, bytes]:
    """Return the part files that an attempt would leave if nothing were truncated."""
    written: defaultdict[int, bytes] = defaultdict(bytes)
    waiting = [row for row in range(manifest.rows) if not ledger.is_answered(row)]
    waiting.sort(key=lambda row: (row * 7919 + plan.order) % 104_729)
    for number, row in enumerate(waiting):
        shard = row // ROWS_OF_A_SHARD
        written[shard] += parts.encode_sent(row, 5, 10)
        if number < plan.answers:
            good = (row + plan.order) % 4 != 0
            written[shard] += an_answer(manifest, row, attempt, good=good)
    return written


@given(st.integers(1, 12), PLANS)
def test_every_row_comes_exactly_once_whatever_was_truncated(
    rows: int, plans: list[AttemptPlan]
) -> None:
    manifest, part_files, late = a_manifest(rows), MemoryParts(), list[tuple[int, int, bytes]]()
    for attempt, plan in enumerate(plans, start=1):
        ledger = replay(manifest, part_files, PULSE)
        for shard, content in sorted(_part_files_of(manifest, ledger, attempt, plan).items()):
            length = round(len(content) * plan.written_shares[shard])
            part_files.append(shard, attempt, content[:length])
            if plan.resumes:
                late.append((shard, attempt, content[length:]))
    last = len(plans) + 1
    ledger = replay(manifest, part_files, PULSE)
    everything = AttemptPlan(order=0, answers=rows, written_shares=[1.0] * 4, resumes=False)
    for shard, content in _part_files_of(manifest, ledger, last, everything).items():
        part_files.append(shard, last, content)
    ledger = replay(manifest, part_files, PULSE)
    for shard, attempt, content in late:
        part_files.append(shard, attempt, content)
    good, bad = assemble_results(manifest, ledger, part_files)
    ids = [line.split(b'"')[3].decode() for line in (good + bad).splitlines()]
    assert sorted(ids) == [parts.line_id(manifest.input_id, row) for row in range(rows)]
    assert good.splitlines() == sorted(good.splitlines())
    assert bad.splitlines() == sorted(bad.splitlines())


def test_a_row_that_was_answered_is_not_sent_again_and_one_that_was_sent_counts_as_resent() -> None:
    manifest, part_files = a_manifest(4), MemoryParts()
    part_files.append(
        0,
        1,
        parts.encode_sent(0, 5, 10) + parts.encode_sent(1, 5, 10) + parts.encode_sent(2, 5, None),
    )
    part_files.append(0, 1, an_answer(manifest, 0, 1, good=True) + parts.encode_unsent(1))
    ledger = replay(manifest, part_files, PULSE)
    counts = ledger.counts()
    assert [ledger.is_answered(row) for row in range(4)] == [True, False, False, False]
    assert (counts.completed, counts.failed, counts.resent_rows) == (1, 0, 1)
    assert counts.resent_tokens == 5 + 2, "the mean answer stands for the limit that row 2 lacks"


def test_the_answer_of_the_earliest_attempt_wins_and_the_other_counts_as_resent() -> None:
    manifest, part_files = a_manifest(1), MemoryParts()
    for attempt in (2, 1):
        part_files.append(0, attempt, parts.encode_sent(0, 5, 10))
        part_files.append(0, attempt, an_answer(manifest, 0, attempt, good=attempt == 1))
    ledger = replay(manifest, part_files, PULSE)
    good, bad = assemble_results(manifest, ledger, part_files)
    assert (b'"of":1' in good, bad) == (True, b"")
    assert (ledger.counts().resent_rows, ledger.counts().resent_tokens) == (1, 15)


def test_an_answer_that_vanished_after_the_replay_is_a_transient_error() -> None:
    manifest, part_files = a_manifest(1), MemoryParts()
    part_files.append(0, 1, an_answer(manifest, 0, 1, good=True))
    ledger = replay(manifest, part_files, PULSE)
    part_files.contents[0, 1] = b""
    with pytest.raises(TransientError, match="no longer has the answer of row 1"):
        assemble_results(manifest, ledger, part_files)


def test_a_replay_stops_on_request() -> None:
    with pytest.raises(StoppedError):
        replay(a_manifest(1), MemoryParts(), WorkHeartbeat(lambda: 0.0, lambda: True))
