"""The clairvoyant cover: as few replicas as a known load can be carried with."""

import math
import random
from collections.abc import Sequence
from itertools import groupby, product

import pytest

from tessera_lab.fleet.attainment import AttainmentGoal
from tessera_lab.fleet.cover import (
    HOLD_SLOTS,
    SLOT_SECONDS,
    Cover,
    SlotDemand,
    best_stays,
    cover,
    slot_demand,
)
from tests.lab.fleet.loads import DENSE, replica, trace

ALL = AttainmentGoal(share=1.0, window_share=1.0)


def replicas(result: Cover, slots: int) -> list[int]:
    changes = dict(result.schedule)
    counts, current = [], 0
    for slot in range(slots):
        current = changes.get(slot * SLOT_SECONDS, current)
        counts.append(current)
    return counts


def test_each_slot_has_the_replicas_that_carry_it() -> None:
    work = [5.0] * 20 + [25.0] * 30 + [5.0] * 20
    result = cover(SlotDemand(work=work, requests=[100] * 70), ALL, load_limit=1.0)
    assert result.schedule == ((0.0, 1), (200.0, 3), (500.0, 1))
    assert result.late == 0
    assert result.replica_seconds == 10 * (40 + 90)


def test_a_replica_stays_for_two_minutes() -> None:
    work = [5.0] * 30 + [15.0] + [5.0] * 30
    result = cover(SlotDemand(work=work, requests=[100] * 61), ALL, load_limit=1.0)
    assert replicas(result, 61).count(2) == HOLD_SLOTS
    assert replicas(result, 61)[30] == 2


def test_a_burst_of_few_requests_is_given_up() -> None:
    work = [5.0] * 30 + [15.0] + [5.0] * 30
    result = cover(SlotDemand(work=work, requests=[100] * 61), AttainmentGoal(), load_limit=1.0)
    assert result.schedule == ((0.0, 1),)
    assert result.late == pytest.approx(100 / 3)


def test_a_lower_load_limit_asks_for_more_replicas() -> None:
    demand = SlotDemand(work=[9.0] * 60, requests=[100] * 60)
    assert cover(demand, ALL, 0.9).schedule == ((0.0, 1),)
    assert cover(demand, ALL, 0.8).schedule == ((0.0, 2),)


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
    model = replica(DENSE)
    demand = slot_demand(trace([(0.0, 10, 801), (99.0, 1, 1)]), model, AttainmentGoal())
    assert list(demand.requests) == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    # 800 gaps of 50 ms.
    assert demand.work[0] > demand.work[1] == demand.work[2] == demand.work[3] > 0
    assert demand.work[4:9] == pytest.approx([0] * 5)
