"""Figures of our fleet on reserved nodes and such on demand, beside the same in hindsight."""

from collections.abc import Mapping, Sequence
from typing import Any

from scale.runs import Result


def figures_of_tiers(
    results: Sequence[tuple[Result, Result]], disturbed: Mapping[str, Result], prices: str
) -> dict[str, Any]:
    """Return the figures of our fleets, each with its counterpart of two tiers: the largest ratio
    of their USD, None where one does not keep the goal.

    `disturbed` are results of two tiers by their disturbances.
    """
    figures: dict[str, Any] = {}
    ratios: list[float | None] = []
    for own, tiers in results:
        case, sufficient = own.run.case, own.sufficient and tiers.sufficient
        ratios.append(round(tiers.usd[prices] / own.usd[prices], 3) if sufficient else None)
        figures |= {
            f"usd_{case}_tiers": round(tiers.usd[prices], 2) if tiers.sufficient else None,
            f"attainment_{case}_tiers": round(tiers.share, 4),
            f"windows_{case}_tiers": round(tiers.window_share, 4),
            f"tiers_vs_hindsight_{case}": ratios[-1],
        }
    for name, tiers in disturbed.items():
        figures[f"attainment_{name}_tiers"] = round(tiers.share, 4)
    known = [ratio for ratio in ratios if ratio is not None]
    every = [*(tiers for _, tiers in results), *disturbed.values()]
    return figures | {
        "tiers_vs_hindsight_reserved": max(known) if len(known) == len(ratios) else None,
        "tiers_longest_wait_seconds": max(tiers.longest_wait for tiers in every),
        "tiers_broken_streams": sum(tiers.broken_streams for tiers in every),
    }
