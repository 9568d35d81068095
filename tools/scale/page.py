"""The tables of docs/benchmarks.md, from what the comparison played."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scale.runs import COVER, REACTIVE, TIERS, Result
from tessera_lab.fleet.policies.product import OURS

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BOUND, STATIC = "bound", "static"
# What is no rival that scales, in the order of the page.
_FIRST = {
    BOUND: "[bound](bound.md)",
    COVER: "knows the load",
    STATIC: "`static`, the fewest",
    REACTIVE: "reactive, tuned in hindsight",
    OURS: "`tessera`, mean",
    TIERS: "`tessera-tiers`, mean",
}
# Rivals that have a row of their own: those that keep the goal of most cases.
_SHOWN = 4
_BEGIN, _END = "<!-- scale -->", "<!-- end of scale -->"


class Cell(NamedTuple):
    """A policy on a case, as it is saved."""

    policy: str
    usd: float | None
    """None where the goal is missed."""
    size: str = ""
    """GPUs of a replica where it is not one, and how many replicas of a fixed number."""
    share: float = 1.0
    windows: float = 1.0

    @property
    def text(self) -> str:
        """Return the USD with the size, or how far the goal is missed."""
        if self.usd is None:
            return f"missed ({self.share:.3f}, {self.windows:.2f})"
        return f"{self.usd:.2f} ({self.size})" if self.size else f"{self.usd:.2f}"


def cell_of(result: Result, prices: str) -> Cell:
    """Return what the page shows of a result."""
    sizes = "+".join(result.gpu_hours)
    words = [str(result.initial)] if result.run.policy == STATIC else []
    words += [f"{sizes} GPUs"] if sizes != "1" else []
    return Cell(
        policy=result.run.label,
        usd=round(result.usd[prices], 2) if result.sufficient else None,
        size=" of ".join(words),
        share=round(result.share, 4),
        windows=round(result.window_share, 4),
    )


def main_table(cells: Mapping[str, Sequence[Cell]]) -> str:
    """Return what each policy costs on each case."""
    by_policy: dict[str, dict[str, Cell]] = {}
    for case, row in cells.items():
        for cell in row:
            by_policy.setdefault(cell.policy, {})[case] = cell
    lines = [f"| USD | {' | '.join(cells)} |", f"| --- |{' --- |' * len(cells)}"]
    lines += [
        _line(title, by_policy[name], cells) for name, title in _FIRST.items() if name in by_policy
    ]
    rivals = sorted(
        (name for name in by_policy if name not in _FIRST), key=lambda name: _order(by_policy[name])
    )
    lines += [_line(f"`{name}`", by_policy[name], cells) for name in rivals[:_SHOWN]]
    if others := rivals[_SHOWN:]:
        columns = [
            _range([by_policy[name][case] for name in others if case in by_policy[name]])
            for case in cells
        ]
        lines.append(f"| {len(others)} others | {' | '.join(columns)} |")
    return "\n".join(lines)


def table_beside(cells: Mapping[str, Sequence[Cell]]) -> str:
    """Return what stands beside the cases: ours, the fewest static replicas, and a rival."""
    lines = ["| USD | `tessera` | in time, windows | rivals |", "| --- | --- | --- | --- |"]
    for name, (own, *rivals) in cells.items():
        others = ", ".join(f"`{rival.policy}` {rival.text}" for rival in rivals)
        lines.append(f"| {name} | {own.text} | {own.share:.3f}, {own.windows:.2f} | {others} |")
    return "\n".join(lines)


def with_tables(page: str, tables: str) -> str:
    """Return the page with its tables between their marks."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{tables}\n{_END}{after}"


def _line(title: str, row: Mapping[str, Cell], cases: Mapping[str, object]) -> str:
    return f"| {title} | {' | '.join(row[case].text if case in row else '' for case in cases)} |"


def _order(row: Mapping[str, Cell]) -> tuple[int, float]:
    usd = [cell.usd for cell in row.values() if cell.usd is not None]
    return -len(usd), sum(usd)


def _range(cells: Sequence[Cell]) -> str:
    """Return the least and the greatest USD of several policies."""
    usd = sorted(cell.usd for cell in cells if cell.usd is not None)
    missed = len(usd) < len(cells)
    if not usd:
        return "missed" if missed else ""
    return f"{usd[0]:.2f} to {usd[-1]:.2f}{' or missed' if missed else ''}"
