"""Device plugins that are slow, away or early, and devices that are no GPUs."""

import pytest

from tessera.domain.mig_backends.devices import DEVICE_PLUGIN_LABEL
from tests.cases import full
from tests.repartition.scenarios import SCENARIOS
from tests.repartition.simulation import BACKENDS, EACH_BACKEND, RepartitionSimulation


async def settled(backend: str, scenario: str, **node: float) -> RepartitionSimulation:
    """Return a fleet with the layout that its services need."""
    simulation = RepartitionSimulation.of(BACKENDS[backend], SCENARIOS[scenario].nodes)
    for machine in simulation.machines:
        for name, value in node.items():
            setattr(machine, name, value)
    SCENARIOS[scenario].begin(simulation)
    await simulation.run_until_quiet()
    return simulation


@pytest.mark.parametrize("backend", EACH_BACKEND)
async def test_a_device_that_is_no_gpu_stops_no_repartition(backend: str) -> None:
    scenario = SCENARIOS["a service comes"]
    simulation = RepartitionSimulation.of(BACKENDS[backend], scenario.nodes)
    for machine in simulation.machines:
        machine.add_resource("nvidia.com/hostdev", 8)
    scenario.begin(simulation)
    await simulation.run_until_quiet()
    scenario.change(simulation)
    await simulation.run_until_quiet()
    simulation.check("AsPlanned")
    await simulation.close()


@pytest.mark.parametrize("backend", EACH_BACKEND)
async def test_a_node_whose_device_plugin_is_away_keeps_its_pods_and_slices(backend: str) -> None:
    simulation = await settled(backend, "a service comes")
    machine = next(machine for machine in simulation.machines if machine.device_by_pod)
    machine.add_resource("nvidia.com/hostdev", 8)
    pods, layouts = dict(machine.device_by_pod), machine.layouts()
    machine.plugin_away = True
    for _ in range(20):
        await simulation.tick()
        assert simulation.reason in {"AsPlanned", "DevicesMissing"}, simulation.describe()
    assert (machine.device_by_pod, machine.layouts()) == (pods, layouts)
    machine.plugin_away = False
    await simulation.run_until_quiet()
    simulation.check("AsPlanned")
    await simulation.close()


@pytest.mark.parametrize("backend", EACH_BACKEND)
@pytest.mark.parametrize(("stop", "start"), [(60, 10), *full((5, 60))])
async def test_a_slow_device_plugin_delays_and_nothing_more(
    backend: str, stop: float, start: float
) -> None:
    simulation = await settled(backend, "a service comes", plugin_stop=stop, plugin_start=start)
    SCENARIOS["a service comes"].change(simulation)
    await simulation.run_until_quiet()
    simulation.check("AsPlanned")
    assert all(machine.labels[DEVICE_PLUGIN_LABEL] == "true" for machine in simulation.machines)
    await simulation.close()


async def test_slices_that_come_after_the_device_plugin_are_offered() -> None:
    simulation = await settled("agent", "a service comes")
    machine = next(machine for machine in simulation.machines if not machine.device_by_pod)
    offered = machine.allocatable
    for _ in range(2):
        machine.reboot()
        await simulation.run_until_quiet()
        simulation.check("AsPlanned")
        assert machine.allocatable == offered
    await simulation.close()


async def test_a_node_that_offers_nothing_is_not_as_planned() -> None:
    simulation = await settled("agent", "a service comes")
    simulation.machines[0].plugin_away = True
    await simulation.tick()
    await simulation.tick()
    assert simulation.reason == "DevicesMissing"
    await simulation.close()
