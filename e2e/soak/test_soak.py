"""The short form: every kind of fault once."""

import pytest

import world as worlds
from soak.faults import ENDING, OTHERS
from soak.memory import ProcessMemory, memory_at_rest
from soak.run import Soak

SEED = 20261120
PERIOD_SECONDS = 8.0


@pytest.mark.full
@pytest.mark.world
async def test_after_every_kind_of_fault_once_all_is_as_if_there_had_been_none() -> None:
    kinds = [fault.__name__ for fault in ENDING + OTHERS]
    with worlds.start(fleet=Soak.FLEET) as world:
        seconds = PERIOD_SECONDS * len(kinds)
        figures = await Soak(world, SEED, seconds=seconds, period=PERIOD_SECONDS).run()
    assert figures["faults"] == dict.fromkeys(sorted(kinds), 1)
    assert not figures["different"], "\n".join(figures["different"][:20])
    assert figures["objects"] > 30


def test_the_growth_of_memory_is_that_of_the_line_through_its_warm_samples() -> None:
    steady = [(float(second), 100 + second / 600) for second in range(0, 1200, 10)]
    young = [(moment, size + (500 if moment < 120 else 0)) for moment, size in steady]
    assert ProcessMemory("operator-0", young).slope() == pytest.approx(1.0)
    assert ProcessMemory("operator-0", young[:10]).slope() is None


def test_the_growth_at_rest_leaves_out_the_first_quarter_and_processes_that_came_later() -> None:
    filling = [(float(second), 100 - max(0, 900 - second) / 90) for second in range(0, 3600, 10)]
    growing = [(moment, size + moment / 1800) for moment, size in filling]
    late = [(moment, moment) for moment, _ in filling[300:]]
    processes = [
        ProcessMemory(str(index), samples) for index, samples in enumerate((growing, late))
    ]
    assert memory_at_rest(processes) == {
        "rss_mib_per_hour_at_rest": pytest.approx(2.0),
        "rss_mib_quarters_at_rest": [95.2, 100.7, 101.2, 101.7],
    }
