import base64
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.batch_runner.input import manifest
from tessera.batch_runner.input.scan import (
    MAX_ROW_BYTES,
    IdSet,
    InputScan,
    ScanFindings,
    id_hash,
    read_lines,
)
from tests.batch_runner.harness import SERVED, a_row
from tests.domain.model.test_media_tokens import mp4, png, url, wave


def _scan(content: bytes, mark: Callable[[str], int] = id_hash) -> ScanFindings:
    scan, file = InputScan(SERVED, mark), io.BytesIO(content)
    for line in read_lines(file, len):
        scan.add(line)
    return scan.findings(read_lines(io.BytesIO(content), len))


def _file(rows: Iterable[Mapping[str, Any] | str]) -> bytes:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode()


def _codes(findings: ScanFindings) -> list[tuple[int, str]]:
    return [(fault.line, fault.fault.code) for fault in findings.faults]


def test_a_valid_file_has_no_faults_and_known_sums() -> None:
    findings = _scan(_file(a_row(number) for number in range(3)))
    assert (findings.rows, findings.url, findings.fault_count) == (3, "/v1/chat/completions", 0)
    assert findings.max_tokens_sum == 60
    body = len(json.dumps(a_row(0)["body"]))
    assert findings.input_tokens == pytest.approx(3 * body / 4, rel=0.3)


PICTURE = f"data:image/png;base64,{base64.b64encode(os.urandom(1_400_000)).decode()}"
SOUND = base64.b64encode(wave(60)).decode()


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        ({"type": "image_url", "image_url": {"url": PICTURE}}, 4096),
        ({"image_url": PICTURE}, 4096),
        ({"image_url": {"url": url(png(640, 480)).decode()}}, 1200),
        ({"image_url": {"url": "https://example.org/a.png"}}, 4096),
        ({"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}, 1500),
        ({"type": "video_url", "video_url": {"url": url(mp4(10)).decode()}}, 7680),
        ({"type": "text", "text": PICTURE}, len(PICTURE) / 4),
        ({"image_url": {"url": "data:image/png;base64,\ud800"}}, 4096),
        ({"image_url": [PICTURE], "input_audio": None, "content": 1}, len(PICTURE) / 4),
    ],
)
def test_an_image_of_a_row_counts_by_its_header(part: Mapping[str, Any], tokens: float) -> None:
    row = a_row(0)
    row["body"]["messages"] = [{"role": "user", "content": [part]}]
    assert _scan(_file([row])).input_tokens == pytest.approx(tokens, abs=120)


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n", "  \n"])
def test_blank_lines_at_the_end_are_no_rows(end: str) -> None:
    findings = _scan(_file([a_row(1), a_row(2)])[:-1] + end.encode())
    assert (findings.rows, findings.fault_count) == (2, 0)


def test_a_blank_line_between_rows_is_a_fault() -> None:
    findings = _scan(_file([a_row(1), "", a_row(2)]))
    assert _codes(findings) == [(2, "invalid_json")]


def test_windows_line_ends_are_fine() -> None:
    findings = _scan(_file([a_row(1), a_row(2)]).replace(b"\n", b"\r\n"))
    assert (findings.rows, findings.fault_count) == (2, 0)


@pytest.mark.parametrize("content", [b"", b"\n", b"  \n\n"])
def test_a_file_without_rows_is_refused(content: bytes) -> None:
    findings = _scan(content)
    assert (findings.rows, _codes(findings)) == (0, [(1, "empty_file")])


def test_a_second_url_is_a_fault_in_each_of_its_rows() -> None:
    other = {"url": "/v1/embeddings"}
    findings = _scan(_file([a_row(1), a_row(2, **other), a_row(3), a_row(4, **other)]))
    assert _codes(findings) == [(2, "mixed_url")]
    assert (findings.faults[0].lines, findings.fault_count) == ("2, 4", 2)


@pytest.mark.parametrize("mark", [id_hash, lambda _: 7, len])
def test_a_repeated_id_is_found_exactly_whatever_its_hash(mark: Callable[[str], int]) -> None:
    findings = _scan(_file(a_row(number) for number in (1, 2, 3, 2, 4, 1, 2)), mark)
    assert _codes(findings) == [(line, "duplicate_custom_id") for line in (4, 6)]
    assert findings.faults[0].lines == "4, 7"
    assert [fault.fault.message.split("line ")[1][0] for fault in findings.faults] == ["2", "1"]


def test_equal_hashes_of_different_ids_are_no_fault() -> None:
    assert _scan(_file(map(a_row, range(50))), lambda _: 7).fault_count == 0


def test_all_faults_are_counted_and_the_first_ones_shown_by_line() -> None:
    rows = ["{" if number % 3 == 0 else a_row(number // 2) for number in range(150)]
    findings = _scan(_file(rows))
    ids = [number // 2 for number in range(150) if number % 3]
    assert findings.fault_count == 50 + len(ids) - len(set(ids))
    shown = [line for line, _ in _codes(findings)]
    assert len(shown) == 20
    assert shown == sorted(shown)
    assert findings.faults[0].lines == "1, 4, 7 and 47 more"


def test_equal_faults_are_listed_once_with_their_lines() -> None:
    bad = b"{\n"
    content = bad * 48 + _file([a_row(0)]) + bad + _file([a_row(1)]) + b"[]\n" + bad
    findings = _scan(content)
    assert [(fault.lines or fault.line) for fault in findings.faults] == ["1-48, 50, 53", 52]
    repeats = _scan(_file(a_row(0) for _ in range(50)))
    assert [(fault.line, fault.lines) for fault in repeats.faults] == [(2, "2-50")]
    assert repeats.fault_count == 49


def test_ids_that_repeat_too_often_to_remember_are_still_counted() -> None:
    ids = IdSet(int)
    for number in [*range(1, 12_001), *range(1, 12_001)]:
        ids.add(str(number))
    assert ids.surplus == 2000


def test_a_row_that_is_too_large_is_a_fault_and_the_next_one_is_read() -> None:
    large = json.dumps(a_row(1, prompt="x" * MAX_ROW_BYTES))
    findings = _scan(_file([a_row(0), large, a_row(2)]))
    assert (findings.rows, _codes(findings)) == (3, [(2, "row_too_large")])


@pytest.mark.parametrize(("size", "accepted"), [(MAX_ROW_BYTES, True), (MAX_ROW_BYTES + 1, False)])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_the_largest_row_is_exactly_as_large_as_promised(
    size: int, accepted: bool, end: bytes
) -> None:
    (line,) = read_lines(io.BytesIO(b"x" * size + end), len)
    assert (line.content is not None) is accepted


@given(st.lists(st.binary(max_size=30)), st.binary(max_size=5))
def test_lines_see_every_byte_once_and_know_where_they_begin(
    parts: list[bytes], end: bytes
) -> None:
    content, seen = b"\n".join(parts) + end, list[bytes]()
    lines = list(read_lines(io.BytesIO(content), seen.append))
    assert b"".join(seen) == content
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    for line in lines:
        assert line.content is not None
        assert content[line.offset :].startswith(line.content)


def test_shards_begin_every_thousand_rows() -> None:
    content = _file(map(a_row, range(2001)))
    findings = _scan(content)
    shards = manifest.build_shards(findings.offsets, findings.rows)
    assert [(shard.first_row, shard.rows) for shard in shards] == [
        (0, 1000),
        (1000, 1000),
        (2000, 1),
    ]
    for shard in shards:
        line = content[shard.offset :].split(b"\n", 1)[0]
        assert json.loads(line)["custom_id"] == f"row-{shard.first_row}"
