"""One attempt as a process, against a simulated engine and API server."""

import json
import signal

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tessera.batch_runner.answers import parts
from tessera.batch_runner.answers.publish import read_record
from tests.batch_runner.harness import RunnerHarness, a_row, eventually, get
from tests.cases import full
from tests.lab.sim.running import SHAPE

pytestmark = pytest.mark.long


def test_every_row_is_answered_in_the_order_of_the_input(harness: RunnerHarness) -> None:
    harness.write_checked_input(*map(a_row, range(1200)))
    harness.start_engine()
    runner_exit = harness.start(1).wait_for_exit()
    assert runner_exit.code == 0, runner_exit.log_text
    answers = harness.claim.answers()
    assert [answer["custom_id"] for answer in answers] == [f"row-{row}" for row in range(1200)]
    assert set(answers[7]) == {"id", "custom_id", "response", "error"}
    assert answers[7]["error"] is None
    assert answers[7]["response"]["status_code"] == 200
    assert answers[7]["response"]["body"]["choices"][0]["message"]["content"] == "row-7 word"
    assert len({answer["id"] for answer in answers}) == 1200
    assert harness.claim.errors.read_bytes() == b""
    figures = {"rows": 1200, "completed": 1200, "failed": 0, "resentRows": 0, "resentTokens": 0}
    tokens = {"promptTokens": 7 * 1200, "outputTokens": 11 * 1200}
    head = {"phase": "run", "attempt": 1, "state": "completed"}
    assert runner_exit.report == {
        **head,
        **figures,
        **tokens,
        "inputChanged": False,
        "message": runner_exit.report["message"],
    }


def test_a_bad_row_fails_alone_with_its_reason(harness: RunnerHarness) -> None:
    prompts = ["refuse", "fail", "mumble", "hang"]
    rows = [a_row(number, prompt=f"please {word}") for number, word in enumerate(prompts)]
    harness.write_checked_input(*rows, a_row(4, prompt="fail once echo row-4"), a_row(5))
    harness.start_engine()
    runner_exit = harness.start(1, "--retries", "1", "--row-seconds", "2").wait_for_exit()
    assert (runner_exit.code, runner_exit.report["completed"], runner_exit.report["failed"]) == (
        0,
        2,
        4,
    ), runner_exit.log_text
    failures = harness.claim.failures()
    assert [(failure["custom_id"], failure["error"]["code"]) for failure in failures] == [
        ("row-0", "request_refused"),
        ("row-1", "engine_error"),
        ("row-2", "invalid_response"),
        ("row-3", "engine_timeout"),
    ]
    assert failures[0]["error"]["message"] == "400: the prompt is wrong"
    assert failures[0]["response"]["status_code"] == 400
    assert failures[3]["response"] is None
    assert [answer["custom_id"] for answer in harness.claim.answers()] == ["row-4", "row-5"]
    sent = harness.sent_row_ids()
    assert sorted(sent.count(row_id) for row_id in set(sent)) == [1, 1, 2, 2, 2, 2]


def test_after_twenty_refusals_and_no_answer_no_other_row_is_sent(
    harness: RunnerHarness,
) -> None:
    harness.write_checked_input(*(a_row(row, prompt="please refuse") for row in range(300)))
    harness.start_engine()
    runner_exit = harness.start(1).wait_for_exit()
    assert (runner_exit.code, runner_exit.report["state"]) == (3, "rowsRefused")
    assert "refused the first 20 rows" in runner_exit.report["message"]
    assert "400: the prompt is wrong" in runner_exit.report["message"]
    assert len(harness.sent_row_ids()) < 20 + 2 * 16
    assert not harness.claim.output.exists()


def test_one_answer_shows_that_the_rows_are_not_to_blame(harness: RunnerHarness) -> None:
    rows = [a_row(row, prompt="please refuse") for row in range(1, 60)]
    harness.write_checked_input(a_row(0), *rows)
    harness.start_engine()
    runner_exit = harness.start(1).wait_for_exit()
    assert (runner_exit.code, runner_exit.report["completed"], runner_exit.report["failed"]) == (
        0,
        1,
        59,
    ), runner_exit.log_text


