"""An engine that is healthy and answers no row for a while, or never."""

import json

import pytest

from tessera.batch_runner.engine import PROBE_ID
from tests.batch_runner.harness import RunnerHarness, a_row
from tests.cases import full

pytestmark = pytest.mark.long

ROWS = 300
# The retries of a row end within this time.
SECONDS = "6"


@pytest.mark.parametrize(
    ("trouble", "after"),
    [
        ("503", "0"),
        ("cut", "100"),
        *full(("503", "100"), ("cut", "0")),
        *full(*((trouble, after) for trouble in ("429", "500") for after in ("0", "100"))),
    ],
)
def test_no_row_pays_while_the_engine_answers_none(
    harness: RunnerHarness, trouble: str, after: str
) -> None:
    harness.write_checked_input(*map(a_row, range(ROWS)))
    options = ("--trouble", trouble, "--trouble-seconds", SECONDS, "--trouble-after", after)
    harness.start_engine(*options)
    runner_exit = harness.start(1).wait_for_exit()
    figures = (runner_exit.code, runner_exit.report["completed"], runner_exit.report["failed"])
    assert figures == (0, ROWS, 0), runner_exit.report["message"]


def test_retry_after_closes_the_door_for_all_rows(harness: RunnerHarness) -> None:
    harness.write_checked_input(*map(a_row, range(ROWS)))
    options = ("--trouble", "503", "--trouble-seconds", "3", "--retry-after", "4")
    harness.start_engine(*options)
    runner_exit = harness.start(1).wait_for_exit()
    assert (runner_exit.code, runner_exit.report["completed"]) == (0, ROWS), runner_exit.log_text
    assert len(harness.sent_row_ids()) <= ROWS + 16, "a closed door sends each row in flight once"
    probes = harness.request_log.read_text().split().count(PROBE_ID)
    assert probes <= 3, "a closed door is left alone as long as the engine asks for"


@pytest.mark.parametrize("trouble", ["503", *full("cut")])
def test_trouble_beyond_the_patience_ends_the_attempt_and_burns_no_row(
    harness: RunnerHarness, trouble: str
) -> None:
    harness.write_checked_input(*map(a_row, range(ROWS)))
    harness.start_engine("--trouble", trouble, "--trouble-seconds", "3600")
    runner_exit = harness.start(1, "--engine-seconds", "5").wait_for_exit()
    report = runner_exit.report
    assert (runner_exit.code, report["state"], report["failed"]) == (1, "failed", 0)
    assert "did not answer for 5 s" in report["message"]
    assert ("503: overloaded" if trouble == "503" else "not a JSON object") in report["message"]
    harness.kill_engine()
    harness.start_engine("--delay", "0")
    harness.set_current_attempt(2)
    second = harness.start(2).wait_for_exit()
    assert (second.code, second.report["completed"]) == (0, ROWS), second.log_text


def test_nothing_but_failures_at_first_ends_the_attempt_and_burns_no_row(
    harness: RunnerHarness,
) -> None:
    harness.write_checked_input(*(a_row(row, prompt="please fail") for row in range(ROWS)))
    harness.start_engine()
    runner_exit = harness.start(1, "--retries", "0").wait_for_exit()
    report = runner_exit.report
    assert (runner_exit.code, report["state"], report["failed"]) == (1, "failed", 0)
    assert "answered none of the first 20 rows" in report["message"]
    assert "500: out of luck" in report["message"]


def test_a_row_that_alone_gets_429_fails_alone(harness: RunnerHarness) -> None:
    prompts = ["please refuse with 429", *(f"echo row-{row}" for row in range(1, 40))]
    harness.write_checked_input(*(a_row(row, prompt=p) for row, p in enumerate(prompts)))
    harness.start_engine()
    runner_exit = harness.start(1, "--retries", "1").wait_for_exit()
    report = runner_exit.report
    assert (runner_exit.code, report["completed"], report["failed"]) == (0, 39, 1)
    (failure,) = harness.claim.failures()
    assert (failure["custom_id"], failure["error"]["code"]) == ("row-0", "engine_error")


@pytest.mark.parametrize("count", ["9" * 4300, *full("9" * 18, "-7", "1.5")])
def test_figures_of_an_engine_change_no_end(harness: RunnerHarness, count: str) -> None:
    harness.write_checked_input(a_row(0), a_row(1, prompt=f"please count {count}"))
    harness.start_engine()
    runner_exit = harness.start(1).wait_for_exit()
    report = runner_exit.report
    assert (runner_exit.code, report["state"], report["completed"]) == (0, "completed", 2)
    assert 7 <= report["promptTokens"] <= 7 + 2**31
    assert harness.start(2).wait_for_exit().code == 0


@pytest.mark.parametrize("value", ["NaN", *full("Infinity", "-Infinity")])
def test_an_answer_that_is_no_json_for_strict_readers_is_a_failure(
    harness: RunnerHarness, value: str
) -> None:
    harness.write_checked_input(a_row(0), a_row(1, prompt=f"please count {value}"))
    harness.start_engine()
    runner_exit = harness.start(1, "--retries", "0").wait_for_exit()
    assert runner_exit.code == 0, runner_exit.log_text
    (failure,) = harness.claim.failures()
    assert (failure["custom_id"], failure["error"]["code"]) == ("row-1", "invalid_response")
    for path in (harness.claim.output, harness.claim.errors):
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=pytest.fail)
