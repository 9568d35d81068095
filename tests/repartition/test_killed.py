"""Whatever is killed while GPUs are partitioned: no service is disrupted, and the plan is kept."""

import itertools
import random
from collections.abc import Callable

import pytest

from tests.repartition.crashes import CrashPoint
from tests.repartition.scenarios import SCENARIOS, KillTally, run_scenario, run_with_kills
from tests.repartition.simulation import BACKENDS, EACH_BACKEND

FIRST = "GPUs in use are cut"
CELLS = list(itertools.product(BACKENDS, SCENARIOS))


@pytest.mark.parametrize("backend", EACH_BACKEND)
async def test_a_plan_is_carried_out_when_a_process_is_killed_at_some_write(backend: str) -> None:
    tally = await run_with_kills(SCENARIOS[FIRST], BACKENDS[backend], every=90, first=40)
    assert tally.kills >= 1


@pytest.mark.full
@pytest.mark.long
@pytest.mark.parametrize(("backend", "scenario"), CELLS)
async def test_a_plan_is_carried_out_with_a_kill_at_every_write_and_every_nvml_call(
    backend: str, scenario: str, record_property: Callable[[str, object], None]
) -> None:
    tally: KillTally = await run_with_kills(SCENARIOS[scenario], BACKENDS[backend])
    summary = f"{backend}, {scenario}: killed {tally.kills} times for {tally.points} moments"
    record_property("killed", summary)
    assert tally.kills > (0 if backend in SCENARIOS[scenario].crowded else 20)


def _random_kills(seed: int) -> Callable[[CrashPoint], bool]:
    """Kill the operator at one of 40 moments, an agent, which has many more, at one of 800."""
    rng = random.Random(seed)  # noqa: S311 - no secret

    def selects(point: CrashPoint) -> bool:
        return rng.random() < (1 / 40 if point.process == "operator" else 1 / 800)

    return selects


@pytest.mark.full
@pytest.mark.long
@pytest.mark.parametrize(("backend", "scenario"), CELLS)
async def test_a_plan_is_carried_out_with_many_kills_and_an_operator_away_for_minutes(
    backend: str, scenario: str
) -> None:
    for seed in range(10):
        restart_ticks = seed % 3 * 15
        await run_scenario(
            SCENARIOS[scenario],
            BACKENDS[backend],
            _random_kills(seed),
            restart_ticks=restart_ticks,
            seed=seed,
        )
