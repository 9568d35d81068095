"""Agents that are silent or cannot read their GPUs: nothing begins on what they said last."""

import pytest

from fakegpu.gpu_driver import Code
from tessera.domain.kinds.kinds import NODE_LAYOUTS
from tests.repartition.scenarios import SCENARIOS
from tests.repartition.simulation import BACKENDS, RepartitionSimulation

WITH_AGENT = [name for name, backend in BACKENDS.items() if backend.has_agent]


async def settled(backend: str) -> RepartitionSimulation:
    scenario = SCENARIOS["a service comes"]
    simulation = RepartitionSimulation.of(BACKENDS[backend], scenario.nodes)
    scenario.begin(simulation)
    await simulation.run_until_quiet()
    return simulation


def message(simulation: RepartitionSimulation) -> str:
    """Return the message of the condition LayoutReady."""
    return next(text for text in simulation.describe() if text.startswith("LayoutReady"))


@pytest.mark.parametrize("backend", WITH_AGENT)
async def test_nothing_begins_on_a_node_whose_agent_is_silent(backend: str) -> None:
    simulation = await settled(backend)
    silent = simulation.machines[0]
    layouts, since = silent.layouts(), simulation.kube.at
    silent.agent_away = True
    for _ in range(40):
        await simulation.tick()
    assert simulation.reason == "NodeNotReady", simulation.describe()
    assert f"tessera-node is silent since {since:%Y-%m-%d %H:%M}" in message(simulation)
    SCENARIOS["a service comes"].change(simulation)
    for _ in range(60):
        await simulation.tick()
    assert (silent.layouts(), simulation.reason) == (layouts, "NodeNotReady")
    silent.agent_away = False
    await simulation.run_until_quiet()
    simulation.check("AsPlanned")
    await simulation.close()


@pytest.mark.parametrize("backend", WITH_AGENT)
async def test_a_lost_gpu_is_named_and_displaces_no_more_pods(backend: str) -> None:
    scenario = SCENARIOS["GPUs in use are cut"]
    simulation = RepartitionSimulation.of(BACKENDS[backend], scenario.nodes)
    scenario.begin(simulation)
    await simulation.run_until_quiet()
    scenario.change(simulation)
    while not any(unit.phase == "Draining" for unit in simulation.mig.units):
        await simulation.tick()
    (unit,) = simulation.mig.units
    node = next(machine for machine in simulation.machines if machine.name == unit.node)
    displaced = {
        key
        for key, uuid in node.device_by_pod.items()
        for gpu in unit.gpus
        if uuid in [instance.uuid for instance in node.gpu_driver.gpus[gpu].instances]
    }
    others = node.device_by_pod.keys() - displaced
    assert others, simulation.describe()
    node.gpu_driver.fail("nvmlDeviceGetMigMode", Code.GPU_IS_LOST, times=10**6)
    for _ in range(60):
        await simulation.tick()
    assert others <= node.device_by_pod.keys()
    assert simulation.reason == "NodeNotReady", simulation.describe()
    assert f"Node/{node.name}: its tessera-node reports: " in message(simulation)
    await simulation.close()


async def test_the_layouts_of_agents_that_were_uninstalled_are_deleted() -> None:
    simulation = await settled("mig-manager, with agents that look")
    await simulation.close()
    simulation.operator, simulation.node_agents = None, False
    for machine in simulation.machines:
        machine.agent_away = True
    for _ in range(40):
        await simulation.tick()
    assert not [key for key in simulation.kube.objects if key.plural == NODE_LAYOUTS.plural]
    assert simulation.reason == "AsPlanned", simulation.describe()
    await simulation.close()
