"""`tessera mix`: its files, its options, its output, its page."""

import gzip
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from docs_tests.blocks import Command, File
from docs_tests.pages import page_of, read_page_steps
from tessera.cli.errors import CommandError
from tessera_lab.cli.mix.arguments import mix
from tessera_lab.cli.mix.command import run

PRICE = ("--on-demand", "3.50")
HEAD = "t_s,replicas\n"
TRACE = "arrival_s,input_tokens,output_tokens\n"


def text(path: Path, content: str, *words: str) -> str:
    path.write_text(content, encoding="utf-8")
    return run(mix.parse([str(path), *(words or PRICE)])).text


def report(path: Path, content: str, *words: str) -> Any:
    return json.loads(text(path, content, *words, "--json"))


@pytest.fixture
def load(tmp_path: Path) -> Path:
    return tmp_path / "load.csv"


def test_a_table_of_replicas_needs_only_a_price(load: Path) -> None:
    result = report(load, HEAD + "0,2\n3600,6\n7200,4\n", *PRICE)
    assert result["load"] == {
        "hours": 3.0,
        "meanReplicas": 4.0,
        "p50Replicas": 4,
        "p95Replicas": 6,
        "peakReplicas": 6,
    }
    assert result["replicaHour"] == {
        "onDemand": 3.5,
        "reserved": 2.1,
        "spot": 1.05,
        "effectiveSpot": 1.1667,
    }
    assert result["breakEvenUse"] == 0.6
    assert result["breakEvenWaste"] == {"reserved": 0.5, "onDemand": 0.7}
    assert [choice["reserved"] for choice in result["choices"]] == [0, 2, 4, 4, 0, 6]
    assert (result["cheapest"], result["cheapestWithSpot"]) == ("Median", "OnDemandOnly")
    assert result["warnings"] == []


def test_a_choice_that_is_used_too_little_is_warned_of(load: Path) -> None:
    result = text(load, HEAD + "0,1\n3600,1\n7200,9\n")
    assert (
        "Warning: Peak: what is reserved (9) is used for 40.7%, below the break-even of 60.0%"
        in result
    )
    assert "Warning: Median" not in result


def test_rates_become_replicas_by_what_one_carries(load: Path) -> None:
    words = (*PRICE, "--replica-rate", "2.5")
    result = report(load, "t_s,rate_rps,clients\n0,5.0,9\n60,5.1,9\n120,0,0\n", *words)
    assert result["load"]["meanReplicas"] == pytest.approx(5 / 3, abs=1e-4)
    assert result["load"]["peakReplicas"] == 3


def test_a_trace_is_counted_in_windows(load: Path) -> None:
    rows = "".join(f"{number / 2},10,10\n" for number in range(1200))
    result = report(load, TRACE + rows + "899.5,10,10\n", *PRICE, "--replica-rate", "1")
    assert result["load"] == {
        "hours": 0.25,
        "meanReplicas": pytest.approx(5 / 3, abs=1e-4),
        "p50Replicas": 2,
        "p95Replicas": 2,
        "peakReplicas": 2,
    }
    wide = report(load, TRACE + rows, *PRICE, "--replica-rate", "1", "--window", "600")
    assert wide["load"]["p50Replicas"] == 2


def test_a_compressed_table_is_read(load: Path) -> None:
    load.write_bytes(gzip.compress(b"# two hours\n" + HEAD.encode() + b"0,2\n3600,3\n"))
    result = json.loads(run(mix.parse([str(load), *PRICE, "--json"])).text)
    assert result["load"]["meanReplicas"] == 2.5


