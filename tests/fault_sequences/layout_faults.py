"""What goes wrong during a repartition: at nodes, by their users, and around the operator."""

from collections.abc import Sequence
from functools import partial

from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, NODE_LAYOUTS
from tessera.domain.mig_backends.devices import DEVICE_PLUGIN_LABEL
from tessera.domain.mig_backends.mig_manager import CONFIG_LABEL
from tessera.resources.api_resources import NODES
from tessera.resources.manifest import ObjectKey
from tests.builders import SMALL
from tests.fault_sequences.language import Fault
from tests.fault_sequences.layout_fleet import POOL, LayoutFleet

_AGENTS = ("agent", "mig-manager, with agents that look")
_MIG_MANAGERS = ("mig-manager", "mig-manager, with agents that look")
_POOL_LABEL = "pool"


def _everything(_fleet: LayoutFleet) -> Sequence[str]:
    return ("the fleet",)


def _nodes_in_work(fleet: LayoutFleet) -> Sequence[str]:
    return fleet.nodes_in_work()


def _nodes(fleet: LayoutFleet) -> Sequence[str]:
    return fleet.node_names()


def _services(fleet: LayoutFleet) -> Sequence[str]:
    return fleet.service_names()


def _set_plugin(fleet: LayoutFleet, node: str, *, away: bool) -> None:
    fleet.node(node).plugin_away = away


def _slow_plugin(fleet: LayoutFleet, node: str) -> None:
    fleet.node(node).plugin_stop, fleet.node(node).plugin_start = 25.0, 60.0


def _pause_plugin_by_hand(fleet: LayoutFleet, node: str) -> None:
    """Somebody takes the device plugin off a node, unless it is paused, and puts it back."""
    if fleet.node(node).labels[DEVICE_PLUGIN_LABEL] == "true":
        fleet.label(node, **{DEVICE_PLUGIN_LABEL: "false"})


def _resume_plugin_by_hand(fleet: LayoutFleet, node: str) -> None:
    if fleet.node(node).labels[DEVICE_PLUGIN_LABEL] == "false":
        fleet.label(node, **{DEVICE_PLUGIN_LABEL: "true"})


def _lose_slices(fleet: LayoutFleet, node: str) -> None:
    """Reset the GPUs of a node while its device plugin is away: unused slices are gone."""
    fleet.node(node).plugin_away = True
    fleet.node(node).clear_unused_slices()


def _return_plugin_first(fleet: LayoutFleet, node: str) -> None:
    """Start the device plugin before anything has made the slices again."""
    machine = fleet.node(node)
    machine.plugin_away = False
    machine.clear_unused_slices()
    machine.start_plugin()


def _set_other_devices(fleet: LayoutFleet, node: str) -> None:
    """NVIDIA's network operator offers its own devices on the node."""
    fleet.node(node).add_resource("nvidia.com/hostdev", 8)


def _set_pool_label(fleet: LayoutFleet, node: str, *, value: str | None) -> None:
    fleet.label(node, **{_POOL_LABEL: value})


def _narrow_selector(fleet: LayoutFleet, node: str) -> None:
    """Select only the nodes with a label that one node lacks."""
    for name in fleet.node_names():
        fleet.label(name, zone="b" if name == node else "a")
    fleet.update_pool(nodeSelector={_POOL_LABEL: "a100", "zone": "a"})


def _widen_selector(fleet: LayoutFleet, _node: str) -> None:
    fleet.update_pool(nodeSelector={_POOL_LABEL: "a100"})


def _delete_pool(fleet: LayoutFleet, _target: str) -> None:
    fleet.pool_spec = fleet.kube.objects[POOL]["spec"]
    fleet.kube.discard(POOL)


def _make_pool_again(fleet: LayoutFleet, _target: str) -> None:
    body = {"metadata": {"name": POOL.name}, "spec": fleet.pool_spec}
    fleet.kube.put(ACCELERATOR_POOLS, body, "kubectl")


