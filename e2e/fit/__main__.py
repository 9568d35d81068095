"""`make fit-vllm`: measure a real vLLM, fit the look-alike to it, measure that, compare.

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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from demo.engine import VERSION, installed
from demo.stage import ROOT
from fit.engines import LIMITS, Cores, Running, arguments, cores, look_alike, real
from fit.figures import SHOWN, Compared, flat, missed, table
from fit.loads import LOADS, Measured, Tally, once, sweep
from fit.model import NAME, SIZES, make
from tessera.cli.bench_html import html
from tessera.cli.bench_json import as_json
from tessera.cli.bench_report import Report
from tessera.domain.engine_fit import Fit, fit, latencies, replayed
from tessera.domain.engine_requests import Limits
from tessera.engine_sim import speeds
from tessera.engine_sim.launch import launch_from

FOLDER = ROOT / "docs" / "figures"
_EXTRA = 3
"""Runs of a load beyond those that are wanted, in place of disturbed ones."""
Say = Callable[[str], None]


def main() -> None:
    """Measure, print the table, and the line for machines."""
    parser = argparse.ArgumentParser(prog="fit")
    parser.add_argument("--runs", type=int, default=5, help="of each load")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each run")
    parser.add_argument("--save", action="store_true", help="make these the committed figures")
    options = parser.parse_args()
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:4.0f} s] {text}", flush=True)

    venv = installed()
    on = cores()
    os.sched_setaffinity(0, {on.client})
    with tempfile.TemporaryDirectory() as folder:
        model = make(venv, Path(folder) / NAME)
        figures, reports = asyncio.run(_all(venv, model, on, options, say))
    print(*table(figures["loads"]), sep="\n")
    for line in figures["missed"]:
        print(f"MISSED {line}")
    if options.save:
        _save(figures, reports)
    print(f"BENCH {json.dumps(flat(figures))}")


async def _all(
    venv: Path, model: Path, on: Cores, options: argparse.Namespace, say: Say
) -> tuple[dict[str, Any], dict[str, Report]]:
    counted = _ticks()
    say("starting vLLM on the CPU; this takes half a minute")
    with real(venv, model, on) as engine:
        first = await _swept(engine, say)
        knee = _knee(first)
        tallies = [
            Tally(load=load, rate=load.share * knee["requests_per_second"]) for load in LOADS
        ]
        for attempt in range(options.runs + _EXTRA):
            for tally in tallies:
                if tally.missing(options.runs):
                    tally.runs.append(
                        await _ran(engine, tally, 100 + attempt, options.seconds, say)
                    )
    chosen = [tally.quietest(options.runs) for tally in tallies]
    limits = launch_from(arguments(model, "tessera-sim"), {}).limits
    found = fit(
        [_runs(got) for tally, got in zip(tallies, chosen, strict=True) if tally.load.fitted],
        limits,
    )
    say(f"fitted, off by {found.error:.1%}: {speeds.as_json(found.speed)}")
    sims = [Tally(load=tally.load, rate=tally.rate) for tally in tallies]
    with look_alike(model, found.speed, on) as engine:
        second = await _swept(engine, say)
        for sim, got in zip(sims, chosen, strict=True):
            for one in got:
                sim.runs.append(await _ran(engine, sim, one.seed, options.seconds, say))
    compared = [
        Compared(
            load=tally.load,
            rate=tally.rate,
            real=got,
            sim=sim.runs,
            machine=_machine(got, limits, found),
        ).figures()
        for tally, got, sim in zip(tallies, chosen, sims, strict=True)
    ]
    figures = {
        **_about(options, counted, found),
        "knee": {"vllm": knee, "tessera_sim": _knee(second)},
        "loads": compared,
        "missed": missed(compared),
    }
    return figures, {"vllm": first, "tessera-sim": second}


async def _swept(engine: Running, say: Say) -> Report:
    before = engine.waited_seconds()
    report = await sweep()
    lines = [f"{one.level.name}: {one.requests_per_second:.2f}/s" for one in report.levels]
    knee = report.knee.concurrency if report.knee else "not found"
    waited = engine.waited_seconds() - before
    say(f"closed loops {', '.join(lines)}; knee {knee}; {waited:.1f} s without a core")
    return report


def _knee(report: Report) -> dict[str, Any]:
    if report.knee is None:
        raise SystemExit("the sweep shows no knee: the machine was too busy, try again")
    at = report.knee.concurrency
    level = next(one for one in report.levels if one.level.concurrency == at)
    return {"concurrency": at, "requests_per_second": round(level.requests_per_second, 3)}


async def _ran(engine: Running, tally: Tally, seed: int, seconds: float, say: Say) -> Measured:
    got = await once(engine, tally.load, tally.rate, seed, seconds)
    found = latencies([got.run], SHOWN)
    told = " ".join(f"{value * 1e3:.1f}" for value in (*found.first_token, *found.per_token))
    say(f"{tally.load.name}, seed {seed}: {told} ms; {got.waited:.1%} without a core")
    return got


def _machine(runs: Sequence[Measured], limits: Limits, found: Fit) -> Any:
    return latencies([replayed(one.run, limits, found.speed) for one in runs], SHOWN)


def _runs(got: Sequence[Measured]) -> list[Any]:
    return [one.run for one in got]


def _about(options: argparse.Namespace, counted: list[int], found: Fit) -> dict[str, Any]:
    passed = [after - before for before, after in zip(counted, _ticks(), strict=True)]
    return {
        "vllm": VERSION,
        "model": SIZES,
        "limits": " ".join(LIMITS),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "stolen_share": round(passed[7] / sum(passed), 4),
        "idle_share": round(passed[3] / sum(passed), 4),
        "runs": options.runs,
        "seconds_of_a_run": options.seconds,
        "speed": json.loads(speeds.as_json(found.speed)),
        "fit_error": round(found.error, 4),
    }


def _ticks() -> list[int]:
    """Of all cores together, as /proc/stat counts them."""
    first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    return [int(word) for word in first.split()[1:9]]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _save(figures: dict[str, Any], reports: dict[str, Report]) -> None:
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(figures, indent=2) + "\n"
    (FOLDER / "fit.json").write_text(text, encoding="utf-8")
    for name, report in reports.items():
        (FOLDER / f"bench-{name}.json").write_text(as_json(report), encoding="utf-8")
        (FOLDER / f"bench-{name}.html").write_text(html(report), encoding="utf-8")


if __name__ == "__main__":
    main()
