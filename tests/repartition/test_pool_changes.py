"""Whatever becomes of a pool in the middle of a repartition: replicas stay, nodes are released."""

from collections.abc import Callable

import pytest

from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, NODE_LAYOUTS
from tessera.domain.mig_backends.devices import DEVICE_PLUGIN_LABEL, PAUSED
from tessera.domain.mig_backends.gpu_clients import MIG_MANAGER_LABEL
from tessera.domain.observed.node_layout import TAINT
from tessera.resources.manifest import ObjectKey
from tests.builders import MEDIUM
from tests.repartition.scenarios import SCENARIOS
from tests.repartition.simulation import BACKENDS, EACH_BACKEND, RepartitionSimulation
from world.mig_manager import MigManager

POOL = ObjectKey(ACCELERATOR_POOLS.plural, "", "a100")


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


@pytest.mark.parametrize("backend", EACH_BACKEND)
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


async def refreshing() -> RepartitionSimulation:
    """Return a fleet with a device plugin that is stopped for its new slices."""
    scenario = SCENARIOS["every slice is too large"]
    simulation = RepartitionSimulation.of(BACKENDS["agent"], scenario.nodes)
    for machine in simulation.machines:
        machine.plugin_stop, machine.plugin_start = 10.0, 30.0
        simulation.kube.set(machine.key, "metadata", "labels", **{MIG_MANAGER_LABEL: "true"})
    scenario.begin(simulation)
    await simulation.run_until_quiet()
    scenario.change(simulation)
    while not any(machine.labels[DEVICE_PLUGIN_LABEL] == PAUSED for machine in simulation.machines):
        await simulation.tick()
    return simulation


def delete_pool(simulation: RepartitionSimulation) -> None:
    simulation.kube.discard(POOL)


def select_no_node(simulation: RepartitionSimulation) -> None:
    simulation.kube.set(POOL, "spec", nodeSelector={"pool": "none"})


def leave_slices_alone(simulation: RepartitionSimulation) -> None:
    simulation.pool(mode="Static")


def plan_nothing(simulation: RepartitionSimulation) -> None:
    simulation.pool()


@pytest.mark.parametrize("change", [delete_pool, select_no_node, leave_slices_alone, plan_nothing])
async def test_a_stopped_device_plugin_starts_again_whatever_became_of_the_pool(
    change: Callable[[RepartitionSimulation], None],
) -> None:
    simulation = await refreshing()
    change(simulation)
    for _ in range(20):
        await simulation.tick()
    for machine in simulation.machines:
        body = simulation.kube.objects[machine.key]
        assert machine.labels[DEVICE_PLUGIN_LABEL] == "true", machine.name
        assert any(count != "0" for count in body["status"]["allocatable"].values())
        assert TAINT not in [taint["key"] for taint in body["spec"].get("taints", ())]
    simulation.replay()
    await simulation.close()


@pytest.mark.parametrize("change", [delete_pool, select_no_node, leave_slices_alone, plan_nothing])
async def test_slices_that_come_after_the_device_plugin_are_offered_whatever_became_of_the_pool(
    change: Callable[[RepartitionSimulation], None],
) -> None:
    scenario = SCENARIOS["a service comes"]
    simulation = RepartitionSimulation.of(BACKENDS["agent"], scenario.nodes)
    scenario.begin(simulation)
    await simulation.run_until_quiet()
    machine = next(machine for machine in simulation.machines if not machine.device_by_pod)
    offered = machine.allocatable
    machine.reboot()
    await simulation.run_until_quiet()
    change(simulation)
    machine.reboot()
    await simulation.run_until_quiet()
    assert machine.allocatable == offered
    assert machine.labels[DEVICE_PLUGIN_LABEL] == "true"
    await simulation.close()


async def test_mig_manager_gets_the_nodes_of_an_agent_in_mid_plan() -> None:
    simulation = await refreshing()
    for machine in simulation.machines:
        machine.manager = MigManager()
    simulation.pool(mode="Auto", backend="MigManager")
    await simulation.run_until_quiet()
    assert simulation.reason == "AsPlanned", simulation.describe()
    for machine in simulation.machines:
        layout = simulation.kube.objects[ObjectKey(NODE_LAYOUTS.plural, "", machine.name)]
        assert machine.labels[MIG_MANAGER_LABEL] == machine.labels[DEVICE_PLUGIN_LABEL] == "true"
        assert not layout["spec"].get("gpus")
    simulation.replay()

    simulation.pool(mode="Auto")
    simulation.serve("news", MEDIUM, 2)
    await simulation.run_until_quiet()
    assert simulation.reason == "AsPlanned", simulation.describe()
    simulation.replay()
    await simulation.close()
