"""A service gets slices of a second profile where those of one are too few."""

from collections import Counter

import pytest

from tessera.resources.manifest import ObjectKey
from tests.builders import MEDIUM, SMALL
from tests.repartition.simulation import BACKENDS, RepartitionSimulation

HALVES = [("4g.40gb", 0), ("3g.40gb", 4)]


async def five_of_six(backend: str, *, gateways: bool) -> RepartitionSimulation:
    """Return a fleet of halves, too full to empty a GPU; three of its slices are 3g.40gb.

    Without gateways a replica waits for a fourth one, with them it takes the next that fits.
    """
    simulation = RepartitionSimulation.of(BACKENDS[backend], [[HALVES]] * 3)
    simulation.gateways = gateways
    simulation.pool()
    simulation.serve("chat", MEDIUM, 4)
    simulation.serve("mail", SMALL, 2)
    await simulation.run_until_quiet()
    further = {"4g-40gb": 1} if gateways else {}
    assert profiles_of(simulation, "chat") == {"3g-40gb": 3, **further}
    return simulation


def serving(simulation: RepartitionSimulation, name: str) -> set[ObjectKey]:
    return {
        key
        for key, pod in simulation.kube.pods()
        if pod.service.name == name and pod.takes_requests
    }


def profiles_of(simulation: RepartitionSimulation, name: str) -> Counter[str]:
    """Count the replicas that serve, by profile."""
    return Counter("-".join(key.name.split("-")[2:4]) for key in serving(simulation, name))


@pytest.mark.parametrize("backend", ["mig-manager", "mig-manager, with agents that look"])
async def test_a_service_runs_on_two_profiles_and_no_neighbour_makes_it_dearer(
    backend: str,
) -> None:
    simulation = await five_of_six(backend, gateways=True)
    simulation.pool(mode="Auto")
    await simulation.run_until_quiet()
    simulation.check("AsPlanned")
    assert profiles_of(simulation, "chat") == {"3g-40gb": 3, "4g-40gb": 1}

    before = serving(simulation, "chat")
    await simulation.remove("mail")
    simulation.serve("news", SMALL, 1, placement={"mig": "Auto", "isolation": "Gpu"})
    await simulation.run_until_quiet()
    # A GPU would be free for it if a replica of chat moved to a 4g.40gb, which costs more.
    simulation.check("InsufficientCapacity")
    assert profiles_of(simulation, "chat") == {"3g-40gb": 3, "4g-40gb": 1}
    assert serving(simulation, "chat") == before
    await simulation.close()


async def test_without_gateways_it_keeps_to_one_profile() -> None:
    simulation = await five_of_six("mig-manager", gateways=False)
    simulation.pool(mode="Auto")
    await simulation.run_until_quiet()
    assert simulation.reason == "InsufficientCapacity"
    assert profiles_of(simulation, "chat") == {"3g-40gb": 3}
    await simulation.close()
