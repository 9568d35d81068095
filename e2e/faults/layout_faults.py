"""Faults during a repartition, by the names of `tests/fault_sequences/layout_faults.py`."""

from collections.abc import Mapping, Sequence
from functools import partial

from demo.cluster import NAMESPACE
from faults.layout_fleet import FLOORS, SCENE, LayoutFleet
from tests.fault_sequences.language import Fault

# Seconds that a slow device plugin takes to come and to go.
_SLOW_START, _SLOW_STOP = 10.0, 3.0
_OTHER_DEVICES = "nvidia.com/hostdev"


def _everything(_fleet: LayoutFleet) -> Sequence[str]:
    return ("the fleet",)


def _nodes(fleet: LayoutFleet) -> Sequence[str]:
    return fleet.node_names()


def _nodes_in_work(fleet: LayoutFleet) -> Sequence[str]:
    return fleet.nodes_in_work()


def _idle_nodes(fleet: LayoutFleet) -> Sequence[str]:
    """Return nodes that are not in work while another one is."""
    in_work = fleet.nodes_in_work()
    return [name for name in fleet.node_names() if in_work and name not in in_work]


def _stopped_plugins(fleet: LayoutFleet) -> Sequence[str]:
    return fleet.stopped_plugins()


def _services(fleet: LayoutFleet) -> Sequence[str]:
    """Return the services while a node is in work."""
    return list(FLOORS) if fleet.nodes_in_work() else ()


def _roll_service(fleet: LayoutFleet, name: str) -> None:
    fleet.roll(name)


def _slow_plugins(fleet: LayoutFleet, _target: str) -> None:
    for node in fleet.node_names():
        fleet.cluster.world.device_plugin(node, start_seconds=_SLOW_START, stop_seconds=_SLOW_STOP)


def _offer_other_devices(fleet: LayoutFleet, _target: str) -> None:
    """NVIDIA's network operator offers its own devices on every node."""
    for node in fleet.node_names():
        fleet.offer(node, _OTHER_DEVICES, 8)


def _set_scene(fleet: LayoutFleet, node: str, *, leaves: bool) -> None:
    fleet.label(node, **{SCENE: None if leaves else fleet.scene})


def _delete_pool(fleet: LayoutFleet, _target: str) -> None:
    fleet.delete_pool()


def _make_pool_again(fleet: LayoutFleet, _target: str) -> None:
    fleet.make_pool()


def _freeze_agents(fleet: LayoutFleet, _target: str) -> None:
    for pod in fleet.agents():
        fleet.cluster.world.pause(NAMESPACE, pod, "node")


def _thaw_agents(fleet: LayoutFleet, _target: str) -> None:
    for pod in fleet.agents():
        fleet.cluster.world.resume(NAMESPACE, pod, "node")


def _add_budget(fleet: LayoutFleet, _target: str) -> None:
    fleet.add_budget()


def _remove_budget(fleet: LayoutFleet, _target: str) -> None:
    fleet.remove_budget()


def _lose_gpus(fleet: LayoutFleet, node: str) -> None:
    for index in range(len(fleet.gpus[node])):
        fleet.cluster.world.lose_gpu(node, index)


def _repair_gpus(fleet: LayoutFleet, node: str) -> None:
    for index in range(len(fleet.gpus[node])):
        fleet.cluster.world.repair_gpu(node, index)


def _lose_slices(fleet: LayoutFleet, node: str) -> None:
    fleet.cluster.world.clear_slices(node)


def _kill_operator(fleet: LayoutFleet, _target: str) -> None:
    world = fleet.cluster.world
    for container in world.containers():
        if (container.namespace, container.container) == (NAMESPACE, "operator"):
            world.kill(container.namespace, container.pod, container.container)


LAYOUT_FAULTS: tuple[Fault[LayoutFleet], ...] = (
    Fault(name="plugin-slow", targets=_everything, begin=_slow_plugins, seconds=(0, 0)),
    Fault(name="other-devices", targets=_everything, begin=_offer_other_devices, seconds=(0, 0)),
    Fault(name="slices-gone", targets=_stopped_plugins, begin=_lose_slices, seconds=(0, 0)),
    Fault(
        name="label-off",
        targets=_idle_nodes,
        begin=partial(_set_scene, leaves=True),
        end=partial(_set_scene, leaves=False),
        seconds=(30, 30),
    ),
    Fault(
        name="pool-deleted",
        targets=_stopped_plugins,
        begin=_delete_pool,
        end=_make_pool_again,
        seconds=(20, 20),
    ),
    Fault(
        name="agent-stale",
        targets=_nodes_in_work,
        begin=_freeze_agents,
        end=_thaw_agents,
        seconds=(30, 30),
    ),
    Fault(
        name="two-budgets",
        targets=_everything,
        begin=_add_budget,
        end=_remove_budget,
        seconds=(40, 40),
    ),
    Fault(
        name="gpus-lost",
        targets=_nodes_in_work,
        begin=_lose_gpus,
        end=_repair_gpus,
        seconds=(20, 20),
    ),
    Fault(name="service-rolled", targets=_services, begin=_roll_service, seconds=(0, 0)),
    Fault(
        name="service-rolled-again-and-again",
        targets=_services,
        begin=_roll_service,
        during=_roll_service,
        seconds=(12, 12),
    ),
    Fault(name="operator-restarts", targets=_nodes_in_work, begin=_kill_operator, seconds=(0, 0)),
)
BY_NAME: Mapping[str, Fault[LayoutFleet]] = {fault.name: fault for fault in LAYOUT_FAULTS}
