"""One attempt as a process, against look-alikes of the engine and the API server."""

import json
import signal
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tessera.batch_runner import parts
from tessera.batch_runner.publish import read_record
from tests.batch_runner.running import Stage, a_row, eventually, get
from tests.lab.sim.running import SHAPE

pytestmark = pytest.mark.long


def test_every_row_is_answered_in_the_order_of_the_input(stage: Stage) -> None:
    stage.checked(*map(a_row, range(1200)))
    stage.start_engine()
    ended = stage.start(1).ended()
    assert ended.code == 0, ended.said
    answers = stage.claim.answers()
    assert [answer["custom_id"] for answer in answers] == [f"row-{row}" for row in range(1200)]
    assert set(answers[7]) == {"id", "custom_id", "response", "error"}
    assert answers[7]["error"] is None
    assert answers[7]["response"]["status_code"] == 200
    assert answers[7]["response"]["body"]["choices"][0]["message"]["content"] == "row-7 word"
    assert len({answer["id"] for answer in answers}) == 1200
    assert stage.claim.errors.read_bytes() == b""
    figures = {"rows": 1200, "completed": 1200, "failed": 0, "resentRows": 0, "resentTokens": 0}
    tokens = {"promptTokens": 7 * 1200, "outputTokens": 11 * 1200}
    head = {"phase": "run", "attempt": 1, "state": "completed"}
    assert ended.report == {**head, **figures, **tokens, "message": ended.report["message"]}


def test_a_bad_row_fails_alone_with_its_reason(stage: Stage) -> None:
    prompts = ["refuse", "fail", "mumble", "hang"]
    rows = [a_row(number, prompt=f"please {word}") for number, word in enumerate(prompts)]
    stage.checked(*rows, a_row(4, prompt="fail once echo row-4"), a_row(5))
    stage.start_engine()
    ended = stage.start(1, "--retries", "1", "--row-seconds", "0.3").ended()
    assert (ended.code, ended.report["completed"], ended.report["failed"]) == (0, 2, 4), ended.said
    failures = stage.claim.failures()
    assert [(failure["custom_id"], failure["error"]["code"]) for failure in failures] == [
        ("row-0", "request_refused"),
        ("row-1", "engine_error"),
        ("row-2", "invalid_response"),
        ("row-3", "engine_timeout"),
    ]
    assert failures[0]["error"]["message"] == "400: the prompt is wrong"
    assert failures[0]["response"]["status_code"] == 400
    assert failures[3]["response"] is None
    assert [answer["custom_id"] for answer in stage.claim.answers()] == ["row-4", "row-5"]
    sent = stage.sent()
    assert sorted(sent.count(one) for one in set(sent)) == [1, 1, 2, 2, 2, 2]


def test_a_row_that_ends_the_engine_is_found_and_its_neighbours_are_answered(stage: Stage) -> None:
    rows = [a_row(number) for number in range(60)]
    rows[20] = a_row(20, prompt="please crash")
    stage.checked(*rows)
    stage.start_engine("--delay", "0.01")
    runner = stage.start(1)
    while runner.runs_for(0.1):
        if not stage.engine_runs():
            stage.start_engine()
    ended = runner.ended()
    assert (ended.code, ended.report["completed"], ended.report["failed"]) == (0, 59, 1), ended.said
    (failure,) = stage.claim.failures()
    assert (failure["custom_id"], failure["error"]["code"]) == ("row-20", "engine_crashed")


def test_an_engine_that_restarts_costs_no_retries(stage: Stage) -> None:
    stage.checked(*map(a_row, range(300)))
    stage.start_engine("--delay", "0.05")
    runner = stage.start(1, "--retries", "0")
    runner.until(lambda seen: seen["done"] > 50, "some rows")
    stage.kill_engine()
    runner.until(lambda seen: seen["state"] == "waiting", "a runner that waits")
    stage.start_engine()
    ended = runner.ended()
    assert (ended.code, ended.report["completed"]) == (0, 300), ended.said
    assert 1 <= ended.report["resentRows"] <= 16
    assert ended.report["resentTokens"] > 20 * ended.report["resentRows"]


