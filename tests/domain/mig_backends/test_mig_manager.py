"""The sharp edges of mig-manager, one by one: what each would do, and what keeps it from that."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from fakegpu.gpu_driver import GpuDriver
from tessera.api.reasons import LayoutReady
from tessera.domain.mig.layouts import Layout, SlicePlacement
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
    """With an agent that looks, and mig-manager with these edges; `cut` GPUs are in MIG mode."""
    made = [[(spot.profile, spot.start) for spot in layout] for layout in layouts]
    gpu_driver = GpuDriver(A100, len(layouts), layouts=made)
    for gpu in gpu_driver.gpus[len(layouts) if cut is None else cut :]:
        gpu.mig = gpu.pending = False
    return SimulatedMigNode(
        gpu_driver=gpu_driver, manager=Manager(edges=Edges(**edges)), has_agent=True
    )


def a_course(far: SimulatedMigNode, wanted: Layout = WHOLE) -> BackendRun:
    return BackendRun(backend=BACKEND, node=far, desired={0: wanted})


def manager(far: SimulatedMigNode) -> Manager:
    assert far.manager is not None
    return far.manager


def told(course: BackendRun) -> tuple[LayoutReady | None, str]:
    problem = course.status.problem
    return (problem.reason, problem.message) if problem else (None, "")


def test_an_old_success_is_not_taken_for_the_answer_to_a_new_question() -> None:
    far = a_node(HALVES)
    assert a_course(far).run().done
    manager(far).pace = Pace(notice=60)
    course = a_course(far, SMALL)
    course.run(cycles=2)
    assert (far.labels[STATE_LABEL], course.status.done) == (STATE_REQUESTED, False)
    assert course.run().done


def test_the_neutral_word_comes_with_the_new_name_and_never_again() -> None:
    far = a_node(HALVES)
    first = BACKEND.request(far.observed(), {0: WHOLE}, 1)
    assert first.labels.keys() == {CONFIG_LABEL, STATE_LABEL}
    far.labels |= {key: value or "" for key, value in first.labels.items()}
    far.labels[STATE_LABEL] = "pending"
    assert BACKEND.request(far.observed(), {0: WHOLE}, 1).labels == {}


def test_every_attempt_has_a_name_of_its_own_that_a_label_may_have() -> None:
    far = a_node(HALVES)
    names = [
        BACKEND.request(far.observed(), {0: WHOLE}, at).labels[CONFIG_LABEL] for at in range(1, 8)
    ]
    assert len(set(names)) == 7
    assert all(name is not None and len(name) <= 63 for name in names)


def test_entries_of_all_attempts_are_there_before_the_first_so_that_a_repetition_is_heard() -> None:
    far = a_node(HALVES)
    for attempt in (1, 3):
        ask = BACKEND.request(far.observed(), {0: WHOLE}, attempt)
        following = BACKEND.request(far.observed(), {0: WHOLE}, attempt + 1)
        assert following.labels[CONFIG_LABEL] in ask.configs


def test_a_file_that_comes_late_costs_an_attempt_and_not_the_unit() -> None:
    far = a_node(HALVES)
    far.lag = 90
    course = a_course(far)
    assert course.run().done
    assert course.attempt > 1


def test_a_failure_is_repeated_after_a_pause_that_grows() -> None:
    far = a_node(HALVES, fails=2)
    far.lag = 0
    course = a_course(far)
    assert course.run().done
    assert course.attempt == 3
    assert far.now > 90


def test_a_failure_that_stays_says_where_to_look() -> None:
    far = a_node(HALVES, fails=99)
    course = a_course(far)
    course.run()
    reason, message = told(course)
    assert reason is LayoutReady.BACKEND_FAILED
    assert "kubectl logs -n gpu-operator" in message
    assert "migManager.config.name" in message


def test_a_client_that_does_not_go_is_noticed_and_the_next_attempt_mends_it() -> None:
    far = a_node(HALVES, stuck=True)
    far.lag = 0
    course = a_course(far)
    course.run(cycles=100)
    assert (far.labels[STATE_LABEL], far.labels[DEVICE_PLUGIN_LABEL]) == ("pending", PAUSED)
    manager(far).edges.stuck = False
    assert course.run().done
    assert far.labels[DEVICE_PLUGIN_LABEL] == "true"
    assert course.attempt == 2


def test_a_node_that_stays_paused_says_how_to_bring_its_clients_back() -> None:
    far = a_node(HALVES, stuck=True)
    far.lag = 0
    course = a_course(far)
    course.run(cycles=1000)
    reason, message = told(course)
    assert reason is LayoutReady.BACKEND_TIMEOUT
    assert f"kubectl label --overwrite node a100-0 {DEVICE_PLUGIN_LABEL}=true" in message


def test_a_mode_is_never_asked_to_change_and_gpus_out_of_mig_mode_are_never_named() -> None:
    far = a_node(HALVES, (), cut=1)
    course = a_course(far)
    assert course.run().done
    assert manager(far).mode_changes == 0
    entries = "".join(BACKEND.request(far.observed(), {0: WHOLE}, 1).configs.values())
    assert {line for line in entries.splitlines() if "devices: [" in line} == {"- devices: [0]"}
    assert "mig-enabled: false" not in entries


def test_a_gpu_with_a_slice_in_use_keeps_it_and_the_attempt_fails() -> None:
    far = a_node(HALVES)
    used = far.gpu_driver.gpus[0].instances[1]
    far.gpu_driver.attach(used.uuid, "engine")
    course = a_course(far)
    assert not course.run().done
    assert [one.uuid for one in far.gpu_driver.gpus[0].instances] == [used.uuid]


def test_first_the_gpus_of_the_unit_are_named_and_in_the_end_all_of_the_node() -> None:
    far = a_node(HALVES, SMALL)
    ask = BACKEND.request(far.observed(), {0: WHOLE}, 1)
    assert ask.configs[ask.labels[CONFIG_LABEL] or ""].count("- devices:") == 1
    course = a_course(far)
    assert course.run().done
    kept = BACKEND.request(far.observed(), {0: WHOLE}, course.attempt).configs[
        far.labels[CONFIG_LABEL]
    ]
    assert kept == (
        '- devices: [0]\n  mig-enabled: true\n  mig-devices: {"7g.80gb": 1}\n'
        '- devices: [1]\n  mig-enabled: true\n  mig-devices: {"1g.10gb": 2}\n'
    )
    assert referenced_configs([far.observed()]) == {far.labels[CONFIG_LABEL]: kept}


def test_after_a_reboot_the_entry_that_the_label_names_restores_the_node() -> None:
    far = a_node(HALVES, SMALL)
    assert a_course(far).run().done
    for gpu in far.gpu_driver.gpus:
        far.gpu_driver.clear(gpu.index)
    far.manager = Manager()
    for _ in range(60):
        far.pass_time()
    assert [len(gpu.instances) for gpu in far.gpu_driver.gpus] == [1, 2]


def test_a_node_that_nobody_takes_for_capable_is_told_of_with_the_label_that_it_lacks() -> None:
    far = a_node(HALVES)
    far.labels |= {"nvidia.com/mig.capable": "false"}
    course = a_course(far)
    course.run(cycles=60)
    reason, message = told(course)
    assert reason is LayoutReady.BACKEND_UNAVAILABLE
    assert "nvidia.com/mig.capable=true" in message


def test_whoever_does_not_react_is_missed_after_minutes_and_not_before() -> None:
    far = a_node(HALVES, deaf=True)
    course = a_course(far)
    course.run(cycles=30)
    assert told(course) == (None, "")
    course.run(cycles=10)
    assert told(course)[0] is LayoutReady.BACKEND_UNAVAILABLE


def test_a_success_without_devices_is_not_believed() -> None:
    far = a_node(HALVES, lies=True)
    course = a_course(far)
    course.run()
    reason, message = told(course)
    assert reason is LayoutReady.DEVICES_MISSING
    assert "kubectl get node a100-0" in message
    assert course.attempt == 5


def test_a_success_without_devices_once_is_mended_by_the_next_attempt() -> None:
    far = a_node(HALVES, lies=True)
    far.lag = 0
    course = a_course(far)
    while course.attempt == 1:
        course.run(cycles=1)
    manager(far).edges.lies = False
    assert course.run().done


def test_a_reboot_is_waited_for_and_one_that_does_not_end_is_told() -> None:
    far = a_node(HALVES, reboots=True)
    far.lag = 0
    assert a_course(far).run().done
    far = a_node(HALVES, reboots=True)
    far.lag = 0
    manager(far).pace = replace(Pace(), rebooting=3600.0)
    course = a_course(far)
    course.run(cycles=120)
    assert told(course) == (None, "")
    course.run(cycles=250)
    assert told(course)[0] is LayoutReady.BACKEND_TIMEOUT


@pytest.mark.parametrize("seconds", [0.0, 30.0, 59.0])
def test_devices_have_a_minute_to_come_after_their_plugin(seconds: float) -> None:
    far = a_node(HALVES)
    assert a_course(far).run().done
    since = far.at - timedelta(minutes=4)
    far.labels["nvidia.com/gfd.timestamp"] = str(int(far.at.timestamp()))
    far.allocatable = dict.fromkeys(far.allocatable, 0)
    later = far.at + timedelta(seconds=seconds)
    assert BACKEND.status(far.observed(), {0: WHOLE}, 1, since, later).problem is None
