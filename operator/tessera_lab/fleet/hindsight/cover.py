"""The fewest replicas over time that carry a load which is known beforehand."""

import math
from array import array
from collections.abc import Sequence
from itertools import accumulate

from tessera_lab.fleet.attainment import AttainmentGoal
from tessera_lab.fleet.hindsight.work import trace_work
from tessera_lab.fleet.observation import ReplicaModel
from tessera_lab.fleet.trace import Trace

SLOT_SECONDS = 10.0
# Slots for which a replica stays at least.
HOLD_SLOTS = 12
# Replica seconds that work without a replica costs: more than any stay.
_MISSING = 1e6

# Ready replicas from each moment on, in seconds since the start of the trace.
Schedule = tuple[tuple[float, int], ...]


def slot_work_seconds(trace: Trace, replica: ReplicaModel) -> Sequence[float]:
    """Return the least work by slots: of prompts at their arrival, of tokens at the ITL objective.

    It is in replica seconds. What is left after the window of the trace belongs to no slot.
    """
    count = max(1, math.ceil(trace.seconds / SLOT_SECONDS))
    prompts, changes = [0.0] * count, [0.0] * (count + 1)
    least = trace_work(trace, replica)
    for arrival, output_tokens, prompt, decode in zip(
        trace.arrivals, trace.output_tokens, least.prompt, least.decode, strict=True
    ):
        slot = min(int(arrival / SLOT_SECONDS), count - 1)
        prompts[slot] += prompt
        slots = max(1, round((output_tokens - 1) * replica.itl / SLOT_SECONDS))
        changes[slot] += decode / slots
        changes[min(slot + slots, count)] -= decode / slots
    decodes = accumulate(changes[:count])
    work = [prompt + decode for prompt, decode in zip(prompts, decodes, strict=True)]
    return array("d", work)


def cover(work: Sequence[float], goal: AttainmentGoal, load_limits: Sequence[float]) -> Schedule:
    """Return the fewest replica seconds that carry the work of all slots within the load limits.

    There is one limit for each window of the goal. A replica is there for at least `HOLD_SLOTS`;
    its start takes no time.
    """
    needed = [
        seconds / (load_limits[int(slot * SLOT_SECONDS // goal.window)] * SLOT_SECONDS)
        for slot, seconds in enumerate(work)
    ]
    replicas = [0] * len(needed)
    # The first, the second and each further replica are chosen separately.
    for level in range(math.ceil(max(needed))):
        gains = [_MISSING if count > level else -SLOT_SECONDS for count in needed]
        for slot, present in enumerate(best_stays(gains, HOLD_SLOTS)):
            replicas[slot] += present
    return tuple(
        (slot * SLOT_SECONDS, count)
        for slot, count in enumerate(replicas)
        if slot == 0 or count != replicas[slot - 1]
    )


def window_count(work: Sequence[float], goal: AttainmentGoal) -> int:
    return int((len(work) - 1) * SLOT_SECONDS // goal.window) + 1


def best_stays(gains: Sequence[float], least: int) -> list[bool]:
    """Return in which slots to stay for the greatest sum of gains, for `least` slots or longer.

    The last stay may be cut by the end.
    """
    if max(gains) <= 0:
        return [False] * len(gains)
    # A stay that the end cuts is one that goes on without gain.
    sums = [*accumulate((*gains, *[0.0] * (least - 1)), initial=0.0)]
    # The best sums of the first slots: away in the last of them, and staying long enough.
    away, staying = [0.0], [-math.inf]
    begins = [False]
    for end in range(1, len(sums)):
        longer, new = staying[-1] + sums[end] - sums[end - 1], -math.inf
        if end >= least:
            new = away[end - least] + sums[end] - sums[end - least]
        away.append(max(away[-1], staying[-1]))
        staying.append(max(longer, new))
        begins.append(new > longer)
    return _traced(away, staying, begins, least)[: len(gains)]


def _traced(
    away: Sequence[float], staying: Sequence[float], begins: Sequence[bool], least: int
) -> list[bool]:
    """Return the choices that led to the best sums."""
    end = len(away) - 1
    present, stays = [False] * end, staying[end] > away[end]
    while end > 0:
        if stays:
            length = least if begins[end] else 1
            present[end - length : end] = [True] * length
            stays = not begins[end]
            end -= length
        else:
            end -= 1
            stays = staying[end] > away[end]
    return present
