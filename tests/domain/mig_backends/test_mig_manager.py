"""The pitfalls of mig-manager one by one: what each would do, and what prevents it."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from fakegpu.gpu_driver import GpuDriver
from tessera.api.pool_reasons import LayoutReady
from tessera.domain.hardware.gpu_layouts import Layout, SlicePlacement
from tessera.domain.mig_backends.devices import DEVICE_PLUGIN_LABEL, PAUSED
from tessera.domain.mig_backends.mig_manager import (
    CONFIG_LABEL,
    STATE_LABEL,
    STATE_REQUESTED,
    MigManagerBackend,
    referenced_configs,
)
from tests.builders import A100
from tests.simulated_mig_nodes import BackendRun, SimulatedMigNode
from world.mig_manager import Edges, Pace
from world.mig_manager import MigManager as Manager

HALVES: Layout = (SlicePlacement(0, "3g.40gb"), SlicePlacement(4, "3g.40gb"))
WHOLE: Layout = (SlicePlacement(0, "7g.80gb"),)
SMALL: Layout = (SlicePlacement(0, "1g.10gb"), SlicePlacement(1, "1g.10gb"))
BACKEND = MigManagerBackend(knows_pods=True)


def a_node(*layouts: Layout, cut: int | None = None, **edges: Any) -> SimulatedMigNode:
    """Build a node with a read-only agent and mig-manager; `cut` GPUs are in MIG mode."""
    placements = [
        [(placement.profile, placement.start) for placement in layout] for layout in layouts
    ]
    gpu_driver = GpuDriver(A100, len(layouts), layouts=placements)
    for gpu in gpu_driver.gpus[len(layouts) if cut is None else cut :]:
        gpu.mig = gpu.pending = False
    return SimulatedMigNode(
        gpu_driver=gpu_driver, manager=Manager(edges=Edges(**edges)), has_agent=True
    )


def a_backend_run(node: SimulatedMigNode, wanted: Layout = WHOLE) -> BackendRun:
    return BackendRun(backend=BACKEND, node=node, desired={0: wanted})


def manager(node: SimulatedMigNode) -> Manager:
    assert node.manager is not None
    return node.manager


def reason_and_message(backend_run: BackendRun) -> tuple[LayoutReady | None, str]:
    problem = backend_run.status.problem
    return (problem.reason, problem.message) if problem else (None, "")


def test_an_old_success_is_not_taken_for_the_answer_to_a_new_question() -> None:
    node = a_node(HALVES)
    assert a_backend_run(node).run().done
    manager(node).pace = Pace(notice=60)
    backend_run = a_backend_run(node, SMALL)
    backend_run.run(cycles=2)
    assert (node.labels[STATE_LABEL], backend_run.status.done) == (STATE_REQUESTED, False)
    assert backend_run.run().done


def test_the_neutral_word_comes_with_the_new_name_and_never_again() -> None:
    node = a_node(HALVES)
    first = BACKEND.request(node.observed(), {0: WHOLE}, 1, node.at)
    assert first.labels.keys() == {CONFIG_LABEL, STATE_LABEL}
    node.labels |= {key: value or "" for key, value in first.labels.items()}
    node.labels[STATE_LABEL] = "pending"
    assert BACKEND.request(node.observed(), {0: WHOLE}, 1, node.at).labels == {}


def test_every_attempt_has_a_name_of_its_own_that_a_label_may_have() -> None:
    node = a_node(HALVES)
    names = [
        BACKEND.request(node.observed(), {0: WHOLE}, at, node.at).labels[CONFIG_LABEL]
        for at in range(1, 8)
    ]
    assert len(set(names)) == 7
    assert all(name is not None and len(name) <= 63 for name in names)


def test_entries_of_all_attempts_exist_before_the_first_so_that_a_repetition_is_seen() -> None:
    node = a_node(HALVES)
    for attempt in (1, 3):
        request = BACKEND.request(node.observed(), {0: WHOLE}, attempt, node.at)
        following = BACKEND.request(node.observed(), {0: WHOLE}, attempt + 1, node.at)
        assert following.labels[CONFIG_LABEL] in request.configs


def test_a_file_that_comes_late_costs_an_attempt_and_not_the_unit() -> None:
    node = a_node(HALVES)
    node.lag = 90
    backend_run = a_backend_run(node)
    assert backend_run.run().done
    assert backend_run.attempt > 1


def test_a_failure_is_repeated_after_a_pause_that_grows() -> None:
    node = a_node(HALVES, fails=2)
    node.lag = 0
    backend_run = a_backend_run(node)
    assert backend_run.run().done
    assert backend_run.attempt == 3
    assert node.now > 90


def test_a_failure_of_the_configuration_for_the_whole_node_is_repeated_as_soon() -> None:
    node = a_node(HALVES, SMALL)
    backend_run = a_backend_run(node)
    assert backend_run.run().done
    node.labels[STATE_LABEL] = "failed"
    since, attempt = node.at - timedelta(minutes=5), backend_run.attempt
    assert BACKEND.status(node.observed(), {0: WHOLE}, attempt, since, node.at).retry


def test_a_failure_that_stays_says_where_to_look() -> None:
    node = a_node(HALVES, fails=99)
    backend_run = a_backend_run(node)
    backend_run.run()
    reason, message = reason_and_message(backend_run)
    assert reason is LayoutReady.BACKEND_FAILED
    assert "kubectl logs -n gpu-operator" in message
    assert "migManager.config.name" in message


def test_a_client_that_does_not_end_is_noticed_and_the_next_attempt_succeeds() -> None:
    node = a_node(HALVES, stuck=True)
    node.lag = 0
    backend_run = a_backend_run(node)
    backend_run.run(cycles=100)
    assert (node.labels[STATE_LABEL], node.labels[DEVICE_PLUGIN_LABEL]) == ("pending", PAUSED)
    manager(node).edges.stuck = False
    assert backend_run.run().done
    assert node.labels[DEVICE_PLUGIN_LABEL] == "true"
    assert backend_run.attempt == 2


def test_a_node_that_stays_paused_says_how_to_bring_its_clients_back() -> None:
    node = a_node(HALVES, stuck=True)
    node.lag = 0
    backend_run = a_backend_run(node)
    backend_run.run(cycles=1000)
    reason, message = reason_and_message(backend_run)
    assert reason is LayoutReady.BACKEND_TIMEOUT
    assert f"kubectl label --overwrite node a100-0 {DEVICE_PLUGIN_LABEL}=true" in message


def test_a_mode_is_never_asked_to_change_and_gpus_out_of_mig_mode_are_never_named() -> None:
    node = a_node(HALVES, (), cut=1)
    backend_run = a_backend_run(node)
    assert backend_run.run().done
    assert manager(node).mode_changes == 0
    entries = "".join(BACKEND.request(node.observed(), {0: WHOLE}, 1, node.at).configs.values())
    assert {line for line in entries.splitlines() if "devices: [" in line} == {"- devices: [0]"}
    assert "mig-enabled: false" not in entries


def test_a_gpu_with_a_slice_in_use_keeps_it_and_the_attempt_fails() -> None:
    node = a_node(HALVES)
    used = node.gpu_driver.gpus[0].instances[1]
    node.gpu_driver.attach(used.uuid, "engine")
    backend_run = a_backend_run(node)
    assert not backend_run.run().done
    assert [instance.uuid for instance in node.gpu_driver.gpus[0].instances] == [used.uuid]


def test_first_the_gpus_of_the_unit_are_named_and_in_the_end_all_of_the_node() -> None:
    node = a_node(HALVES, SMALL)
    request = BACKEND.request(node.observed(), {0: WHOLE}, 1, node.at)
    assert request.configs[request.labels[CONFIG_LABEL] or ""].count("- devices:") == 1
    backend_run = a_backend_run(node)
    assert backend_run.run().done
    entries = BACKEND.request(node.observed(), {0: WHOLE}, backend_run.attempt, node.at).configs[
        node.labels[CONFIG_LABEL]
    ]
    assert entries == (
        '- devices: [0]\n  mig-enabled: true\n  mig-devices: {"7g.80gb": 1}\n'
        '- devices: [1]\n  mig-enabled: true\n  mig-devices: {"1g.10gb": 2}\n'
    )
    assert referenced_configs([node.observed()]) == {node.labels[CONFIG_LABEL]: entries}


def test_after_a_reboot_the_entry_that_the_label_names_restores_the_node() -> None:
    node = a_node(HALVES, SMALL)
    assert a_backend_run(node).run().done
    for gpu in node.gpu_driver.gpus:
        node.gpu_driver.clear(gpu.index)
    node.manager = Manager()
    for _ in range(60):
        node.pass_time()
    assert [len(gpu.instances) for gpu in node.gpu_driver.gpus] == [1, 2]


def test_a_node_that_is_not_labelled_capable_is_reported_with_the_missing_label() -> None:
    node = a_node(HALVES)
    node.labels |= {"nvidia.com/mig.capable": "false"}
    backend_run = a_backend_run(node)
    backend_run.run(cycles=60)
    reason, message = reason_and_message(backend_run)
    assert reason is LayoutReady.BACKEND_UNAVAILABLE
    assert "nvidia.com/mig.capable=true" in message


def test_a_manager_that_does_not_react_is_reported_after_minutes_and_not_before() -> None:
    node = a_node(HALVES, deaf=True)
    backend_run = a_backend_run(node)
    backend_run.run(cycles=30)
    assert reason_and_message(backend_run) == (None, "")
    backend_run.run(cycles=10)
    assert reason_and_message(backend_run)[0] is LayoutReady.BACKEND_UNAVAILABLE


def test_a_success_without_devices_is_not_believed() -> None:
    node = a_node(HALVES, lies=True)
    backend_run = a_backend_run(node)
    backend_run.run()
    reason, message = reason_and_message(backend_run)
    assert reason is LayoutReady.DEVICES_MISSING
    assert "kubectl get node a100-0" in message
    assert backend_run.attempt == 5


def test_a_success_without_devices_once_is_repaired_by_the_next_attempt() -> None:
    node = a_node(HALVES, lies=True)
    node.lag = 0
    backend_run = a_backend_run(node)
    while backend_run.attempt == 1:
        backend_run.run(cycles=1)
    manager(node).edges.lies = False
    assert backend_run.run().done


def test_a_reboot_is_waited_for_and_one_that_does_not_end_is_reported() -> None:
    node = a_node(HALVES, reboots=True)
    node.lag = 0
    assert a_backend_run(node).run().done
    node = a_node(HALVES, reboots=True)
    node.lag = 0
    manager(node).pace = replace(Pace(), rebooting=3600.0)
    backend_run = a_backend_run(node)
    backend_run.run(cycles=120)
    assert reason_and_message(backend_run) == (None, "")
    backend_run.run(cycles=250)
    assert reason_and_message(backend_run)[0] is LayoutReady.BACKEND_TIMEOUT


@pytest.mark.parametrize("seconds", [0.0, 30.0, 59.0])
def test_devices_have_a_minute_to_come_after_their_plugin(seconds: float) -> None:
    node = a_node(HALVES)
    backend_run = a_backend_run(node)
    assert backend_run.run().done
    since = node.at - timedelta(minutes=4)
    node.labels["nvidia.com/gfd.timestamp"] = str(int(node.at.timestamp()))
    node.allocatable = dict.fromkeys(node.allocatable, 0)
    later = node.at + timedelta(seconds=seconds)
    assert (
        BACKEND.status(node.observed(), {0: WHOLE}, backend_run.attempt, since, later).problem
        is None
    )


@pytest.mark.parametrize("label", ["9" * 20, "9999999999", "soon"])
def test_a_time_of_discovery_that_is_none_hides_no_missing_devices(label: str) -> None:
    node = a_node(HALVES)
    backend_run = a_backend_run(node)
    assert backend_run.run().done
    since = node.at - timedelta(minutes=6)
    node.labels["nvidia.com/gfd.timestamp"] = label
    node.allocatable = dict.fromkeys(node.allocatable, 0)
    problem = BACKEND.status(
        node.observed(), {0: WHOLE}, backend_run.attempt, since, node.at
    ).problem
    assert problem is not None
    assert problem.reason is LayoutReady.DEVICES_MISSING
