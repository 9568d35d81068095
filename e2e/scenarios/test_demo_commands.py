"""`make demo` and `make demo-NAME` as they are typed, each in a world of its own."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from demo.cluster import ROOT

pytestmark = pytest.mark.world
_RUN_SECONDS = 900


async def _exit_code(*arguments: str) -> int:
    sources = os.pathsep.join(str(ROOT / folder) for folder in ("operator", "e2e", "tools", "."))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "demo", *arguments), env=os.environ | {"PYTHONPATH": sources}
    )
    return await asyncio.wait_for(process.wait(), _RUN_SECONDS)


@pytest.mark.parametrize("demo", ["budget", pytest.param("routes", marks=pytest.mark.full)])
async def test_a_demo_succeeds(demo: str) -> None:
    assert await _exit_code(demo) == 0


@pytest.mark.full
async def test_the_mission_succeeds_and_writes_its_report(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    assert await _exit_code("--report", str(report)) == 0
    assert "The bill" in report.read_text(encoding="utf-8")
