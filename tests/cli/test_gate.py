"""`tessera gate`: starter suites, imported ones, and runs against a scripted engine."""

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from tessera.batch_runner.gate.suite import parse_suite
from tessera.cli.gate.importing import ImportedRows, stratum_of
from tessera.cli.gate.starter import starter_rows
from tessera.cli.main import main
from tests.batch_runner.gate.scripted_engine import Script, last_text, serve_engine


def tessera(*arguments: str) -> tuple[str, int]:
    output = StringIO()
    try:
        main(arguments, output)
    except SystemExit as error:
        if isinstance(error.code, str):
            raise
        return output.getvalue(), int(error.code or 0)
    return output.getvalue(), 0


@contextmanager
def an_engine(script: Script) -> Iterator[str]:
    """Serve in a thread, since commands have loops of their own."""
    loop, url, stop = asyncio.new_event_loop(), list[str](), asyncio.Event()
    started = threading.Event()

    async def serve() -> None:
        async with serve_engine(script) as engine:
            url.append(engine.url)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(30)
    try:
        yield url[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def test_a_starter_suite_is_valid_has_each_stratum_and_is_the_same_for_a_seed() -> None:
    suite = parse_suite("\n".join(starter_rows(1, 40)).encode())
    assert set(suite.counts.values()) == {40}
    assert {"arithmetic", "exact-format", "multi-step", "code", "tool-calls"} < {*suite.counts}
    assert len(suite.counts) == 10
    assert list(starter_rows(1, 3)) == list(starter_rows(1, 3)) != list(starter_rows(2, 3))
    text, code = tessera("gate", "init", "--seed", "5", "--per-stratum", "2")
    assert (code, text.splitlines()) == (0, list(starter_rows(5, 2)))


GENERATED = {
    "doc_id": 0,
    "target": "She has 3 + 4 apples.\n#### 1,007",
    "arguments": {"gen_args_0": {"arg_0": "How many?", "arg_1": {"max_gen_toks": 99}}},
    "filter": "strict-match",
}
CHOSEN = {
    "target": 1,
    "arguments": {
        f"gen_args_{i}": {"arg_0": "Q?", "arg_1": f" {each}"} for i, each in enumerate("AB")
    },
}


@pytest.mark.parametrize(
    ("sample", "row"),
    [
        (GENERATED, {"scorer": "number", "expected": 1007, "maxTokens": 99}),
        (
            {"target": "Paris", "arguments": [["Capital?", {"until": ["\n"]}]]},
            {"scorer": "contains", "expected": "Paris", "maxTokens": 512},
        ),
        (CHOSEN, {"scorer": "choice", "expected": {"choices": ["A", "B"], "answer": "B"}}),
        (
            {"target": "0", "arguments": [["Q", " in a river"], ["Q", " on a hill"]]},
            {"scorer": "choice", "expected": {"choices": ["A", "B"], "answer": "A"}},
        ),
    ],
)
def test_samples_of_lm_eval_become_rows(sample: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    imported = ImportedRows()
    imported.read([json.dumps(sample), "", json.dumps({**sample, "filter": "other"})], "task")
    assert len(imported.rows) == 1
    assert imported.rows[0].items() >= row.items()
    parse_suite(json.dumps(imported.rows[0]).encode())


def test_messages_of_a_chat_template_are_taken_as_they_were() -> None:
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]
    arguments = {"gen_args_0": {"arg_0": [json.dumps(messages)], "arg_1": {}}}
    imported = ImportedRows()
    imported.read([json.dumps({"target": "Hello", "arguments": arguments})], "task")
    assert imported.rows[0]["messages"] == messages


@pytest.mark.parametrize(
    ("sample", "part"),
    [
        ("{", "not JSON"),
        ([1], "without arguments"),
        ({"arguments": {"gen_args_0": {"arg_0": ["[]"], "arg_1": {}}}}, "without a prompt"),
        ({"target": "def f():\n  pass", "arguments": [["Code", {}]]}, "not run"),
        ({"target": "x", "arguments": [["A text", " continues"]]}, "likelihoods"),
        ({"target": 7, "arguments": CHOSEN["arguments"]}, "none of their choices"),
        ({"target": 0, "arguments": [["Q", " A"], ["Q", "A "]]}, "different texts"),
    ],
)
def test_samples_that_are_no_rows_are_counted_with_the_reason(sample: Any, part: str) -> None:
    imported = ImportedRows()
    imported.read([sample if isinstance(sample, str) else json.dumps(sample)], "task")
    assert imported.rows == []
    (reason,) = imported.skipped
    assert part in reason


def test_logs_are_imported_with_a_stratum_by_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stratum_of("samples_gsm8k_cot_2026-11-29T01-02-03.4.jsonl") == "gsm8k-cot"
    log = tmp_path / "samples_gsm8k_2026-11-29T01-02-03.jsonl"
    log.write_text(json.dumps(GENERATED) + "\n{\n")
    text, code = tessera("gate", "import", str(log))
    assert (code, json.loads(text)["stratum"]) == (0, "gsm8k")
    assert "left out 1 line: it is not JSON" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="has no prompts"):
        tessera("gate", "import", "/dev/null")


