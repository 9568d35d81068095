"""Pools with a single free slice: nothing moves in a circle, and what can be laid out is."""

import pytest

from tests.builders import MEDIUM, SMALL
from tests.repartition.simulation import BACKENDS, RepartitionSimulation

HALVES = [("3g.40gb", 0), ("3g.40gb", 4)]


async def eleven_of_twelve(backend: str, seed: int) -> RepartitionSimulation:
    """Return a fleet of halves with one free; the plan moves seven replicas to sevenths."""
    simulation = RepartitionSimulation.of(BACKENDS[backend], [[HALVES, HALVES]] * 3, seed=seed)
    simulation.pool()
    simulation.serve("a", SMALL, 4)
    simulation.serve("b", MEDIUM, 4)
    simulation.serve("c", SMALL, 3)
    await simulation.run_until_quiet()
    simulation.pool(mode="Auto")
    return simulation


async def test_no_replacement_starts_on_the_gpu_that_is_emptied() -> None:
    simulation = await eleven_of_twelve("mig-manager, with agents that look", seed=0)
    serving = {key for key, pod in simulation.kube.pods() if pod.takes_requests}
    for _ in range(60):
        await simulation.tick()
    moved = serving - {key for key, pod in simulation.kube.pods() if pod.takes_requests}
    assert len(moved) == 0
    simulation.check("NoSurgeCapacity")
    await simulation.close()


@pytest.mark.parametrize("seed", [0, 3])
async def test_planned_slices_beside_those_in_use_make_room_for_the_others(seed: int) -> None:
    simulation = await eleven_of_twelve("agent", seed)
    await simulation.run_until_quiet()
    simulation.check("AsPlanned")
    await simulation.close()
