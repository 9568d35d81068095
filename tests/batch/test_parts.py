from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.batch import parts
from tessera.batch.parts import Answered, Sent, Unsent

STAMP = "0123456789ab"


def an_answer(row: int, *, good: bool = True, text: str = "yes") -> bytes:
    line = f'{{"id":"{parts.line_id(STAMP, row)}","custom_id":"{text}"}}'.encode()
    return parts.answered(row, line, good=good, prompt=3, output=4)


LINES = (parts.sent(5, 10, 20), parts.sent(5, 10, None), parts.unsent(5), an_answer(5))


def test_lines_are_read_as_they_were_written() -> None:
    read = [parts.read(line, STAMP) for line in LINES]
    assert read[:3] == [Sent(5, 10, 20), Sent(5, 10, None), Unsent(5)]
    entry = read[3]
    assert isinstance(entry, Answered)
    assert entry[:4] == (5, True, 3, 4)
    own = LINES[3][parts.own_line(entry.begin, len(LINES[3]))]
    assert own == f'{{"id":"{parts.line_id(STAMP, 5)}","custom_id":"yes"}}'.encode()


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_is_cut_anywhere_does_not_count(line: bytes) -> None:
    assert [parts.read(line[:end], STAMP) for end in range(len(line))] == [None] * len(line)


@given(st.sampled_from(LINES), st.data(), st.integers(0, 255))
def test_a_line_with_any_wrong_byte_does_not_count(
    line: bytes, data: st.DataObject, byte: int
) -> None:
    place = data.draw(st.integers(0, len(line) - 1))
    wrong = line[:place] + bytes([byte]) + line[place + 1 :]
    assert wrong == line or parts.read(wrong, STAMP) is None


@given(st.binary())
def test_any_bytes_are_no_line(content: bytes) -> None:
    assert parts.read(content, STAMP) is None


def test_the_answer_of_another_input_does_not_count() -> None:
    assert parts.read(an_answer(5), "ba9876543210") is None
    line = b'{"id":"' + parts.line_id(STAMP, 6).encode() + b'"}'
    assert parts.read(parts.answered(5, line, good=True), STAMP) is None


def test_part_files_are_found_by_shard_and_attempt(tmp_path: Path) -> None:
    parts.folder_of(tmp_path).mkdir()
    for shard, attempt in ((0, 2), (0, 1), (7, 100_000)):
        parts.path_of(tmp_path, shard, attempt).write_bytes(an_answer(shard))
    (parts.folder_of(tmp_path) / "shard-00000.attempt-00003.jsonl.swp").touch()
    found = parts.part_files(tmp_path)
    assert [list(found.attempts(shard)) for shard in (0, 1, 7)] == [[1, 2], [], [100_000]]
    with found.open(7, 100_000) as part:
        assert part.read() == an_answer(7)