def _pool_exists(fleet: LayoutFleet) -> Sequence[str]:
    return (POOL.name,) if POOL in fleet.kube.objects else ()


def _mode_off(fleet: LayoutFleet, _target: str) -> None:
    fleet.update_pool(mig=None)


def _set_mode(fleet: LayoutFleet, _target: str, *, mode: str) -> None:
    fleet.update_mig(mode=mode)


def _switch_backend(fleet: LayoutFleet, _target: str) -> None:
    backend = fleet.mig_spec.get("backend")
    fleet.update_mig(backend="MigManager" if backend == "Agent" else "Agent")


def _set_agent(fleet: LayoutFleet, node: str, *, away: bool) -> None:
    fleet.node(node).agent_away = away


def _agents_gone(fleet: LayoutFleet, _target: str) -> None:
    """The chart is upgraded without agents; their NodeLayouts stay."""
    for name in fleet.node_names():
        fleet.node(name).agent_away = True


def _run_notebook(fleet: LayoutFleet, _target: str) -> None:
    fleet.add_foreign_pod()


def _end_notebooks(fleet: LayoutFleet, _target: str) -> None:
    fleet.remove_foreign_pods()


def _lose_gpus(fleet: LayoutFleet, node: str) -> None:
    fleet.node(node).lose_gpus()


def _repair_gpus(fleet: LayoutFleet, node: str) -> None:
    fleet.node(node).repair_gpus()


def _node_layout(node: str) -> ObjectKey:
    return ObjectKey(NODE_LAYOUTS.plural, "", node)


def _node_layouts(fleet: LayoutFleet) -> Sequence[str]:
    return [name for name in fleet.nodes_in_work() if _node_layout(name) in fleet.kube.objects]


def _edit_node_layout(fleet: LayoutFleet, node: str) -> None:
    body = {"metadata": {"name": node}, "spec": {"gpus": []}}
    fleet.kube.put(NODE_LAYOUTS, body, "kubectl")


def _delete_node_layout(fleet: LayoutFleet, node: str) -> None:
    fleet.kube.discard(_node_layout(node))


def _empty_node_layout(fleet: LayoutFleet, node: str) -> None:
    if fleet.kube.objects.get(_node_layout(node), {}).get("status"):
        fleet.kube.set(_node_layout(node), status={})


def _wipe_status(fleet: LayoutFleet, _target: str) -> None:
    if fleet.kube.objects.get(POOL, {}).get("status", {}).get("mig"):
        fleet.kube.remove(POOL, "status", "mig")


def _add_service(fleet: LayoutFleet, _target: str) -> None:
    fleet.serve("extra", SMALL, 1)


def _remove_added_service(fleet: LayoutFleet, _target: str) -> None:
    fleet.remove_service("extra")


def _remove_service(fleet: LayoutFleet, name: str) -> None:
    fleet.remove_service(name)


def _edit_service(fleet: LayoutFleet, name: str) -> None:
    """A user isolates a service, or takes that back."""
    uri, spec = fleet.specs[name]
    isolation = spec.get("placement", {}).get("isolation")
    placement = {"mig": "Auto"} if isolation else {"mig": "Auto", "isolation": "Gpu"}
    floor = next(count for ref, count in fleet.min_replicas.items() if ref.name == name)
    fleet.serve(name, uri, floor, **{**spec, "placement": placement})


def _roll_service(fleet: LayoutFleet, name: str) -> None:
    """A pipeline applies a service with another setting of its pods."""
    uri, spec = fleet.specs[name]
    floor = next(count for ref, count in fleet.min_replicas.items() if ref.name == name)
    labels = {"example.org/build": str(fleet.ticks)}
    fleet.serve(name, uri, floor, **{**spec, "podTemplate": {"labels": labels}})


def _edit_budget(fleet: LayoutFleet, _target: str) -> None:
    fleet.set_budget(1000 + fleet.ticks)


