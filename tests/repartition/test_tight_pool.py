"""Pools with a single free slice: nothing moves in a circle, and what can be laid out is."""

import pytest

from tessera.resources.manifest import ObjectKey
from tests.builders import MEDIUM, SMALL
from tests.cases import full
from tests.repartition.simulation import BACKENDS, EACH_BACKEND, RepartitionSimulation

HALVES = [("3g.40gb", 0), ("3g.40gb", 4)]


async def eleven_of_twelve(backend: str, seed: int, **mig: object) -> RepartitionSimulation:
    """Return a fleet of halves with one free; sevenths would do for seven of the replicas."""
    simulation = RepartitionSimulation.of(BACKENDS[backend], [[HALVES, HALVES]] * 3, seed=seed)
    simulation.pool()
    simulation.serve("a", SMALL, 4)
    simulation.serve("b", MEDIUM, 4)
    simulation.serve("c", SMALL, 3)
    await simulation.run_until_quiet()
    simulation.pool(**mig or {"mode": "Auto"})
    return simulation


def serving_pods(simulation: RepartitionSimulation) -> set[ObjectKey]:
    return {key for key, pod in simulation.kube.pods() if pod.takes_requests}


async def test_no_replacement_starts_on_the_gpu_that_is_emptied() -> None:
    simulation = await eleven_of_twelve(
        "mig-manager, with agents that look",
        seed=0,
        mode="Static",
        layout={"3g.40gb": 1, "1g.10gb": 4},
    )
    serving = serving_pods(simulation)
    for _ in range(60):
        await simulation.tick()
    assert serving_pods(simulation) == serving
    simulation.check("NoSurgeCapacity")
    await simulation.close()


@pytest.mark.parametrize("seed", [3, *full(0)])
async def test_planned_slices_beside_those_in_use_make_room_for_the_others(seed: int) -> None:
    simulation = await eleven_of_twelve("agent", seed)
    await simulation.run_until_quiet()
    simulation.check("AsPlanned")
    await simulation.close()


@pytest.mark.parametrize("backend", ["mig-manager", "mig-manager, with agents that look"])
async def test_where_no_gpu_can_be_emptied_the_plan_is_the_present_layout(backend: str) -> None:
    simulation = await eleven_of_twelve(backend, seed=0)
    serving = serving_pods(simulation)
    await simulation.run_until_quiet()
    simulation.check("AsPlanned")
    assert serving_pods(simulation) == serving
    assert "too few slices are free to empty and repartition 6 GPUs" in str(simulation.describe())
    await simulation.close()


@pytest.mark.parametrize("backend", EACH_BACKEND)
async def test_room_that_comes_later_is_used(backend: str) -> None:
    simulation = await eleven_of_twelve(backend, seed=0)
    await simulation.run_until_quiet()
    simulation.serve("a", SMALL, 1)
    await simulation.run_until_quiet()
    simulation.check("AsPlanned")
    profiles = {
        part.profile
        for machine in simulation.machines
        for layout in machine.layouts().values()
        for part in layout
    }
    assert "1g.10gb" in profiles, simulation.describe()
    await simulation.close()
