"""The table of the home page: what was measured last, beside its goals, and which were missed."""

import json
from dataclasses import dataclass
from pathlib import Path

from environments import ROOT

PAGE = "docs/index.md"
FIGURES = ROOT / "docs" / "figures"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalRow:
    """A figure that a benchmark saved, and the goal that it has to keep."""

    text: str
    file: str
    name: str
    goal: float
    form: str
    """How the figure and the goal are written; both are multiplied by `scale` before."""
    scale: float = 1
    at_least: bool = False


_CONTROL, _ENGINE = "control.json", "engine.json"
ROWS = (
    GoalRow(
        text="One edit, until the Deployment has changed",
        file=_CONTROL, name="edit_alone_ms", goal=150, form="{:.0f} ms",
    ),
    GoalRow(
        text="600 edits at 20 a second, 99th percentile",
        file=_CONTROL, name="edit_p99_ms", goal=1000, form="{:.1f} s", scale=1e-3,
    ),
    GoalRow(
        text="All services created, relative to a client that only applies the objects",
        file=_CONTROL, name="applied_vs_bare", goal=1.1, form="{:.1f} times",
    ),
    GoalRow(
        text="CPU of the operator for each service, until all are ready",
        file=_CONTROL, name="operator_cpu_ms_per_service", goal=15, form="{:.0f} ms",
    ),
    GoalRow(
        text="Delay of the operator while services are created, 99th percentile",
        file=_CONTROL, name="loop_lag_p99_ms", goal=200, form="{:.0f} ms",
    ),
    GoalRow(
        text="CPU of a reconcile without changes",
        file=_CONTROL, name="turn_cpu_ms_unchanged", goal=50, form="{:.0f} ms",
    ),
    GoalRow(
        text="Share of a core in a minute without changes",
        file=_CONTROL, name="idle_core_share", goal=0.01, form="{:.1f} %", scale=100,
    ),
    GoalRow(
        text="Writes in a minute without changes",
        file=_CONTROL, name="steady_writes", goal=0, form="{:.0f}",
    ),
    GoalRow(
        text="Status writes in 30 s while the gauges of 200 services change",
        file=_CONTROL, name="moving_status_writes", goal=0, form="{:.0f}",
    ),
    GoalRow(
        text="Memory of the operator",
        file=_CONTROL, name="rss_mib", goal=300, form="{:.0f} MiB",
    ),
    GoalRow(
        text="Error of a decode step against published ones that were not fitted",
        file=_ENGINE, name="decode_mape", goal=5, form="{:.1f} %",
    ),
    GoalRow(
        text="Error of a prefill against published ones that were not fitted",
        file=_ENGINE, name="prefill_mape", goal=10, form="{:.1f} %",
    ),
    GoalRow(
        text="Simulated requests per second of CPU",
        file=_ENGINE, name="sim_requests_per_cpu_s", goal=3000, form="{:,.0f}", at_least=True,
    ),
    GoalRow(
        text="CPU of sizing 141 models on 31 GPU products",
        file=_ENGINE, name="size_all_ms", goal=1000, form="{:.1f} s", scale=1e-3,
    ),
)  # fmt: skip


def missed(row: GoalRow, value: float) -> bool:
    """Return whether a figure does not keep its goal."""
    return value < row.goal if row.at_least else value > row.goal


def table(folder: Path = FIGURES) -> str:
    """Return how many goals were missed, and the table of all, those that were missed first."""
    figures = {
        file: json.loads((folder / file).read_text(encoding="ascii"))
        for file in (_CONTROL, _ENGINE)
    }
    measured = [(row, float(figures[row.file][row.name])) for row in ROWS]
    faults = sum(missed(row, value) for row, value in measured)
    lines = [
        f"{len(ROWS) - faults} of these {len(ROWS)} goals were met, **{faults} were missed**. The "
        f"operator had {figures[_CONTROL]['services']:,} services of two replicas; all ran on two "
        "shared cores, without a GPU.",
        "",
        "| measured | figure | goal | |",
        "| --- | --- | --- | --- |",
    ]
    for row, value in sorted(measured, key=lambda each: not missed(*each)):
        shown, goal = (row.form.format(number * row.scale) for number in (value, row.goal))
        outcome = "**missed**" if missed(row, value) else "met"
        bound = " or more" if row.at_least else ""
        lines.append(f"| {row.text} | {shown} | {goal}{bound} | {outcome} |")
    return "\n".join(lines) + "\n"
