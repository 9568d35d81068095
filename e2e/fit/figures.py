"""What came of the comparison, as numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fit.loads import Load, MeasuredRun
from tessera_lab.cli.bench.report import BenchReport
from tessera_lab.fit.speed_fit import LatencyPercentiles, latency_percentiles

SHOWN = (50, 95)
NAMES = ("TTFT P50", "TTFT P95", "TPOT P50", "TPOT P95")
# By how much the simulator may differ from the engine.
GOAL = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadComparison:
    """One load on the engine, on the simulator, and on the engine model without a clock."""

    load: Load
    rate: float
    real: Sequence[MeasuredRun]
    sim: Sequence[MeasuredRun]
    machine: LatencyPercentiles

    def figures(self) -> dict[str, Any]:
        real, sim = _seconds(self.real), _seconds(self.sim)
        machine = (*self.machine.ttft, *self.machine.tpot)
        return {
            "load": self.load.name,
            "fitted": self.load.fitted,
            "lengths": " ".join(self.load.lengths),
            "requests_per_second": round(self.rate, 3),
            "runs": len(self.real),
            "requests": sum(len(run.run) for run in self.real),
            "late_ms": round(max(run.late for run in self.real) * 1e3, 1),
            "others_share": round(max(run.others for run in self.real), 3),
            "latencies": [
                {
                    "name": name,
                    "vllm_ms": round(expected * 1e3, 2),
                    "tessera_sim_ms": round(live * 1e3, 2),
                    "machine_ms": round(pure * 1e3, 2),
                    "tessera_sim_error": round(live / expected - 1, 4),
                    "machine_error": round(pure / expected - 1, 4),
                }
                for name, expected, live, pure in zip(NAMES, real, sim, machine, strict=True)
            ],
        }


def missed(loads: Sequence[dict[str, Any]]) -> list[str]:
    """Return where the error of the simulator is above the goal."""
    return [
        f"{load['load']}: {latency['name']} {latency['tessera_sim_error']:+.1%}"
        for load in loads
        for latency in load["latencies"]
        if abs(latency["tessera_sim_error"]) > GOAL
    ]


def flat(figures: dict[str, Any]) -> dict[str, Any]:
    """The line for machines: one number each."""
    numbers = {
        "fit_error": figures["fit_error"],
        "knee_requests_per_second": figures["knee"]["vllm"]["requests_per_second"],
        "others_share": max(load["others_share"] for load in figures["loads"]),
        "missed": len(figures["missed"]),
    }
    for kind, fitted in (("fitted", True), ("predicted", False)):
        errors = [
            abs(latency["tessera_sim_error"])
            for load in figures["loads"]
            if load["fitted"] is fitted
            for latency in load["latencies"]
        ]
        numbers[f"worst_error_{kind}"] = max(errors)
        numbers[f"mean_error_{kind}"] = round(sum(errors) / len(errors), 4)
    return numbers


def _seconds(runs: Sequence[MeasuredRun]) -> tuple[float, ...]:
    percentiles = latency_percentiles([run.run for run in runs], SHOWN)
    return (*percentiles.ttft, *percentiles.tpot)


def knee(report: BenchReport) -> dict[str, Any]:
    """Where it is, and how many requests a second were answered there."""
    if report.knee is None:
        raise SystemExit("the sweep shows no knee: the machine was too busy, try again")
    at = report.knee.concurrency
    level = next(result for result in report.results if result.measurement.concurrency == at)
    return {"concurrency": at, "requests_per_second": round(level.requests_per_second, 3)}