def test_answers_that_an_engine_aborts_at_its_end_are_asked_again(stage: Stage) -> None:
    body = {"prompt": "once", "max_tokens": 200, "ignore_eos": True}
    stage.checked(*(a_row(row, url="/v1/completions", body=body) for row in range(160)))
    words = ("-m", "tessera_lab.sim.main", "tiny", "--port", str(stage.engine_port))
    shape = {"TESSERA_SIM_SHAPE": SHAPE, "TESSERA_SIM_START_SECONDS": "0"}
    engine = stage.listening(stage.engine_port, words, **shape)
    runner = stage.start(1, "--retries", "0")
    runner.until(lambda seen: seen["done"] > 30 and seen["inFlight"] == 16, "some rows")
    engine.terminate()
    engine.wait()
    stage.listening(stage.engine_port, words, **shape)
    ended = runner.ended()
    assert (ended.code, ended.report["completed"]) == (0, 160), ended.said
    bodies = [answer["response"]["body"] for answer in stage.claim.answers()]
    assert {found["choices"][0]["finish_reason"] for found in bodies} == {"length"}
    assert {found["usage"]["completion_tokens"] for found in bodies} == {200}
    assert ended.report["resentRows"] > 0


def test_an_engine_that_stays_away_ends_the_attempt(stage: Stage) -> None:
    stage.checked(a_row(1))
    ended = stage.start(1, "--engine-seconds", "0.2").ended()
    assert (ended.code, ended.report["state"]) == (1, "failed")
    assert "did not answer for 0.2 s" in ended.report["message"]
    assert "Traceback" not in ended.said


def test_it_tells_how_far_it_is(stage: Stage) -> None:
    rows = [a_row(0, prompt="please refuse"), a_row(1), a_row(2, prompt="please hang")]
    stage.checked(*rows)
    stage.start_engine()
    runner = stage.start(1)
    seen = runner.until(lambda seen: seen["done"] == 2 and seen["inFlight"] == 1, "two rows")
    figures = {"attempt": 1, "rows": 3, "done": 2, "failed": 1, "inFlight": 1, "state": "running"}
    tokens = {"resentRows": 0, "resentTokens": 0, "promptTokens": 7, "outputTokens": 11}
    assert seen == figures | tokens
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


def test_at_sigterm_it_ends_at_once_and_the_next_attempt_goes_on(stage: Stage) -> None:
    rows = [a_row(number) for number in range(40)]
    rows[10] = a_row(10, prompt="please hang")
    stage.checked(*rows)
    stage.start_engine()
    runner = stage.start(1)
    runner.until(lambda seen: seen["done"] == 39, "all rows but one")
    begun = time.monotonic()
    runner.signal(signal.SIGTERM)
    ended = runner.ended()
    assert time.monotonic() - begun < 2
    assert (ended.code, ended.report["state"], ended.report["completed"]) == (0, "stopped", 39)
    assert not stage.claim.output.exists()
    stage.current(2)
    second = stage.start(2, "--row-seconds", "0.2", "--retries", "0").ended()
    assert (second.code, second.report["failed"], second.report["resentRows"]) == (0, 1, 1)
    assert len(stage.sent()) == 41


def test_an_input_that_changed_is_refused_before_a_row_is_paid(stage: Stage) -> None:
    stage.checked(a_row(1), a_row(2))
    stage.start_engine()
    stage.claim.write([a_row(1), a_row(3)])
    ended = stage.start(1).ended()
    assert (ended.code, ended.report["state"]) == (3, "failed")
    assert "changed after its check" in ended.report["message"]
    assert stage.sent() == []