def _edit_pool(fleet: LayoutFleet, _target: str) -> None:
    """An operator of the cluster writes prices, which changes no layout."""
    prices = [{"from": "2026-01-01", "perGPUHour": f"2.{fleet.ticks % 100:02}"}]
    fleet.update_pool(prices=prices)


def _raise_floor(fleet: LayoutFleet, name: str) -> None:
    floor = next(count for ref, count in fleet.min_replicas.items() if ref.name == name)
    fleet.set_floor(name, floor + 1)


def _stop_operator(fleet: LayoutFleet, _target: str) -> None:
    fleet.stop_operator()


def _cordon(fleet: LayoutFleet, node: str, *, cordoned: bool = True) -> None:
    fleet.kube.set(ObjectKey(NODES.plural, "", node), "spec", unschedulable=cordoned)


def _drain(fleet: LayoutFleet, node: str) -> None:
    _cordon(fleet, node)
    fleet.faulty_kube.drain(node)


def _lose_power(fleet: LayoutFleet, node: str) -> None:
    fleet.node(node).lose_power()


def _boot(fleet: LayoutFleet, node: str) -> None:
    fleet.node(node).boot()


def _add_budget(fleet: LayoutFleet, _target: str) -> None:
    fleet.add_foreign_budget()


def _remove_budget(fleet: LayoutFleet, _target: str) -> None:
    fleet.remove_foreign_budget()


def _configure_by_hand(fleet: LayoutFleet, node: str) -> None:
    fleet.node(node).configured_by_hand = True
    fleet.label(node, **{CONFIG_LABEL: "all-disabled"})


def _fail_mig_manager(fleet: LayoutFleet, node: str) -> None:
    manager = fleet.node(node).manager
    assert manager is not None
    manager.edges.fails = 1


