"""Any sequence of attempts, cut at any byte, gives every row exactly once."""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.batch_runner import parts
from tessera.batch_runner.assemble import ResultSink, assemble
from tessera.batch_runner.errors import StoppedError, TransientError
from tessera.batch_runner.heartbeat import WorkHeartbeat
from tessera.batch_runner.ledger import Ledger, replay
from tessera.batch_runner.manifest import InputManifest, Shard

ROWS_OF_A_SHARD = 3
PULSE = WorkHeartbeat(lambda: 0.0)


@dataclass
class MemoryParts:
    """`Parts` in memory."""

    found: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def attempts(self, shard: int) -> Sequence[int]:
        return sorted(attempt for number, attempt in self.found if number == shard)

    def open(self, shard: int, attempt: int) -> BinaryIO:
        return io.BytesIO(self.found[shard, attempt])

    def append(self, shard: int, attempt: int, content: bytes) -> None:
        self.found[shard, attempt] = self.found.get((shard, attempt), b"") + content


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
    told = f'{{"id":"{parts.line_id(manifest.input_id, row)}","row":{row},"of":{attempt}}}'
    return parts.encode_answered(row, told.encode(), good=good, prompt=1, output=2)


def assembled(manifest: InputManifest, ledger: Ledger, found: MemoryParts) -> tuple[bytes, bytes]:
    good, bad = io.BytesIO(), io.BytesIO()
    sinks = {True: ResultSink(good), False: ResultSink(bad)}
    assemble(manifest, ledger, found, sinks.__getitem__, PULSE)
    assert sinks[True].result_file("x").rows == ledger.counts().completed
    return good.getvalue(), bad.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an attempt does before it is cut."""

    order: int
    """Seed of the order in which rows end."""
    answers: int
    cuts: Sequence[float]
    """How much of each part file is kept."""
    wakes: bool
    """Later, what was cut off appears after all, as from a runner that was only out of sight."""


PLANS = st.lists(
    st.builds(
        Plan,
        order=st.integers(0, 2**16),
        answers=st.integers(0, 12),
        cuts=st.lists(st.floats(0, 1), min_size=4, max_size=4),
        wakes=st.booleans(),
    ),
    max_size=5,
)


def _worked(manifest: InputManifest, ledger: Ledger, attempt: int, plan: Plan) -> dict[int, bytes]:
    """The part files that an attempt would leave if nothing were cut."""
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
def test_every_row_comes_exactly_once_whatever_was_cut(rows: int, plans: list[Plan]) -> None:
    manifest, found, late = a_manifest(rows), MemoryParts(), list[tuple[int, int, bytes]]()
    for attempt, plan in enumerate(plans, start=1):
        ledger = replay(manifest, found, PULSE)
        for shard, content in sorted(_worked(manifest, ledger, attempt, plan).items()):
            kept = round(len(content) * plan.cuts[shard])
            found.append(shard, attempt, content[:kept])
            if plan.wakes:
                late.append((shard, attempt, content[kept:]))
    last = len(plans) + 1
    ledger = replay(manifest, found, PULSE)
    everything = Plan(order=0, answers=rows, cuts=[1.0] * 4, wakes=False)
    for shard, content in _worked(manifest, ledger, last, everything).items():
        found.append(shard, last, content)
    ledger = replay(manifest, found, PULSE)
    for shard, attempt, content in late:
        found.append(shard, attempt, content)
    good, bad = assembled(manifest, ledger, found)
    ids = [line.split(b'"')[3].decode() for line in (good + bad).splitlines()]
    assert sorted(ids) == [parts.line_id(manifest.input_id, row) for row in range(rows)]
    assert good.splitlines() == sorted(good.splitlines())
    assert bad.splitlines() == sorted(bad.splitlines())


def test_a_row_that_was_answered_is_not_asked_again_and_one_that_was_sent_counts_as_repaid() -> (
    None
):
    manifest, found = a_manifest(4), MemoryParts()
    found.append(
        0,
        1,
        parts.encode_sent(0, 5, 10) + parts.encode_sent(1, 5, 10) + parts.encode_sent(2, 5, None),
    )
    found.append(0, 1, an_answer(manifest, 0, 1, good=True) + parts.encode_unsent(1))
    ledger = replay(manifest, found, PULSE)
    counts = ledger.counts()
    assert [ledger.is_answered(row) for row in range(4)] == [True, False, False, False]
    assert (counts.completed, counts.failed, counts.resent_rows) == (1, 0, 1)
    assert counts.resent_tokens == 5 + 2, "the mean answer stands for the limit that row 2 lacks"


def test_the_answer_of_the_earliest_attempt_wins_and_the_other_was_paid_in_vain() -> None:
    manifest, found = a_manifest(1), MemoryParts()
    for attempt in (2, 1):
        found.append(0, attempt, parts.encode_sent(0, 5, 10))
        found.append(0, attempt, an_answer(manifest, 0, attempt, good=attempt == 1))
    ledger = replay(manifest, found, PULSE)
    good, bad = assembled(manifest, ledger, found)
    assert (b'"of":1' in good, bad) == (True, b"")
    assert (ledger.counts().resent_rows, ledger.counts().resent_tokens) == (1, 15)


def test_an_answer_that_vanished_after_the_replay_is_trouble() -> None:
    manifest, found = a_manifest(1), MemoryParts()
    found.append(0, 1, an_answer(manifest, 0, 1, good=True))
    ledger = replay(manifest, found, PULSE)
    found.found[0, 1] = b""
    with pytest.raises(TransientError, match="no longer has the answer of row 1"):
        assembled(manifest, ledger, found)


def test_a_replay_ends_when_it_is_told_to() -> None:
    with pytest.raises(StoppedError):
        replay(a_manifest(1), MemoryParts(), WorkHeartbeat(lambda: 0.0, lambda: True))