def test_a_row_that_ends_the_engine_is_found_and_its_neighbours_are_answered(
    harness: RunnerHarness,
) -> None:
    rows = [a_row(number) for number in range(60)]
    rows[20] = a_row(20, prompt="please crash")
    harness.write_checked_input(*rows)
    harness.start_engine("--delay", "0.01")
    runner = harness.start(1)
    while runner.runs_for(0.1):
        if not harness.engine_runs():
            harness.start_engine()
    runner_exit = runner.wait_for_exit()
    assert (runner_exit.code, runner_exit.report["completed"], runner_exit.report["failed"]) == (
        0,
        59,
        1,
    ), runner_exit.log_text
    (failure,) = harness.claim.failures()
    assert (failure["custom_id"], failure["error"]["code"]) == ("row-20", "engine_crashed")


def test_an_engine_that_restarts_costs_no_retries(harness: RunnerHarness) -> None:
    harness.write_checked_input(*map(a_row, range(300)))
    harness.start_engine("--delay", "0.05")
    runner = harness.start(1, "--retries", "0")
    runner.wait_for_progress(51)
    harness.kill_engine()
    runner.wait_for_progress(state="waiting")
    harness.start_engine()
    runner_exit = runner.wait_for_exit()
    assert (runner_exit.code, runner_exit.report["completed"]) == (0, 300), runner_exit.log_text
    assert 1 <= runner_exit.report["resentRows"] <= 16
    assert runner_exit.report["resentTokens"] > 20 * runner_exit.report["resentRows"]


def test_answers_that_an_engine_aborts_at_its_end_are_requested_again(
    harness: RunnerHarness,
) -> None:
    body = {"prompt": "once", "max_tokens": 200, "ignore_eos": True}
    harness.write_checked_input(
        *(a_row(row, url="/v1/completions", body=body) for row in range(160))
    )
    words = ("-m", "tessera_lab.sim.main", "tiny", "--port", str(harness.engine_port))
    shape = {"TESSERA_SIM_SHAPE": SHAPE, "TESSERA_SIM_START_SECONDS": "0"}
    engine = harness.start_server(harness.engine_port, words, **shape)
    runner = harness.start(1, "--retries", "0")
    runner.wait_for_progress(31, inFlight=16)
    engine.terminate()
    engine.wait()
    harness.start_server(harness.engine_port, words, **shape)
    runner_exit = runner.wait_for_exit()
    assert (runner_exit.code, runner_exit.report["completed"]) == (0, 160), runner_exit.log_text
    bodies = [answer["response"]["body"] for answer in harness.claim.answers()]
    assert {body["choices"][0]["finish_reason"] for body in bodies} == {"length"}
    assert {body["usage"]["completion_tokens"] for body in bodies} == {200}
    assert runner_exit.report["resentRows"] > 0


def test_rows_of_embeddings_are_answered_by_a_pooling_engine(harness: RunnerHarness) -> None:
    texts = ["a", ["b c", "d"], "a"]
    rows = [
        a_row(number, url="/v1/embeddings", body={"input": texts[number % 3]})
        for number in range(60)
    ]
    harness.write_checked_input(*rows)
    shape = json.dumps({**json.loads(SHAPE), "pooling": "Embed", "encoderOnly": True})
    words = ("-m", "tessera_lab.sim.main", "tiny", "--runner=pooling")
    env = {"TESSERA_SIM_SHAPE": shape, "TESSERA_SIM_START_SECONDS": "0"}
    harness.start_server(harness.engine_port, (*words, "--port", str(harness.engine_port)), **env)
    runner_exit = harness.start(1).wait_for_exit()
    report = runner_exit.report
    assert (runner_exit.code, report.get("completed")) == (0, 60), runner_exit.log_text
    assert (report["promptTokens"], report["outputTokens"]) == (20 + 20 * 2 + 20, 0)
    bodies = [answer["response"]["body"] for answer in harness.claim.answers()]
    assert [len(body["data"]) for body in bodies[:3]] == [1, 2, 1]
    assert bodies[0]["data"] == bodies[2]["data"]


