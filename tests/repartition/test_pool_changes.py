"""Nodes that leave their pool in the middle of a repartition take no replica with them."""

import pytest

from tests.repartition.scenarios import SCENARIOS
from tests.repartition.simulation import BACKENDS, RepartitionSimulation


async def in_mid_plan(backend: str) -> RepartitionSimulation:
    """Return a fleet whose services are between two variants."""
    scenario = SCENARIOS["every slice is too large"]
    simulation = RepartitionSimulation.of(BACKENDS[backend], scenario.nodes)
    scenario.begin(simulation)
    await simulation.run_until_quiet()
    scenario.change(simulation)
    while not any(unit.phase == "Verifying" for unit in simulation.mig.units):
        await simulation.tick()
    return simulation


@pytest.mark.parametrize("backend", BACKENDS)
async def test_replicas_on_nodes_without_the_label_of_the_pool_stay_until_they_are_replaced(
    backend: str,
) -> None:
    simulation = await in_mid_plan(backend)
    busy = {unit.node for unit in simulation.mig.units}
    left = [machine for machine in simulation.machines if machine.name not in busy]
    for machine in left:
        simulation.kube.set(machine.key, "metadata", labels={**machine.labels, "pool": "none"})
    await simulation.run_until_quiet()
    simulation.replay()
    nodes = {pod.node for _, pod in simulation.kube.pods()}
    assert nodes == busy
    await simulation.close()


async def test_without_room_elsewhere_they_serve_on() -> None:
    simulation = await in_mid_plan("agent")
    serving = {key for key, pod in simulation.kube.pods() if pod.takes_requests}
    for machine in simulation.machines:
        simulation.kube.set(machine.key, "metadata", labels={**machine.labels, "pool": "none"})
    for _ in range(60):
        await simulation.tick()
    simulation.replay()
    assert serving <= {key for key, pod in simulation.kube.pods() if pod.takes_requests}
    await simulation.close()
