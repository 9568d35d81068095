"""`tessera bench --baseline`: an earlier report, and what changed since then."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tessera.cli.errors import CommandError
from tessera_lab.cli.bench.arguments import bench as bench_command
from tessera_lab.cli.bench.baseline import read_baseline
from tessera_lab.cli.bench.command import run_bench
from tests.lab.cli.scripted_server import good, scripted_server

SMALL = ("--prompts", "6", "--warmup", "0", "--input-tokens", "60", "--output-tokens", "4")
pytestmark = pytest.mark.anyio


async def bench(*arguments: str) -> str:
    return (await run_bench(bench_command.parse(arguments))).text


async def save_report(folder: Path, *arguments: str, **changed: Any) -> Path:
    """Save a report of now in a file, with some of its fields changed."""
    file = folder / "before.json"
    file.write_text(json.dumps(json.loads(await bench(*arguments, "-o", "json")) | changed))
    return file


async def test_the_difference_to_an_earlier_report_is_reported_load_by_load(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    async with scripted_server(good) as server:
        file = await save_report(tmp_path, server.url, *SMALL, "--sweep", "1,2", "--price", "2")
        before = json.loads(file.read_text())
        before["levels"][0]["outputTokensPerSecond"] = 1.0
        before["levels"][1]["latencySeconds"]["ttft"]["p95"] = 80.0
        file.write_text(json.dumps(before))
        same = (server.url, *SMALL, "--sweep", "1,2", "--price", "2", "--baseline", str(file))
        text = await bench(*same, "--html", str(page))
        report = json.loads(await bench(*same, "-o", "json"))
    assert re.search(r"^2 +TTFT P95 +80\.00 s +\S+ ms +-(99\.9|100\.0)%$", text, re.MULTILINE)
    assert f"SINCE {before['at'][:16]}" in page.read_text()
    changes = {
        (change["load"], change["metric"]): change for change in report["baseline"]["changes"]
    }
    assert {load for load, _ in changes} == {"1", "2"}
    assert {figure for _, figure in changes} == {
        *("requestsPerSecond", "outputTokensPerSecond", "perMillionOutput"),
        *("ttft.p50", "ttft.p95", "tpot.p50", "tpot.p95"),
        *("e2eLatency.p50", "e2eLatency.p95"),
    }
    quicker = changes["1", "outputTokensPerSecond"]
    assert quicker["before"] == 1.0
    assert quicker["now"] == report["levels"][0]["outputTokensPerSecond"]
    assert quicker["change"] == pytest.approx(quicker["now"] - 1)
    assert report["baseline"]["caveats"] == []


async def test_what_makes_two_reports_hard_to_compare_is_reported(tmp_path: Path) -> None:
    async with scripted_server(good) as server:
        file = await save_report(
            *(tmp_path, server.url, *SMALL, "--concurrency", "1"), model="older", interrupted=True
        )
        text = await bench(server.url, *SMALL, "--sweep", "1,2", "--baseline", str(file))
    assert "the baseline differs in model: older, now odd" in text
    assert "the baseline differs in interrupted: true, now false" in text
    assert "the baseline differs in load: closed loop, concurrency 1" in text
    assert "the baseline has no load 2; it has 1" in text
    assert "SINCE" in text


async def test_prices_in_two_currencies_are_reported(tmp_path: Path) -> None:
    async with scripted_server(good) as server:
        file = await save_report(tmp_path, server.url, *SMALL, "--price", "2")
        words = ("--price", "2", "--currency", "EUR", "--baseline", str(file))
        text = await bench(server.url, *SMALL, *words)
    assert "the baseline's prices are in USD, now in EUR" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("LOAD  COMPLETED", "is not JSON"),
        ("[]", "is not a report of tessera bench"),
        ('{"kind": "Else"}', "is not a report of tessera bench"),
        ('{"kind": "TesseraBench", "formatVersion": 9}', "format version 9, this version reads 2"),
        ('{"kind": "TesseraBench", "formatVersion": 2}', "is incomplete or was edited"),
        (
            '{"kind": "TesseraBench", "formatVersion": 2, "levels": [{"load": "1"}]}',
            "is incomplete",
        ),
    ],
)
def test_a_file_that_is_no_baseline_is_a_sentence_with_its_fix(
    tmp_path: Path, content: str | None, said: str
) -> None:
    file = tmp_path / "before.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(CommandError) as refused:
        read_baseline(str(file))
    assert said in str(refused.value)
    assert "make one with tessera bench URL -o json > FILE" in str(refused.value)