LAYOUT_FAULTS: tuple[Fault[LayoutFleet], ...] = (
    Fault(
        name="plugin-away",
        targets=_nodes_in_work,
        begin=partial(_set_plugin, away=True),
        end=partial(_set_plugin, away=False),
        seconds=(10, 60),
    ),
    Fault(name="plugin-slow", targets=_nodes_in_work, begin=_slow_plugin),
    Fault(
        name="plugin-off-by-hand",
        targets=_nodes_in_work,
        begin=_pause_plugin_by_hand,
        end=_resume_plugin_by_hand,
    ),
    Fault(
        name="slices-gone",
        targets=_nodes,
        begin=_lose_slices,
        end=_return_plugin_first,
        seconds=(10, 60),
    ),
    Fault(name="other-devices", targets=_nodes_in_work, begin=_set_other_devices),
    Fault(
        name="label-off",
        targets=_nodes,
        begin=partial(_set_pool_label, value=None),
        end=partial(_set_pool_label, value="a100"),
        seconds=(30, 120),
    ),
    Fault(name="label-off-for-good", targets=_nodes, begin=partial(_set_pool_label, value=None)),
    Fault(
        name="selector-narrowed",
        targets=_nodes,
        begin=_narrow_selector,
        end=_widen_selector,
        seconds=(30, 120),
    ),
    Fault(
        name="pool-deleted",
        targets=_pool_exists,
        needs="pool",
        begin=_delete_pool,
        end=_make_pool_again,
        seconds=(10, 120),
    ),
    Fault(
        name="pool-deleted-for-good",
        targets=_pool_exists,
        needs="pool",
        takes_away="pool",
        begin=_delete_pool,
    ),
    Fault(name="mode-off", targets=_pool_exists, needs="pool", begin=_mode_off),
    Fault(
        name="mode-static",
        targets=_pool_exists,
        needs="pool",
        begin=partial(_set_mode, mode="Static"),
    ),
    Fault(
        name="mode-static-and-back",
        targets=_pool_exists,
        needs="pool",
        begin=partial(_set_mode, mode="Static"),
        end=partial(_set_mode, mode="Auto"),
    ),
    Fault(name="backend-switched", targets=_pool_exists, needs="pool", begin=_switch_backend),
    Fault(
        name="backend-switched-and-back",
        targets=_pool_exists,
        needs="pool",
        begin=_switch_backend,
        end=_switch_backend,
        seconds=(10, 180),
    ),
    Fault(
        name="agent-stale",
        targets=_nodes_in_work,
        begin=partial(_set_agent, away=True),
        end=partial(_set_agent, away=False),
        seconds=(30, 240),
        backends=_AGENTS,
    ),
    Fault(name="agents-gone", targets=_everything, begin=_agents_gone, backends=_AGENTS),
    Fault(
        name="notebook",
        targets=_everything,
        begin=_run_notebook,
        end=_end_notebooks,
        seconds=(30, 120),
    ),
    Fault(name="notebook-stays", targets=_everything, begin=_run_notebook),
    Fault(
        name="two-budgets",
        targets=_everything,
        begin=_add_budget,
        end=_remove_budget,
        seconds=(30, 240),
    ),
    Fault(name="two-budgets-for-good", targets=_everything, begin=_add_budget),
    Fault(
        name="gpus-lost",
        targets=_nodes_in_work,
        begin=_lose_gpus,
        end=_repair_gpus,
        seconds=(20, 120),
    ),
    Fault(name="gpus-lost-for-good", targets=_nodes_in_work, begin=_lose_gpus),
    Fault(
        name="node-layout-edited",
        targets=_node_layouts,
        begin=_edit_node_layout,
        backends=_AGENTS,
    ),
    Fault(
        name="node-layout-deleted",
        targets=_node_layouts,
        begin=_delete_node_layout,
        backends=_AGENTS,
    ),
    Fault(
        name="node-layout-emptied",
        targets=_node_layouts,
        begin=_empty_node_layout,
        during=_empty_node_layout,
        backends=_AGENTS,
    ),
    Fault(
        name="status-wiped",
        targets=_pool_exists,
        needs="pool",
        begin=_wipe_status,
        during=_wipe_status,
        seconds=(5, 15),
    ),
    Fault(
        name="service-comes-and-goes",
        targets=_everything,
        begin=_add_service,
        end=_remove_added_service,
    ),
    Fault(name="service-removed", targets=_services, begin=_remove_service),
    Fault(name="service-edited", targets=_services, begin=_edit_service),
    Fault(name="floor-raised", targets=_services, begin=_raise_floor),
    Fault(name="service-rolled", targets=_services, begin=_roll_service),
    Fault(
        name="service-rolled-again-and-again",
        targets=_services,
        begin=_roll_service,
        during=_roll_service,
        seconds=(12, 60),
    ),
    Fault(
        name="pool-edited",
        targets=_pool_exists,
        needs="pool",
        begin=_edit_pool,
        during=_edit_pool,
        seconds=(12, 60),
    ),
    Fault(
        name="budget-edited",
        targets=_everything,
        begin=_edit_budget,
        during=_edit_budget,
        seconds=(12, 60),
    ),
    Fault(
        name="operator-restarts",
        targets=_everything,
        begin=_stop_operator,
        during=_stop_operator,
    ),
    Fault(
        name="cordon",
        targets=_nodes_in_work,
        begin=_cordon,
        end=partial(_cordon, cordoned=False),
    ),
    Fault(
        name="drain",
        targets=_nodes_in_work,
        begin=_drain,
        during=_drain,
        end=partial(_cordon, cordoned=False),
        removes_capacity=True,
    ),
    Fault(
        name="node-dies",
        targets=_nodes_in_work,
        begin=_lose_power,
        end=_boot,
        seconds=(10, 60),
        removes_capacity=True,
    ),
    Fault(
        name="config-by-hand",
        targets=_nodes_in_work,
        begin=_configure_by_hand,
        backends=_MIG_MANAGERS,
    ),
    Fault(
        name="mig-manager-fails",
        targets=_nodes_in_work,
        begin=_fail_mig_manager,
        backends=_MIG_MANAGERS,
    ),
)
