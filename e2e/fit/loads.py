"""The loads of the comparison, and one of them put on an engine by `tessera bench`."""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fit.engines import URL, RunningEngine
from tessera_lab.cli.bench.arguments import bench
from tessera_lab.cli.bench.command import run_load_test
from tessera_lab.cli.bench.plan import parse_plan
from tessera_lab.cli.bench.report import BenchReport
from tessera_lab.fit.speed_fit import ObservedRequest, ObservedRun
from tessera_lab.load.load_metrics import LoadMetrics
from tessera_lab.load.responses import BenchResponse

LENGTHS = ("--input-tokens", "lognormal:100:250", "--output-tokens", "lognormal:32:80")
# Short prompts and long answers: most of the work moves from the one to the other.
OTHER_LENGTHS = ("--input-tokens", "lognormal:50:120", "--output-tokens", "lognormal:64:140")
_SWEEP = ("--sweep", "1,2,4,8,16", "--prompts", "24", "--seed", "7", "--warmup", "4")
# Share of the cores that others may take during a run, and seconds by which its client may be
# late, before another one is made.
QUIET, LATE = 0.1, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """An open loop at a share of the knee's rate."""

    name: str
    share: float
    lengths: Sequence[str] = LENGTHS
    fitted: bool = False
    """Whether the speed is fitted to it; else it is predicted."""


LOADS = (
    Load(name="30 % of the knee", share=0.3, fitted=True),
    Load(name="60 % of the knee", share=0.6, fitted=True),
    Load(name="85 % of the knee", share=0.85),
    Load(name="other lengths, 50 %", share=0.5, lengths=OTHER_LENGTHS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """One run."""

    seed: int
    run: ObservedRun
    others: float
    """Share of all cores' time that others took."""
    late: float
    """Seconds by which the client sent late (P95): above 0 where the whole machine stood still."""

    @property
    def quiet(self) -> bool:
        return self.others <= QUIET and self.late <= LATE


@dataclass(slots=True, kw_only=True)
class Tally:
    """The runs of one load so far."""

    load: Load
    rate: float
    runs: list[MeasuredRun] = field(default_factory=list)

    def missing(self, count: int) -> bool:
        return sum(run.quiet for run in self.runs) < count

    def quietest(self, count: int) -> list[MeasuredRun]:
        """So many runs in which others took least, in the order of their seeds."""
        chosen = sorted(self.runs, key=lambda run: (run.late > LATE, run.others, run.seed))[:count]
        return sorted(chosen, key=lambda run: run.seed)


async def sweep() -> BenchReport:
    """Closed loops up to all seats, with the knee."""
    return await _bench((*_SWEEP, *LENGTHS))


async def run_once(
    engine: RunningEngine, load: Load, rate: float, seed: int, seconds: float
) -> MeasuredRun:
    """One run; the same seed brings the same requests at the same moments."""
    count = max(20, math.ceil(rate * seconds))
    words = ("--rate", f"{rate:.4f}", "--prompts", str(count), "--seed", str(seed), "--warmup", "4")
    before, begun = engine.others_seconds(), time.monotonic()
    (level,) = (await _bench((*words, *load.lengths))).results
    passed = (time.monotonic() - begun) * (os.cpu_count() or 1)
    others = (engine.others_seconds() - before) / passed
    return MeasuredRun(seed=seed, run=_run(level), others=others, late=level.client.late_seconds)


async def _bench(words: Sequence[str]) -> BenchReport:
    arguments = bench.parse([URL, *words])
    report = await run_load_test(arguments, parse_plan(arguments, arguments.seed))
    failed = [result.failures for result in report.results if result.failures]
    if failed or report.interrupted:
        raise SystemExit(f"not all were answered: {failed or 'interrupted'}")
    return report


def _run(level: LoadMetrics) -> ObservedRun:
    began = level.measurement.started_at
    ordered = sorted(level.measurement.responses, key=lambda answer: answer.due_at)
    return [_observed_request(answer, began) for answer in ordered]


def _observed_request(response: BenchResponse, began: float) -> ObservedRequest:
    if response.ttft_seconds is None or response.prompt_tokens is None:
        raise SystemExit("an answer without tokens, or without usage")
    return ObservedRequest(
        arrival=response.due_at - began,
        prompt_tokens=response.prompt_tokens,
        output_tokens=response.output_tokens,
        ttft_seconds=response.ttft_seconds,
        tpot_seconds=response.tpot_seconds,
    )
