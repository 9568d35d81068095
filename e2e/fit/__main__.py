"""`make fit-vllm`: measure a real vLLM, fit the simulator to it, measure that, compare.

The last line is `BENCH {json}`. With `--save` the figures and both reports of `tessera bench`
become those of the documentation.
"""

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from demo.engine import VERSION, engine_environment
from fit import pages
from fit.comparison import EngineComparison, Outcome
from fit.engines import LIMITS, cores, ticks
from fit.figures import flat, knee, missed
from fit.model import NAME, SIZES, make_model
from fit.pages import FOLDER, table
from tessera_lab.cli.bench.html import render_html
from tessera_lab.cli.bench.json import as_json
from tessera_lab.sim.launch import engine_speed as speeds

# Places in a line of /proc/stat.
_IDLE, _STOLEN = 3, 7


def main() -> None:
    """Measure, print the table, and the line for machines."""
    parser = argparse.ArgumentParser(prog="fit")
    parser.add_argument("--runs", type=int, default=5, help="of each load")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each run")
    parser.add_argument("--save", action="store_true", help="make these the committed figures")
    options = parser.parse_args()
    begun, counted, on = time.monotonic(), ticks(), cores()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:4.0f} s] {text}", flush=True)

    venv = engine_environment()
    with tempfile.TemporaryDirectory() as folder:
        course = EngineComparison(
            venv=venv,
            model=make_model(venv, Path(folder) / NAME),
            on=on,
            runs=options.runs,
            seconds=options.seconds,
            say=say,
        )
        os.sched_setaffinity(0, {on.client})
        outcome = asyncio.run(course.run())
    figures = _figures(outcome) | _about(counted, options.seconds)
    print(*table(figures["loads"]), sep="\n")
    for line in figures["missed"]:
        print(f"MISSED {line}")
    if options.save:
        _save(figures, outcome)
    print(f"BENCH {json.dumps(flat(figures))}")


def _figures(outcome: Outcome) -> dict[str, Any]:
    loads = [load.figures() for load in outcome.loads]
    return {
        "knee": {"vllm": knee(outcome.real), "tessera_sim": knee(outcome.sim)},
        "speed": json.loads(speeds.as_json(outcome.fit.speed)),
        "front_seconds": round(outcome.fit.frontend_seconds, 6),
        "fit_error": round(outcome.fit.error, 4),
        "loads": loads,
        "missed": missed(loads),
    }


def _about(counted: list[int], seconds: float) -> dict[str, Any]:
    """What it was measured on."""
    passed = [after - before for before, after in zip(counted, ticks(), strict=True)]
    return {
        "vllm": VERSION,
        "model": SIZES,
        "limits": " ".join(LIMITS),
        "seconds_of_a_run": seconds,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "idle_share": round(passed[_IDLE] / sum(passed), 3),
        "stolen_share": round(passed[_STOLEN] / sum(passed), 3),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _save(figures: dict[str, Any], outcome: Outcome) -> None:
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(figures, indent=2) + "\n"
    (FOLDER / "fit.json").write_text(text, encoding="utf-8")
    for name, report in (("vllm", outcome.real), ("tessera-sim", outcome.sim)):
        (FOLDER / f"bench-{name}.json").write_text(as_json(report), encoding="utf-8")
        (FOLDER / f"bench-{name}.html").write_text(render_html(report), encoding="utf-8")
    pages.main()


if __name__ == "__main__":
    main()
