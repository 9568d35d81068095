from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.batch_runner.answers import parts
from tessera.batch_runner.answers.parts import AnsweredEntry, SentEntry, UnsentEntry

STAMP = "0123456789ab"


def an_answer(row: int, *, good: bool = True, text: str = "yes") -> bytes:
    line = f'{{"id":"{parts.line_id(STAMP, row)}","custom_id":"{text}"}}'.encode()
    return parts.encode_answered(row, line, good=good, prompt=3, output=4)


LINES = (
    parts.encode_sent(5, 10, 20),
    parts.encode_sent(5, 10, None),
    parts.encode_unsent(5),
    an_answer(5),
)


def test_lines_are_read_as_they_were_written() -> None:
    read = [parts.read_entry(line, STAMP) for line in LINES]
    assert read[:3] == [SentEntry(5, 10, 20), SentEntry(5, 10, None), UnsentEntry(5)]
    entry = read[3]
    assert isinstance(entry, AnsweredEntry)
    assert entry[:4] == (5, True, 3, 4)
    own = LINES[3][parts.own_line_span(entry.begin, len(LINES[3]))]
    assert own == f'{{"id":"{parts.line_id(STAMP, 5)}","custom_id":"yes"}}'.encode()


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_is_truncated_anywhere_does_not_count(line: bytes) -> None:
    assert [parts.read_entry(line[:end], STAMP) for end in range(len(line))] == [None] * len(line)


@given(st.sampled_from(LINES), st.data(), st.integers(0, 255))
def test_a_line_with_any_wrong_byte_does_not_count(
    line: bytes, data: st.DataObject, byte: int
) -> None:
    position = data.draw(st.integers(0, len(line) - 1))
    wrong = line[:position] + bytes([byte]) + line[position + 1 :]
    assert wrong == line or parts.read_entry(wrong, STAMP) is None


@given(st.binary())
def test_any_bytes_are_no_line(content: bytes) -> None:
    assert parts.read_entry(content, STAMP) is None


def test_the_answer_of_another_input_does_not_count() -> None:
    assert parts.read_entry(an_answer(5), "ba9876543210") is None
    line = b'{"id":"' + parts.line_id(STAMP, 6).encode() + b'"}'
    assert parts.read_entry(parts.encode_answered(5, line, good=True), STAMP) is None


def test_part_files_are_found_by_shard_and_attempt(tmp_path: Path) -> None:
    parts.parts_folder(tmp_path).mkdir()
    for shard, attempt in ((0, 2), (0, 1), (7, 100_000)):
        parts.part_path(tmp_path, shard, attempt).write_bytes(an_answer(shard))
    (parts.parts_folder(tmp_path) / "shard-00000.attempt-00003.jsonl.swp").touch()
    part_files = parts.part_files(tmp_path)
    assert [list(part_files.attempts(shard)) for shard in (0, 1, 7)] == [[1, 2], [], [100_000]]
    with part_files.open(7, 100_000) as part:
        assert part.read() == an_answer(7)
