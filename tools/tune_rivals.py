"""Tunes the knobs of every scaling policy for the comparison: `make tune-rivals`.

All settings of a policy's grid run on the tuning cut of the large trace, and the best of them on
the cuts of the others. What attains its goal comes first, the cheapest in front. The result is
committed: `docs/figures/scale-tuning.json`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scale.cases import CASES, TRACES, find_cases
from scale.runs import COVER, HEAD, Result, Run, Runs, with_settings
from tessera_lab.fleet.observation import Settings
from tessera_lab.fleet.policies.families import FAMILIES

TUNING = Path(__file__).parents[1] / "docs" / "figures" / "scale-tuning.json"
# The case on which all settings run, and how many of them run on the others.
FIRST, FINALISTS = "mlarge", 5
# Settings of a grid that are tried, evenly spread over it.
POINTS = 30
HOURS = 1.0

# A setting and its result, as it is committed.
Entry = dict[str, Any]


def order(results: list[Result]) -> list[Result]:
    """Return the results that attain their goal by their cost, then the others by attainment."""
    return sorted(
        results,
        key=lambda result: (
            not result.sufficient,
            result.usd["aws-2026"] if result.sufficient else 0.0,
            -min(result.window_share, 0.95) - result.share,
        ),
    )


def finalists(entries: Sequence[Entry]) -> list[Settings]:
    """Return which of ordered settings to try elsewhere: the cheapest, and what attains most."""
    most = sorted(entries, key=lambda entry: (-entry["windowShare"], -entry["share"]))
    cheapest = entries[: FINALISTS - 2]
    rest = [entry for entry in most if entry not in cheapest]
    return [entry["settings"] for entry in (*cheapest, *rest[: FINALISTS - len(cheapest)])]


def points(grid: Sequence[Settings]) -> list[Settings]:
    """Return the settings of a grid that are tried."""
    count = min(POINTS, len(grid))
    return [grid[index * len(grid) // count] for index in range(count)]


def main() -> None:
    """Tune, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, default=TRACES)
    parser.add_argument("--folder", type=Path, default=Path(".bench/scale-tuning"))
    parser.add_argument("--cases", help="some of the cases")
    parser.add_argument("--policies", help="some of the policies")
    options = parser.parse_args()
    policies = options.policies.split(",") if options.policies else list(FAMILIES)
    print(HEAD)
    with Runs(options.traces, options.folder) as runs:
        cases = find_cases(options.traces, options.cases)
        covers = runs.results(
            [Run(case=case, policy=COVER, hours=HOURS, tuning=True) for case in cases], {}
        )
        initial = {run.case: result.initial for run, result in covers.items()}
        tuned: dict[str, dict[str, list[Entry]]] = {}
        for policy in policies:
            first = Run(case=FIRST, policy=policy, hours=HOURS, tuning=True)
            grid = list(with_settings(first, points(FAMILIES[policy].grid)))
            entries = {FIRST: _entries(list(runs.results(grid, initial).values()))}
            settings = finalists(entries[FIRST])
            others = [case for case in cases if case != FIRST]
            later = [
                run
                for case in others
                for run in with_settings(
                    Run(case=case, policy=policy, hours=HOURS, tuning=True), settings
                )
            ]
            results = runs.results(later, initial)
            tuned[policy] = entries | {
                case: _entries([result for run, result in results.items() if run.case == case])
                for case in others
            }
    document = {
        "hours": HOURS,
        "cuts": {name: list(case.tuned or ()) for name, case in CASES.items()},
        "covers": {run.case: result.usd for run, result in covers.items()},
        "policies": tuned,
    }
    TUNING.write_text(json.dumps(document) + "\n", encoding="utf-8")


def _entries(results: list[Result]) -> list[Entry]:
    return [
        {
            "settings": dict(result.run.settings),
            "sufficient": result.sufficient,
            "share": round(result.share, 4),
            "windowShare": round(result.window_share, 4),
            "usd": round(result.usd["aws-2026"], 2),
            "replicaHours": round(result.replica_hours, 2),
        }
        for result in order(results)
    ]


if __name__ == "__main__":
    main()
