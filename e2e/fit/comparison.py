"""The order of runs, from the real engine to the simulator that is fitted to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fit.engines import Cores, RunningEngine, arguments, real, simulator
from fit.figures import SHOWN, LoadComparison, knee
from fit.loads import LATE, LOADS, Load, MeasuredRun, Tally, run_once, sweep
from tessera_lab.cli.bench.report import BenchReport
from tessera_lab.engine.requests import EngineLimits
from tessera_lab.fit.speed_fit import (
    EngineSpeedFit,
    ObservedRun,
    fit_engine_speed,
    latency_percentiles,
    replay,
)
from tessera_lab.sim.launch import engine_speed as speeds
from tessera_lab.sim.launch.engine_config import load_config

# Runs of a load beyond those that are wanted, in place of disturbed ones.
_EXTRA = 2
_SEED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything that was measured."""

    real: BenchReport
    sim: BenchReport
    fit: EngineSpeedFit
    loads: Sequence[LoadComparison]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineComparison:
    """Both engines under the same loads."""

    venv: Path
    model: Path
    on: Cores
    runs: int
    """Of each load."""
    seconds: float
    """Of each run."""
    say: Callable[[str], None]

    async def run(self) -> Outcome:
        """The real engine, the fit, the simulator."""
        self.say("starting vLLM on the CPU; this takes half a minute")
        with real(self.venv, self.model, self.on) as engine:
            first = await self._sweep()
            tallies = await self._run_loads(engine, knee(first)["requests_per_second"])
        chosen = [tally.quietest(self.runs) for tally in tallies]
        limits = load_config(arguments(self.model, "tessera-sim"), {}).limits
        known = zip(tallies, chosen, strict=True)
        fit = fit_engine_speed(
            [_observed_runs(runs) for tally, runs in known if tally.load.fitted], limits
        )
        self.say(f"fitted, off by {fit.error:.1%}: {speeds.as_json(fit.speed)}")
        compared = []
        with simulator(self.model, fit.speed, self.on) as engine:
            second = await self._sweep()
            for tally, runs in zip(tallies, chosen, strict=True):
                compared.append(await self._compare_load(engine, tally, runs, fit, limits))
        return Outcome(real=first, sim=second, fit=fit, loads=compared)

    async def _run_loads(self, engine: RunningEngine, top: float) -> list[Tally]:
        """All loads by turns, so that what disturbs for a while disturbs all of them."""
        tallies = [Tally(load=load, rate=load.share * top) for load in LOADS]
        for attempt in range(self.runs + _EXTRA):
            for tally in tallies:
                if tally.missing(self.runs):
                    run = await self._run_once(engine, tally.load, tally.rate, _SEED + attempt)
                    tally.runs.append(run)
        return tallies

    async def _compare_load(
        self,
        engine: RunningEngine,
        tally: Tally,
        real: Sequence[MeasuredRun],
        fit: EngineSpeedFit,
        limits: EngineLimits,
    ) -> LoadComparison:
        """The requests of these runs, on the simulator and on the engine model alone."""
        sim = [await self._repeat_disturbed(engine, tally, run.seed) for run in real]
        machine = [replay(run.run, limits, fit.speed, fit.frontend_seconds) for run in real]
        return LoadComparison(
            load=tally.load,
            rate=tally.rate,
            real=real,
            sim=sim,
            machine=latency_percentiles(machine, SHOWN),
        )

    async def _repeat_disturbed(
        self, engine: RunningEngine, tally: Tally, seed: int
    ) -> MeasuredRun:
        """The same requests once or twice more where the whole machine stood still."""
        runs = list[MeasuredRun]()
        while len(runs) <= _EXTRA and all(run.late > LATE for run in runs):
            runs.append(await self._run_once(engine, tally.load, tally.rate, seed))
        return min(runs, key=lambda run: run.late)

    async def _sweep(self) -> BenchReport:
        report = await sweep()
        lines = [
            f"{result.measurement.name}: {result.requests_per_second:.2f}/s"
            for result in report.results
        ]
        at = report.knee.concurrency if report.knee else "not found"
        self.say(f"closed loops {', '.join(lines)}; knee {at}")
        return report

    async def _run_once(
        self, engine: RunningEngine, load: Load, rate: float, seed: int
    ) -> MeasuredRun:
        run = await run_once(engine, load, rate, seed, self.seconds)
        percentiles = latency_percentiles([run.run], SHOWN)
        latencies = " ".join(
            f"{value * 1e3:.1f}" for value in (*percentiles.ttft, *percentiles.tpot)
        )
        spoilt = f"others took {run.others:.0%}, sent late by {run.late * 1e3:.0f} ms"
        self.say(f"{load.name}, seed {seed}: {latencies} ms; {spoilt}")
        return run


def _observed_runs(runs: Sequence[MeasuredRun]) -> list[ObservedRun]:
    return [run.run for run in runs]
