"""Sequences that lose replicas or do not end as they should: they fail once they do.

`make bench-floors OPTIONS='--fleets 0 --sequences 1000 --known'` prints the table.
"""

from collections.abc import Mapping

from tests.floors.player import Verdict

BELOW = "a service is below its floor"
AUTOSCALER = "F5: spec.gpus grants nothing for a replica that an autoscaler took"
BAD_IMAGE = "F1: a bad template is not replaced by the newest one"
FOR_EVER = "something is under way for ever"
COST = "F11: dearer devices than necessary"

_SEEDS: Mapping[str, str] = {AUTOSCALER: "175 414 500 573 757 826"}
UNSOLVED: Mapping[int, str] = {
    seed: reason for reason, seeds in _SEEDS.items() for seed in map(int, seeds.split())
}
"""Reasons by seed."""


def probable_reason(verdict: Verdict) -> str:
    """Return the first known reason that fits what was found; a sequence may have several."""
    text = "\n".join(verdict.findings)
    if "as an autoscaler wrote" in text:
        return AUTOSCALER
    if verdict.ticks_below_floor:
        return BELOW
    if "bad image" in text:
        return BAD_IMAGE
    return FOR_EVER if verdict.unsettled else COST
