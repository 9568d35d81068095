"""Whoever is killed while GPUs are cut: nobody is hurt, and it ends as planned."""

import itertools
import random
from collections.abc import Callable

import pytest

from tests.repartition.courses import COURSES, Tally, killed, played
from tests.repartition.fleet import BACKENDS
from tests.repartition.fuse import Point

FIRST = "GPUs in use are cut"
CELLS = list(itertools.product(BACKENDS, COURSES))


@pytest.mark.parametrize("backend", BACKENDS)
async def test_whoever_is_killed_at_some_write_the_plan_is_carried_out(backend: str) -> None:
    tally = await killed(COURSES[FIRST], BACKENDS[backend], every=90, first=40)
    assert tally.kills >= 1


@pytest.mark.full
@pytest.mark.long
@pytest.mark.parametrize(("backend", "course"), CELLS)
async def test_so_it_is_before_and_after_every_write_and_every_nvml_call(
    backend: str, course: str, record_property: Callable[[str, object], None]
) -> None:
    tally: Tally = await killed(COURSES[course], BACKENDS[backend])
    told = f"{backend}, {course}: killed {tally.kills} times for {tally.points} moments"
    record_property("killed", told)
    assert tally.kills > 20


def _lot(seed: int) -> Callable[[Point], bool]:
    """The operator dies at one of forty moments, an agent, which has many more, at one of 800."""
    lot = random.Random(seed)  # noqa: S311 - no secret

    def burns(point: Point) -> bool:
        return lot.random() < (1 / 40 if point.who == "operator" else 1 / 800)

    return burns


@pytest.mark.full
@pytest.mark.long
@pytest.mark.parametrize(("backend", "course"), CELLS)
async def test_so_it_is_when_many_are_killed_and_the_operator_is_away_for_minutes(
    backend: str, course: str
) -> None:
    for seed in range(10):
        away = seed % 3 * 15
        await played(COURSES[course], BACKENDS[backend], _lot(seed), away=away, seed=seed)
