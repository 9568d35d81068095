"""Whether the choice of the instance type ranks the types as plays of the product do.

    PYTHONPATH=operator:tools .venv/bin/python -m scale.ranks RESULTS

`RESULTS` is the folder of runs of `make bench-scale`. The rule is given the window that is played.
The output has the GPU spans of the types beside what their plays cost, whether both rank them alike
where plays differ by more than 2 %, and at which slowness of two GPUs `r1` has one.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean

from scale.cases import CASES, TRACES
from tessera.domain.hardware.pools import discover
from tessera.domain.instance_types.rank import TypeCost, rank_types
from tessera.domain.observed.load_history import LoadHistory
from tessera.domain.placement.candidates import (
    HardwareChoice,
    fitting_choices,
    hardware_candidates,
)
from tessera.domain.placement.checks import shape_of
from tessera_lab.fleet.policies.product import OURS
from tessera_lab.fleet.recorded_load import recorded_load

SIZES = (1, 2)
HOURS = 2.0
# Plays that differ by less are even.
_EVEN = 0.02
_PRICES = "aws-2026"
_AT = datetime(2026, 1, 5, tzinfo=UTC)
_SLOW_CASE = "r1"
_STEP, _MOST_SLOWNESS = 0.01, 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The types of a case as the rule ranks them, and as plays do."""

    gpu_spans: Mapping[int, int]
    """By GPUs of a replica; the cheapest first."""
    usd: Mapping[int, float]
    """What plays cost, by the same; empty where none are known."""

    @property
    def agree(self) -> bool | None:
        """Return whether both have the same cheapest type; None where plays are even or absent."""
        if len(self.usd) < len(SIZES):
            return None
        least, second = sorted(self.usd.values())[:2]
        if second <= least * (1 + _EVEN):
            return None
        return next(iter(self.gpu_spans)) == min(self.usd, key=lambda gpus: self.usd[gpus])


def rank_as_played(case: str, traces: Path, usd: Mapping[int, float]) -> Ranks:
    """Return how the rule ranks the types of a case, beside what plays of each cost."""
    costs = _ranked(case, _scored_load(case, traces), 1.0)
    spans = {_gpus(cost.choice): _gpus(cost.choice) * sum(cost.pods) for cost in costs}
    return Ranks(gpu_spans=spans, usd=usd)


def slowness_to_turn(case: str, traces: Path) -> float | None:
    """Return how slow steps of two GPUs must be for one GPU to be chosen; None for never."""
    load = _scored_load(case, traces)
    for number in range(round((_MOST_SLOWNESS - 1) / _STEP) + 1):
        slowness = 1 + number * _STEP
        if _gpus(_ranked(case, load, slowness)[0].choice) == 1:
            return slowness
    return None


def _gpus(choice: HardwareChoice) -> int:
    return choice.offer.hardware.devices


def _scored_load(case: str, traces: Path) -> LoadHistory:
    return recorded_load(CASES[case].trace(traces, HOURS), _AT)


def _ranked(case: str, load: LoadHistory, slowness: float) -> Sequence[TypeCost]:
    objects = CASES[case].objects()
    spec, shape = objects.spec, shape_of(objects.spec)
    if shape is None:
        raise ValueError(f"{spec.model.uri} has no known shape")
    (view,) = discover(objects.pools, objects.nodes, _AT.date())
    offers = [each for each in view.offers if each.hardware.profile is None]
    sizes = [
        choice
        for choice in fitting_choices(hardware_candidates(spec, shape, offers))
        if _gpus(choice) in SIZES
    ]
    slow = {choice.variant: slowness for choice in sizes if _gpus(choice) > 1}
    return rank_types(spec, shape, sizes, load, slow)


def played_usd(results: Path) -> Mapping[str, Mapping[int, float]]:
    """Return the mean of the product's plays over all seeds, by case and GPUs of a replica."""
    usd = defaultdict[str, dict[int, list[float]]](dict)
    for path in sorted(results.rglob(f"{OURS}-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        run = result["run"]
        is_scored = (run["disturbance"], run["hours"], run["tuning"]) == ("calm", HOURS, False)
        if run["policy"] == OURS and is_scored and run.get("gpus") in SIZES:
            usd[run["case"]].setdefault(run["gpus"], []).append(result["usd"][_PRICES])
    return {case: {gpus: mean(each) for gpus, each in sums.items()} for case, sums in usd.items()}


def _rows(results: Path | None) -> Iterator[str]:
    usd = played_usd(results) if results is not None else {}
    for case in CASES:
        if not (TRACES / CASES[case].file).exists():
            continue
        ranks = rank_as_played(case, TRACES, usd.get(case, {}))
        verdict = {True: "as played", False: "NOT AS PLAYED", None: "even or not played"}
        spans = ", ".join(f"{gpus} GPU: {spans}" for gpus, spans in sorted(ranks.gpu_spans.items()))
        played = ", ".join(f"{gpus} GPU: {usd:.2f}" for gpus, usd in sorted(ranks.usd.items()))
        yield f"{case:8} GPU spans {spans}; USD played {played or '-'}; {verdict[ranks.agree]}"
    slowness = slowness_to_turn(_SLOW_CASE, TRACES)
    ends = "at no" if slowness is None else f"at {slowness:.2f} times the predicted"
    yield f"{_SLOW_CASE}: the saving of two GPUs ends {ends} time of their steps"


if __name__ == "__main__":
    print("\n".join(_rows(Path(sys.argv[1]) if len(sys.argv) > 1 else None)))
