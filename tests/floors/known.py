"""Sequences that lose replicas or do not end as they should: they fail once they do.

`make bench-floors OPTIONS='--fleets 0 --sequences 1000 --known'` prints the table.
"""

from collections.abc import Collection, Mapping, Sequence

from tests.floors.player import Verdict

_BUDGETS = frozenset(("month-used-up", "month-used-up-and-raised", "tier-used-up", "gpus-limited"))

F1 = "F1: a bad template is not replaced by the newest one"
F2 = "F2: a rollout takes more than one replica"
F3 = "F3: a budget removes replicas within the floor"
F4_F9 = "F4, F9: the Deployment of a renamed pool is deleted at once"
F5 = "F5: the number of an autoscaler stands"
F6 = "F6: a rollout waits for a device that nobody gives"
F10 = "F10: a surge that a quota refuses does not become in place"
F11_UNITS = "F11, S1-1: minReplicas are units of a reference, so fewer pods run"
F11_COST = "F11: dearer devices than necessary"

_SEEDS: Mapping[str, Sequence[int]] = {}
UNSOLVED: Mapping[int, str] = {seed: reason for reason, seeds in _SEEDS.items() for seed in seeds}
"""Reasons by seed."""


def probable_reason(verdict: Verdict, hit: Collection[str]) -> str:
    """Return the first known reason that fits what was found; a sequence may have several."""
    text = "\n".join(verdict.findings)
    if "as an autoscaler wrote" in text:
        return F5
    if verdict.ticks_below_floor:
        return _reason_of_loss(verdict.findings[0], hit)
    if "bad image" in text:
        return F1
    if "a quota refuses" in text:
        return F10
    if "for ever" in text:
        return F6
    return F11_UNITS if verdict.unsettled else F11_COST


def _reason_of_loss(finding: str, hit: Collection[str]) -> str:
    if "pool-renamed" in hit:
        return F4_F9
    if finding.endswith("1 may be missing"):
        return F2
    return F3 if _BUDGETS.intersection(hit) else F11_UNITS
