"""kill -9 at random moments, and attempts that continue after another took over."""

import signal
from pathlib import Path

import pytest

from tessera.batch_runner.answers.publish import read_record
from tests.batch_runner.chaos import CONCURRENCY, run_with_batch_faults
from tests.batch_runner.harness import RunnerHarness, a_row

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    "seed",
    [101, pytest.param(102, marks=pytest.mark.full), pytest.param(103, marks=pytest.mark.full)],
)
def test_no_row_is_lost_or_comes_twice_whatever_is_killed(tmp_path: Path, seed: int) -> None:
    outcome = run_with_batch_faults(tmp_path / "stage", seed, rows=800, max_faults=4)
    assert outcome.faults, "something was killed"
    assert (outcome.lost, outcome.twice, outcome.wrong) == (0, 0, 0), outcome
    assert set(outcome.stale_codes) <= {0, 4}, "stale attempts see the results or the fence"
    if "cut_off_runner" not in outcome.faults:
        assert outcome.resent_rows <= CONCURRENCY * len(outcome.faults), outcome


def test_a_stale_attempt_that_works_on_changes_no_result(harness: RunnerHarness) -> None:
    harness.write_checked_input(*map(a_row, range(600)))
    harness.start_engine("--delay", "0.08")
    stale = harness.start(1)
    done = stale.wait_for_progress(51)["done"]
    # It is suspended until the second one works, however long that takes to start.
    stale.signal(signal.SIGSTOP)
    harness.set_current_attempt(2)
    current = harness.start(2, "--concurrency", "8")
    current.wait_for_progress(done + 51)
    stale.signal(signal.SIGCONT)
    stale_exit = stale.wait_for_exit()
    assert (stale_exit.code, stale_exit.report["state"]) == (4, "fenced"), stale_exit.log_text
    assert stale_exit.report["completed"] == 600, "it finished all rows before it asked"
    assert "attempt 2 is current" in stale_exit.report["message"]
    current_exit = current.wait_for_exit()
    assert (current_exit.code, current_exit.report["completed"]) == (0, 600), current_exit.log_text
    row_ids = [answer["custom_id"] for answer in harness.claim.answers()]
    assert row_ids == [f"row-{number}" for number in range(600)]
    record = read_record(harness.claim.work)
    assert record is not None
    assert record.attempt == 2
    assert 0 < current_exit.report["resentRows"] <= len(harness.sent_row_ids()) - 600


def test_an_attempt_that_starts_stale_pays_nothing(harness: RunnerHarness) -> None:
    harness.write_checked_input(a_row(1))
    harness.start_engine()
    harness.set_current_attempt(2)
    runner_exit = harness.start(1).wait_for_exit()
    assert (runner_exit.code, runner_exit.report["state"]) == (4, "fenced")
    assert (harness.sent_row_ids(), harness.claim.output.exists()) == ([], False)
