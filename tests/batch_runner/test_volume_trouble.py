"""A volume that fails or is rearranged while paid rows are on it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.batch_runner.answers import parts
from tests.batch_runner.harness import RunnerHarness, a_row
from tests.cases import full

pytestmark = pytest.mark.long

ROWS = 400


def _leave_nothing(path: Path) -> None:
    assert not path.exists()


@pytest.mark.parametrize("leave", [_leave_nothing, *full(Path.touch)])
def test_paths_that_fail_in_the_middle_of_work_end_the_attempt_but_not_the_batch(
    harness: RunnerHarness, leave: Callable[[Path], object]
) -> None:
    harness.write_checked_input(a_row(0, prompt="hang once"), *map(a_row, range(1, ROWS)))
    harness.start_engine("--delay", "0.05")
    folder = parts.parts_folder(harness.claim.work)
    aside = folder.with_name("aside")
    runner = harness.start(1)
    runner.wait_for_progress(31)
    folder.rename(aside)
    leave(folder)
    first = runner.wait_for_exit()
    assert (first.code, first.report["state"]) == (1, "failed"), first.report["message"]
    assert str(folder) in first.report["message"]
    assert "Traceback" not in first.log_text
    folder.unlink(missing_ok=True)
    aside.rename(folder)
    harness.set_current_attempt(2)
    second = harness.start(2).wait_for_exit()
    assert (second.code, second.report["completed"]) == (0, ROWS), second.log_text
    assert len(harness.sent_row_ids()) < ROWS + 2 * 16, "rows were paid again"


def _remove_folder(folder: Path) -> None:
    folder.rmdir()


def _occupy_output(folder: Path) -> None:
    (folder / "out.jsonl").write_text("mine")


def _occupy_errors(folder: Path) -> None:
    (folder / "errors.jsonl").mkdir()


def _restore(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("obstruct", [_remove_folder, *full(_occupy_output, _occupy_errors)])
def test_paid_rows_wait_until_they_can_be_published_and_are_not_sent_again(
    harness: RunnerHarness, obstruct: Callable[[Path], None]
) -> None:
    folder = harness.claim.folder / "results"
    folder.mkdir()
    paths = ("--output", str(folder / "out.jsonl"), "--errors", str(folder / "errors.jsonl"))
    harness.write_checked_input(*map(a_row, range(40)), a_row(40, prompt="please hang"))
    harness.start_engine()
    options = (*paths, "--row-seconds", "5", "--retries", "0")
    runner = harness.start(1, *options)
    runner.wait_for_progress(40)
    obstruct(folder)
    first = runner.wait_for_exit()
    figures = (first.code, first.report["state"], first.report["completed"])
    assert figures == (1, "failed", 40), first.report["message"]
    assert "the next attempt publishes" in first.report["message"]
    harness.kill_engine()
    harness.set_current_attempt(2)
    second = harness.start(2, *options).wait_for_exit()
    assert (second.code, second.report["completed"]) == (1, 40), second.log_text
    _restore(folder)
    harness.set_current_attempt(3)
    third = harness.start(3, *options).wait_for_exit()
    assert (third.code, third.report["state"]) == (0, "completed"), third.log_text
    assert len((folder / "out.jsonl").read_text().splitlines()) == 40
    assert len((folder / "errors.jsonl").read_text().splitlines()) == 1
    assert len(harness.sent_row_ids()) == 41