def test_prices_are_of_a_set_and_each_may_be_given(load: Path) -> None:
    table = HEAD + "0,2\n3600,3\n"
    h100 = ("--prices", "aws-2026", "--gpu", "NVIDIA-H100-80GB-HBM3")
    listed = report(load, table, *h100, "--wasted", "0")["replicaHour"]
    assert listed == {"onDemand": 6.88, "reserved": 4.2, "spot": 1.6, "effectiveSpot": 1.6}
    assert report(load, table, "--prices", "neo-2026")["replicaHour"]["reserved"] == 1.79
    own = report(load, table, *h100, "--reserved", "3", "--gpus", "2")["replicaHour"]
    assert (own["onDemand"], own["reserved"]) == (13.76, 6.0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "line 1: missing column"),
        (HEAD, "has 0 rows"),
        (HEAD + "0,1\n", "has 1 row;"),
        ("t_s,pods\n0,1\n", "line 1: missing column replicas or rate_rps"),
        (HEAD + "0,1\n10,x\n", "line 3: not numbers: 10,x"),
        (HEAD + "0,1\n10\n", "line 3: not numbers: 10"),
        (HEAD + "0,1\n\n5,-1\n", "line 4: replicas -1 is not a number from 0 on"),
        (HEAD + "0,1\n5,nan\n", "line 3: replicas nan is not"),
        (HEAD + "0,1\nnan,1\n", "line 3: t_s nan is not from 0"),
        (HEAD + "-5,1\n", "line 2: t_s -5 is not from 0"),
        (HEAD + "0,1\n10,1\n10,2\n", "line 4: t_s 10 is not after 10 in the row above"),
        (HEAD + "0,1\n10,1e9\n", "line 3: replicas 1e+09 is above 100000"),
        (HEAD + "0,0\n10,0\n", "needs no replica at any time"),
        (TRACE + "5,1,1\n4,1,1\n", "line 3: arrival 4 is before 5"),
        ("t_s,rate_rps\n0,1\n9,2\n", "say with --replica-rate"),
    ],
)
def test_a_bad_load_is_a_sentence_with_its_line(load: Path, content: str, problem: str) -> None:
    with pytest.raises(CommandError) as error:
        text(load, content)
    assert problem in str(error.value)
    assert str(load) in str(error.value)


def test_a_file_that_cannot_be_read_is_a_sentence(load: Path) -> None:
    whole = gzip.compress(HEAD.encode() + b"0,1\n" * 5000)
    for content in (whole[: len(whole) // 2], b"\x1f\x8bnothing", b"t_s,replicas\n0,\xff\n"):
        load.write_bytes(content)
        with pytest.raises(CommandError, match="neither text nor complete gzip"):
            run(mix.parse([str(load), *PRICE]))
    with pytest.raises(CommandError, match="No such file"):
        run(mix.parse([str(load.parent / "none.csv"), *PRICE]))


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        ((), "choose a set with --prices"),
        (("--prices", "aws-2026"), "has several GPUs: choose --gpu NVIDIA-H100-80GB-HBM3 or"),
        (("--prices", "neo-2026", "--gpu", "B200"), "has no price of B200: choose --gpu"),
        ((*PRICE, "--wasted", "1"), "--wasted 1: write a number from 0 to 0.99"),
        ((*PRICE, "--replica-rate", "nan"), "--replica-rate nan: write a number from"),
        ((*PRICE, "--window", "0"), "--window 0: write a number from 1"),
        ((*PRICE, "--spot", "-1"), "--spot -1: write a number from"),
        (("--on-demand", "inf"), "--on-demand inf: write a number from"),
        ((*PRICE, "--gpus", "0"), "--gpus 0: write a number from 1"),
    ],
)
def test_a_bad_option_is_a_sentence_with_its_fix(
    load: Path, words: tuple[str, ...], fix: str
) -> None:
    load.write_text(HEAD + "0,1\n10,1\n", encoding="utf-8")
    with pytest.raises(CommandError) as error:
        run(mix.parse([str(load), *words]))
    assert fix in str(error.value)


def test_the_page_shows_what_the_command_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tried = 0
    for step in read_page_steps(page_of("reserve")):
        if isinstance(step, File):
            (tmp_path / step.name).write_text(step.text, encoding="utf-8")
        elif isinstance(step, Command):
            program, name, *words = shlex.split(step.text)
            assert (program, name) == ("tessera", "mix")
            assert run(mix.parse(words)).text.strip() == (step.output or "").strip()
            tried += 1
    assert tried == 1