def test_an_engine_that_stays_away_ends_the_attempt(harness: RunnerHarness) -> None:
    harness.write_checked_input(a_row(1))
    runner_exit = harness.start(1, "--engine-seconds", "0.2").wait_for_exit()
    assert (runner_exit.code, runner_exit.report["state"]) == (1, "failed")
    assert "did not answer for 0.2 s" in runner_exit.report["message"]
    assert "Traceback" not in runner_exit.log_text


def test_it_reports_its_progress(harness: RunnerHarness) -> None:
    rows = [a_row(0, prompt="please refuse"), a_row(1), a_row(2, prompt="please hang")]
    harness.write_checked_input(*rows)
    harness.start_engine()
    runner = harness.start(1)
    figures = {"attempt": 1, "rows": 3, "failed": 1, "inFlight": 1, "state": "running"}
    tokens = {"resentRows": 0, "resentTokens": 0, "promptTokens": 7, "outputTokens": 11}
    seen = runner.wait_for_progress(2, **figures, **tokens)
    assert seen.pop("idleSeconds") < 60
    assert seen == {"done": 2, **figures, **tokens, "inputChanged": False}
    assert get(runner.port, "/healthz")[0] == 200
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(get(runner.port, "/metrics")[1].decode())
        for sample in family.samples
    }
    assert samples == {
        ("tessera_batch_rows_total", "completed"): 1,
        ("tessera_batch_rows_total", "failed"): 1,
        ("tessera_batch_tokens_total", "prompt"): 7,
        ("tessera_batch_tokens_total", "output"): 11,
        ("tessera_batch_tokens_total", "resent"): 0,
        ("tessera_batch_in_flight",): 1,
    }


def test_at_sigterm_it_ends_at_once_and_the_next_attempt_continues(harness: RunnerHarness) -> None:
    rows = [a_row(number) for number in range(40)]
    rows[10] = a_row(10, prompt="please hang")
    harness.write_checked_input(*rows)
    harness.start_engine()
    runner = harness.start(1)
    runner.wait_for_progress(39)
    runner.signal(signal.SIGTERM)
    runner_exit = runner.wait_for_exit()
    assert (runner_exit.code, runner_exit.report["state"], runner_exit.report["completed"]) == (
        0,
        "stopped",
        39,
    )
    assert not harness.claim.output.exists()
    harness.set_current_attempt(2)
    second = harness.start(2, "--row-seconds", "0.2", "--retries", "0").wait_for_exit()
    assert (second.code, second.report["failed"], second.report["resentRows"]) == (0, 1, 1)
    assert len(harness.sent_row_ids()) == 41


def test_an_input_that_changed_is_refused_before_a_row_is_paid(harness: RunnerHarness) -> None:
    harness.write_checked_input(a_row(1), a_row(2))
    harness.start_engine()
    harness.claim.write([a_row(1), a_row(3)])
    runner_exit = harness.start(1).wait_for_exit()
    assert (runner_exit.code, runner_exit.report["state"]) == (3, "inputChanged")
    assert "changed after its check" in runner_exit.report["message"]
    assert harness.sent_row_ids() == []


def test_before_another_output_nothing_is_paid(harness: RunnerHarness) -> None:
    harness.write_checked_input(a_row(1))
    harness.start_engine()
    harness.claim.errors.write_text("mine")
    runner_exit = harness.start(1).wait_for_exit()
    assert (runner_exit.code, "not a result of this batch" in runner_exit.report["message"]) == (
        3,
        True,
    )
    assert harness.claim.errors.read_text() == "mine"
    assert harness.sent_row_ids() == []


