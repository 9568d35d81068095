"""The clairvoyant cover: as few replicas as a known load can be carried with."""

import math
import random
from collections.abc import Sequence
from itertools import groupby, product

import pytest

from tessera_lab.fleet.attainment import AttainmentGoal
from tessera_lab.fleet.hindsight.cover import (
    HOLD_SLOTS,
    SLOT_SECONDS,
    Schedule,
    best_stays,
    cover,
    slot_work_seconds,
    window_count,
)
from tests.lab.fleet.loads import DENSE, replica, trace

GOAL = AttainmentGoal()


def replicas(schedule: Schedule, slots: int) -> list[int]:
    changes = dict(schedule)
    counts, current = [], 0
    for slot in range(slots):
        current = changes.get(slot * SLOT_SECONDS, current)
        counts.append(current)
    return counts


def covered(work: Sequence[float], load_limit: float = 1.0) -> Schedule:
    return cover(work, GOAL, [load_limit] * window_count(work, GOAL))


def test_each_slot_has_the_replicas_that_carry_it() -> None:
    schedule = covered([5.0] * 20 + [25.0] * 30 + [5.0] * 20)
    assert schedule == ((0.0, 1), (200.0, 3), (500.0, 1))
    assert sum(replicas(schedule, 70)) == 40 + 90


def test_a_replica_stays_for_two_minutes() -> None:
    schedule = covered([5.0] * 30 + [15.0] + [5.0] * 30)
    assert replicas(schedule, 61).count(2) == HOLD_SLOTS
    assert replicas(schedule, 61)[30] == 2


def test_a_lower_load_limit_asks_for_more_replicas() -> None:
    work = [9.0] * 60
    assert covered(work, 0.9) == ((0.0, 1),)
    assert covered(work, 0.8) == ((0.0, 2),)


def test_stays_have_the_greatest_sum_of_all_that_are_long_enough() -> None:
    rng = random.Random(1)  # noqa: S311 - not a secret
    for _ in range(300):
        gains = [rng.uniform(-2, 2) for _ in range(rng.randint(1, 8))]
        choices = [
            choice
            for choice in product([False, True], repeat=len(gains))
            if shortest_stay(choice) >= 3
        ]
        assert tuple(stays := best_stays(gains, 3)) in choices
        best = max(total(gains, choice) for choice in choices)
        assert total(gains, stays) == pytest.approx(best)


def total(gains: Sequence[float], choice: Sequence[bool]) -> float:
    return sum(gain for gain, present in zip(gains, choice, strict=True) if present)


def shortest_stay(choice: Sequence[bool]) -> float:
    """Return the slots of the shortest stay; the last one is not counted if the end cuts it."""
    stays = [len(list(slots)) for present, slots in groupby(choice) if present]
    return min(stays[:-1] if choice[-1] else stays, default=math.inf)


def test_decoding_is_spread_over_its_time() -> None:
    work = slot_work_seconds(trace([(0.0, 10, 801), (99.0, 1, 1)]), replica(DENSE))
    # 800 gaps of 50 ms.
    assert work[0] > work[1] == work[2] == work[3] > 0
    assert work[4:9] == pytest.approx([0] * 5)