def a_suite(folder: Path) -> str:
    rows = [
        {
            "messages": [{"role": "user", "content": f"{number} + 1"}],
            "scorer": "number",
            "expected": number + 1,
        }
        for number in range(60)
    ]
    path = folder / "suite.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def adds(body: Mapping[str, Any]) -> str:
    return f"The sum is {int(last_text(body).split()[0]) + 1}"


def adds_often(body: Mapping[str, Any]) -> str | Mapping[str, str]:
    number = int(last_text(body).split()[0])
    cut = {"content": "Let me think", "finish_reason": "length"}
    return cut if number % 3 == 0 else f"{number + 1}"


def test_two_models_are_compared_in_one_table_and_again_from_their_answers(tmp_path: Path) -> None:
    suite, answers = a_suite(tmp_path), tmp_path / "answers"
    with an_engine(adds) as stable, an_engine(adds_often) as cheap:
        words = ("--url", cheap, "--model", "tiny", "--price", "0.2", "--against-price", "0.6")
        text, code = tessera(
            "gate", "run", suite, *words, "--against", f"{stable}/v1", "--answers", str(answers)
        )
    assert code == 1
    for part in ("VERSION", "QUALITY", "LATENCY", "DOLLARS", "Failed: Loss proven on 60 prompts"):
        assert part in text
    assert text.splitlines()[-1].endswith(
        " Cut at maxTokens: 33 % of the candidate's answers, 0 % of the baseline's; raise "
        "maxTokens in the suite."
    )
    baseline, candidate, change = text.splitlines()[1:4]
    assert "100.00 of 100" in baseline
    assert "0.6000 per Mtok, 0.6000 by quality" in baseline
    assert "66.67 of 100" in candidate
    assert "0.2000 per Mtok, 0.3000 by quality" in candidate
    assert "-33.33 points" in change
    assert "saved per 1,000 answers" in change
    files = [str(next(answers.glob(f"{role}-*.jsonl"))) for role in ("baseline", "candidate")]
    text, code = tessera("gate", "compare", *files, "--json")
    body = json.loads(text)
    assert (code, body["verdict"]["outcome"], body["versions"][0]["score"]) == (1, "Failed", 1)
    text, code = tessera("gate", "compare", files[0], files[0])
    assert (code, "Failed" in text) == (0, False)


def test_one_model_has_a_score_and_a_price_by_the_hour(tmp_path: Path) -> None:
    with an_engine(adds_often) as url:
        words = ("--url", url, "--model", "tiny", "--hourly", "3.6", "--json")
        text, code = tessera("gate", "run", a_suite(tmp_path), *words)
    (version,) = json.loads(text)["versions"]
    assert (code, round(version["score"], 4)) == (0, 0.6667)
    assert version["usdPerMillionTokens"] > 0


def test_what_a_command_cannot_use_is_said_in_a_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{\n")
    with pytest.raises(SystemExit, match="1 broken line: line 1: it is not JSON"):
        tessera("gate", "run", str(broken), "--url", "http://x", "--model", "m")
    with pytest.raises(SystemExit, match="has no answers"):
        tessera("gate", "compare", str(broken), str(broken))
    with pytest.raises(SystemExit, match="from 1 to 1000"):
        tessera("gate", "init", "--per-stratum", "0")
