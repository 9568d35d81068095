"""kill -9 at random moments, and attempts that live on after another took over."""

import signal
from pathlib import Path

import pytest

from tessera.batch_runner.publish import read_record
from tests.batch_runner.chaos import CONCURRENCY, suffered
from tests.batch_runner.running import Stage, a_row

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    "seed",
    [101, pytest.param(102, marks=pytest.mark.full), pytest.param(103, marks=pytest.mark.full)],
)
def test_no_row_is_lost_or_comes_twice_whatever_is_killed(tmp_path: Path, seed: int) -> None:
    story = suffered(tmp_path / "stage", seed, rows=800, most=4)
    assert story.harms, "something was killed"
    assert (story.lost, story.twice, story.wrong) == (0, 0, 0), story
    assert set(story.stale_codes) <= {0, 4}, "stale attempts see the results or the fence"
    if "cut_off_runner" not in story.harms:
        assert story.repaid <= CONCURRENCY * len(story.harms), story


def test_a_stale_attempt_that_works_on_does_no_harm(stage: Stage) -> None:
    stage.checked(*map(a_row, range(600)))
    stage.start_engine("--delay", "0.08")
    stale = stage.start(1)
    done = stale.until(lambda seen: seen["done"] > 50, "some rows")["done"]
    # It stands still until the second one is at work, however long that takes to start.
    stale.signal(signal.SIGSTOP)
    stage.current(2)
    current = stage.start(2, "--concurrency", "8")
    current.until(lambda seen: seen.get("done", 0) > done + 50, "rows of the second attempt")
    stale.signal(signal.SIGCONT)
    late = stale.ended()
    assert (late.code, late.report["state"]) == (4, "fenced"), late.said
    assert late.report["completed"] == 600, "it finished all rows before it asked"
    assert "attempt 2 is current" in late.report["message"]
    ended = current.ended()
    assert (ended.code, ended.report["completed"]) == (0, 600), ended.said
    found = [answer["custom_id"] for answer in stage.claim.answers()]
    assert found == [f"row-{number}" for number in range(600)]
    record = read_record(stage.claim.work)
    assert record is not None
    assert record.attempt == 2
    assert 0 < ended.report["resentRows"] <= len(stage.sent()) - 600


def test_an_attempt_that_starts_stale_pays_nothing(stage: Stage) -> None:
    stage.checked(a_row(1))
    stage.start_engine()
    stage.current(2)
    ended = stage.start(1).ended()
    assert (ended.code, ended.report["state"]) == (4, "fenced")
    assert (stage.sent(), stage.claim.output.exists()) == ([], False)