def test_a_full_volume_ends_the_attempt_and_loses_no_answer(harness: RunnerHarness) -> None:
    harness.write_checked_input(*map(a_row, range(400)))
    harness.start_engine()
    first = harness.start(1, fsize=40_000).wait_for_exit()
    assert (first.code, first.report["state"]) == (1, "failed"), first.log_text
    assert "raise the limit" in first.report["message"]
    assert "Traceback" not in first.log_text
    completed = first.report["completed"]
    assert 0 < completed < 400
    assert not parts.part_path(harness.claim.work, 0, 1).read_bytes().endswith(b"\n"), "a torn line"
    before = len(harness.sent_row_ids())
    harness.set_current_attempt(2)
    second = harness.start(2).wait_for_exit()
    assert (second.code, second.report["completed"]) == (0, 400)
    assert len(harness.sent_row_ids()) - before == 400 - completed


def test_a_container_that_restarts_in_its_attempt_continues(harness: RunnerHarness) -> None:
    harness.write_checked_input(*map(a_row, range(300)))
    harness.start_engine()
    assert harness.start(1, fsize=40_000).wait_for_exit().code == 1
    runner_exit = harness.start(1).wait_for_exit()
    assert (runner_exit.code, runner_exit.report["completed"]) == (0, 300)
    assert len(harness.claim.answers()) == 300


def test_published_results_are_reported_again_without_engine_or_api_server(
    harness: RunnerHarness,
) -> None:
    harness.write_checked_input(a_row(1), a_row(2, prompt="please refuse"))
    harness.start_engine()
    first = harness.start(1).wait_for_exit()
    written = harness.claim.output.stat()
    harness.kill_engine()
    harness.set_api_response("503")
    repeated = harness.start(2).wait_for_exit()
    assert (first.code, repeated.code) == (0, 0)
    assert repeated.report == first.report | {"attempt": 2}
    assert harness.claim.output.stat() == written


def test_nothing_is_published_while_the_api_server_does_not_answer(harness: RunnerHarness) -> None:
    harness.write_checked_input(a_row(1))
    runner = harness.start(1)
    runner.wait_for_progress(state="waiting")
    harness.set_api_response("503")
    harness.start_engine()
    runner.wait_for_progress(state="publishing")

    def publication_is_retried() -> None:
        assert "not known yet, retrying" in runner.log_text()

    eventually(publication_is_retried)
    assert not harness.claim.output.exists()
    assert read_record(harness.claim.work) is None
    harness.set_current_attempt(1)
    assert runner.wait_for_exit().code == 0
    assert len(harness.claim.answers()) == 1


def test_a_runner_whose_port_is_in_use_reports_it(harness: RunnerHarness) -> None:
    harness.write_checked_input(a_row(1))
    harness.start_engine()
    runner_exit = harness.start(1, "--port", str(harness.engine_port)).wait_for_exit()
    assert runner_exit.code == 1
    assert f"cannot listen on 127.0.0.1:{harness.engine_port}" in runner_exit.report["message"]


@pytest.mark.parametrize(
    "options", [["--attempt", "0"], *full(["--batch", "nameless"], ["--concurrency", "0"])]
)
def test_wrong_arguments_are_the_operators_fault(
    harness: RunnerHarness, options: list[str]
) -> None:
    assert harness.start(1, *options).wait_for_exit().code == 2


def test_parts_are_lines_of_json_that_people_can_read(harness: RunnerHarness) -> None:
    harness.write_checked_input(a_row(1))
    harness.start_engine()
    assert harness.start(1).wait_for_exit().code == 0
    part = parts.part_path(harness.claim.work, 0, 1)
    header, sent, answered = map(json.loads, part.read_text(encoding="utf-8").splitlines())
    assert header["attempt"] == 1
    assert sent["sent"] == 0
    assert answered["line"]["custom_id"] == "row-1"
