"""An input that is edited while an attempt answers it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.batch_runner.harness import Runner, RunnerHarness, a_row
from tests.cases import full

pytestmark = pytest.mark.long

ROWS = 300


def _lines(*numbers: int) -> bytes:
    return b"".join(json.dumps(a_row(number)).encode() + b"\n" for number in numbers)


def _overwrite(path: Path, content: bytes) -> None:
    """Change the file in place, as `cp new old` and `rsync --inplace` do."""
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(content)


def _start_answering(harness: RunnerHarness, rows: int = 31, seconds: int = 5) -> Runner:
    """Start an attempt that lasts, since its first row hangs, and wait for so many answers."""
    first = a_row(0, prompt="please hang")
    harness.write_checked_input(first, *map(a_row, range(1, ROWS)))
    harness.start_engine("--delay", "0.05")
    runner = harness.start(1, "--row-seconds", f"{seconds}", "--retries", "0")
    runner.wait_for_progress(rows)
    return runner


def _put_rows_in_front(path: Path) -> None:
    _overwrite(path, _lines(8001, 8002) + path.read_bytes())


def _cut_at_half(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _append_rows(path: Path) -> None:
    with path.open("ab") as file:
        file.write(_lines(*range(9000, 9050)))


def _edit_an_answered_row(path: Path) -> None:
    _overwrite(path, path.read_bytes().replace(b"echo row-1", b"echo row-x", 1))


def _replace_with_a_longer_file(path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(path.read_bytes() + _lines(9000))
    new.replace(path)


def _replace_with_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [_put_rows_in_front, *full(_cut_at_half)])
def test_rows_that_are_not_those_of_the_check_end_the_attempt_at_once(
    harness: RunnerHarness, change: Callable[[Path], object]
) -> None:
    runner = _start_answering(harness)
    change(harness.claim.input)
    runner_exit = runner.wait_for_exit()
    assert (runner_exit.code, runner_exit.report["state"]) == (3, "inputChanged")
    assert runner_exit.report["completed"] < ROWS - 1
    assert not harness.claim.output.exists(), "a changed input is published"
    assert not harness.claim.errors.exists()
    assert "Traceback" not in runner_exit.log_text


@pytest.mark.parametrize(
    "change",
    [
        _edit_an_answered_row,
        Path.unlink,
        *full(_append_rows, _replace_with_a_longer_file, _replace_with_a_fifo),
    ],
)
def test_answers_of_the_checked_rows_are_published_with_the_news_of_a_change(
    harness: RunnerHarness, change: Callable[[Path], object]
) -> None:
    # On a busy machine the row that is edited is not among the first answers.
    runner = _start_answering(harness, ROWS - 1, 12)
    change(harness.claim.input)
    runner_exit = runner.wait_for_exit()
    assert (runner_exit.code, runner_exit.report["inputChanged"]) == (0, True)
    ids = [answer["custom_id"] for answer in harness.claim.answers()]
    assert ids == [f"row-{number}" for number in range(1, ROWS)]
    assert "Traceback" not in runner_exit.log_text


def test_the_same_content_under_another_inode_and_time_is_published(
    harness: RunnerHarness,
) -> None:
    runner = _start_answering(harness)
    copy = harness.claim.input.with_suffix(".copy")
    copy.write_bytes(harness.claim.input.read_bytes())
    copy.replace(harness.claim.input)
    runner_exit = runner.wait_for_exit()
    assert runner_exit.code == 0, runner_exit.log_text
    ids = [answer["custom_id"] for answer in harness.claim.answers()]
    assert ids == [f"row-{number}" for number in range(1, ROWS)]
    assert [failure["custom_id"] for failure in harness.claim.failures()] == ["row-0"]


def test_a_fifo_in_place_of_a_checked_input_is_not_waited_for(harness: RunnerHarness) -> None:
    harness.write_checked_input(a_row(1))
    _replace_with_a_fifo(harness.claim.input)
    runner_exit = harness.start(1).wait_for_exit()
    assert (runner_exit.code, harness.sent_row_ids()) == (3, [])
    assert "changed after its check" in runner_exit.report["message"]


def test_the_deepest_row_that_the_check_reads_is_sent(harness: RunnerHarness) -> None:
    body = f'{{"prompt": "echo row-1", "extra": {"[" * 983}{"]" * 983}}}'
    harness.claim.write([f'{{"custom_id": "row-1", "url": "/v1/completions", "body": {body}}}'])
    assert harness.check().code == 0
    harness.start_engine()
    runner_exit = harness.start(1).wait_for_exit()
    assert (runner_exit.code, runner_exit.report["completed"]) == (0, 1), runner_exit.log_text
