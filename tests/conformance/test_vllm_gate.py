"""A gate tells models apart that differ in what they can do, on a real vLLM on the CPU."""

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.sum_models import (
    MOST_DIGITS,
    quantized,
    sum_engine,
    sum_model,
    write_suite,
)
from world.slots import free_port

pytestmark = pytest.mark.vllm

_MODEL = "sums"
_A_STRATUM = 60
_PROMPTS = _A_STRATUM * (MOST_DIGITS - 1)
_ANSWER_SECONDS = 600


@dataclass(frozen=True, slots=True)
class GateRuns:
    """A suite, and what models answered to it."""

    venv: Path
    folder: Path

    @property
    def suite(self) -> Path:
        return self.folder / "suite.jsonl"

    async def answer(self, name: str, model: Path, role: str, *options: str) -> dict[str, Any]:
        """Start an engine, let the runner of a gate ask it, and return the report."""
        async with sum_engine(self.venv, model, _MODEL, self.folder) as engine:
            report = self.folder / f"{name}-{role}.json"
            command = [
                *(sys.executable, "-m", "tessera.batch_runner.main", "gate"),
                *("--gate", "team-a/sums", "--role", role, "--version", name),
                *("--url", engine.url, "--model", _MODEL, "--suite", str(self.suite)),
                *("--scorer", "1", "--answers", str(self.folder / "answers")),
                *("--report", str(report), "--host", "127.0.0.1", "--port", str(free_port())),
                *options,
            ]
            process = await asyncio.create_subprocess_exec(*command)
            try:
                # The runner waits without end for an engine that is away.
                async with asyncio.timeout(_ANSWER_SECONDS):
                    code = await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            assert code == 0, report.read_text(encoding="utf-8")
        fields: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        print(f"\n{name}: {fields.get('message', '')}\n{fields.get('strata', '')}")
        return fields

    async def compare(self, name: str, model: Path, baseline: str) -> dict[str, Any]:
        report = json.loads((self.folder / f"{baseline}-baseline.json").read_text(encoding="utf-8"))
        digest = "--baseline-digest", report["answersDigest"]
        return await self.answer(name, model, "candidate", "--baseline", baseline, *digest)


@pytest.fixture(scope="module")
def runs(venv: Path, tmp_path_factory: pytest.TempPathFactory) -> GateRuns:
    runs = GateRuns(venv, tmp_path_factory.mktemp("gate"))
    write_suite(runs.suite, _A_STRATUM)
    return runs


async def test_a_suite_tells_a_small_model_from_a_large_one_and_int8_from_a_broken_file(
    runs: GateRuns,
) -> None:
    large = sum_model(runs.venv, "10m")
    first = await runs.answer("large", large, "baseline")
    small = await runs.compare("small", sum_model(runs.venv, "1m"), "large")
    int8 = await runs.compare("int8", quantized(runs.venv, large, 8, runs.folder / "int8"), "large")
    broken = await runs.compare(
        "broken", quantized(runs.venv, large, 3, runs.folder / "broken"), "large"
    )
    assert first["answered"] == 2 * _PROMPTS
    assert (small["verdict"], broken["verdict"]) == ("Failed", "Failed")
    assert int8["verdict"] != "Failed"
    # The longer a sum is, the harder; short ones are nearly as good as before.
    scores = {row[0]: row[3] for row in small["strata"]}
    losses = {row[0]: row[4] for row in small["strata"]}
    assert scores["digits-2"] > scores["total"] > scores[f"digits-{MOST_DIGITS}"]
    assert losses["digits-2"] < losses["total"]
