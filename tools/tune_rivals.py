"""Tunes the knobs of every scaling policy for the comparison: `make tune-rivals`.

All settings of a policy's grid run on the tuning cut of the large trace, and the best of them on
the cuts of the others. What attains its goal comes first, the cheapest in front. The result is
committed: `docs/figures/scale-tuning.json`, apart for each size of a replica.
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
# GPUs of a replica on which all policies are tuned and scored.
SIZES = (1, 2)
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


def points(grid: Sequence[Settings], most: int = POINTS) -> list[Settings]:
    """Return the settings of a grid that are tried."""
    count = min(most, len(grid))
    return [grid[index * len(grid) // count] for index in range(count)]


def tuned(gpus: int) -> dict[str, dict[str, list[Entry]]]:
    """Return the ordered settings by policy and case, on replicas of so many GPUs.

    Where they were not tuned they are those of one.
    """
    sizes = json.loads(TUNING.read_text(encoding="utf-8"))["sizes"]
    entries: dict[str, dict[str, list[Entry]]] = sizes.get(str(gpus), sizes["1"])
    return entries


def main() -> None:
    """Tune, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, default=TRACES)
    parser.add_argument("--folder", type=Path, default=Path(".bench/scale-tuning"))
    parser.add_argument("--cases", help="some of the cases")
    parser.add_argument("--policies", help="some of the policies")
    parser.add_argument("--gpus", type=int, choices=SIZES, default=1, help="of a replica")
    parser.add_argument("--points", type=int, default=POINTS, help="settings of a grid")
    options = parser.parse_args()
    policies = options.policies.split(",") if options.policies else list(FAMILIES)
    print(HEAD)
    with Runs(options.traces, options.folder) as runs:
        cases = find_cases(options.traces, options.cases)
        tuning = _Tuning(runs, cases, options.gpus, options.points)
        entries = {policy: tuning.entries(policy) for policy in policies}
    document = json.loads(TUNING.read_text(encoding="utf-8"))
    document |= {
        "hours": HOURS,
        "cuts": {name: list(case.tuned or ()) for name, case in CASES.items()},
    }
    document["sizes"].setdefault(str(options.gpus), {}).update(entries)
    TUNING.write_text(json.dumps(document) + "\n", encoding="utf-8")


class _Tuning:
    """The settings of policies on the tuning cuts of cases, on replicas of one size."""

    def __init__(self, runs: Runs, cases: list[str], gpus: int, most: int) -> None:
        self._runs, self._cases, self._gpus, self._most = runs, cases, gpus, most
        covers = runs.results([self._run(case, COVER) for case in {*cases, FIRST}], {})
        self._initial = {(run.case, gpus): result.initial for run, result in covers.items()}

    def entries(self, policy: str) -> dict[str, list[Entry]]:
        """Return the settings of a policy by case, the best first."""
        first = self._run(FIRST, policy)
        grid = list(with_settings(first, points(FAMILIES[policy].grid, self._most)))
        entries = {FIRST: _entries(list(self._runs.results(grid, self._initial).values()))}
        settings = finalists(entries[FIRST])
        others = [case for case in self._cases if case != FIRST]
        later = [run for case in others for run in with_settings(self._run(case, policy), settings)]
        results = self._runs.results(later, self._initial)
        return entries | {
            case: _entries([result for run, result in results.items() if run.case == case])
            for case in others
        }

    def _run(self, case: str, policy: str) -> Run:
        return Run(case=case, policy=policy, hours=HOURS, tuning=True, gpus=self._gpus)


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