def test_without_a_check_or_before_another_output_nothing_is_paid(stage: Stage) -> None:
    stage.claim.write([a_row(1)])
    stage.start_engine()
    ended = stage.start(1).ended()
    assert (ended.code, "the input was not checked" in ended.report["message"]) == (3, True)
    stage.checked(a_row(1))
    stage.claim.errors.write_text("mine")
    ended = stage.start(1).ended()
    assert (ended.code, "not a result of this batch" in ended.report["message"]) == (3, True)
    assert stage.claim.errors.read_text() == "mine"
    assert stage.sent() == []


def test_a_full_volume_ends_the_attempt_and_loses_no_answer(stage: Stage) -> None:
    stage.checked(*map(a_row, range(400)))
    stage.start_engine()
    first = stage.start(1, fsize=40_000).ended()
    assert (first.code, first.report["state"]) == (1, "failed"), first.said
    assert "raise the limit" in first.report["message"]
    assert "Traceback" not in first.said
    kept = first.report["completed"]
    assert 0 < kept < 400
    assert not parts.part_path(stage.claim.work, 0, 1).read_bytes().endswith(b"\n"), "a torn line"
    before = len(stage.sent())
    stage.current(2)
    second = stage.start(2).ended()
    assert (second.code, second.report["completed"]) == (0, 400)
    assert len(stage.sent()) - before == 400 - kept


def test_a_container_that_starts_again_in_its_attempt_goes_on(stage: Stage) -> None:
    stage.checked(*map(a_row, range(300)))
    stage.start_engine()
    assert stage.start(1, fsize=40_000).ended().code == 1
    ended = stage.start(1).ended()
    assert (ended.code, ended.report["completed"]) == (0, 300)
    assert len(stage.claim.answers()) == 300


def test_published_results_are_reported_again_without_engine_or_api_server(stage: Stage) -> None:
    stage.checked(a_row(1), a_row(2, prompt="please refuse"))
    stage.start_engine()
    first = stage.start(1).ended()
    written = stage.claim.output.stat()
    stage.kill_engine()
    stage.api_shows("503")
    again = stage.start(2).ended()
    assert (first.code, again.code) == (0, 0)
    assert again.report == first.report | {"attempt": 2}
    assert stage.claim.output.stat() == written


def test_nothing_is_published_while_the_api_server_cannot_be_asked(stage: Stage) -> None:
    stage.checked(a_row(1))
    runner = stage.start(1)
    runner.until(lambda seen: seen["state"] == "waiting", "an attempt without its engine")
    stage.api_shows("503")
    stage.start_engine()
    runner.until(lambda seen: seen["state"] == "publishing", "an attempt that may not publish")
    eventually(lambda: "not known yet, retrying" in runner.said(), runner.said)
    assert not stage.claim.output.exists()
    assert read_record(stage.claim.work) is None
    stage.current(1)
    assert runner.ended().code == 0
    assert len(stage.claim.answers()) == 1


def test_a_runner_whose_port_is_taken_says_so(stage: Stage) -> None:
    stage.checked(a_row(1))
    stage.start_engine()
    ended = stage.start(1, "--port", str(stage.engine_port)).ended()
    assert ended.code == 1
    assert f"cannot listen on 127.0.0.1:{stage.engine_port}" in ended.report["message"]


@pytest.mark.parametrize(
    "options", [("--attempt", "0"), ("--batch", "nameless"), ("--concurrency", "0")]
)
def test_wrong_arguments_are_the_operators_fault(stage: Stage, options: tuple[str, str]) -> None:
    assert stage.start(1, *options).ended().code == 2


def test_parts_are_lines_of_json_that_people_can_read(stage: Stage) -> None:
    stage.checked(a_row(1))
    stage.start_engine()
    assert stage.start(1).ended().code == 0
    part = parts.part_path(stage.claim.work, 0, 1)
    sent, answered = map(json.loads, part.read_text(encoding="utf-8").splitlines())
    assert sent["sent"] == 0
    assert answered["line"]["custom_id"] == "row-1"
