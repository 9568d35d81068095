"""Requests to Tessera's agent, and how its reports are read."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from fakegpu.gpu_driver import GpuDriver
from tessera.api.node_layout import GpuFault
from tessera.api.pool_reasons import LayoutReady
from tessera.domain.hardware.gpu_layouts import Layout, SlicePlacement
from tessera.domain.mig_backends.agent import AgentBackend
from tessera.domain.mig_backends.devices import DEVICE_PLUGIN_LABEL, PAUSED
from tessera.domain.mig_backends.gpu_clients import MIG_MANAGER_LABEL
from tessera.domain.mig_backends.nodes import MigNode
from tests.builders import A100
from tests.simulated_mig_nodes import BackendRun, SimulatedMigNode

HALVES: Layout = (SlicePlacement(0, "3g.40gb"), SlicePlacement(4, "3g.40gb"))
SMALL: Layout = (SlicePlacement(0, "1g.10gb"), SlicePlacement(1, "1g.10gb"))


def a_node(*layouts: Layout, partitions: bool = True) -> SimulatedMigNode:
    placements = [
        [(placement.profile, placement.start) for placement in layout] for layout in layouts
    ]
    gpu_driver = GpuDriver(A100, len(layouts), layouts=placements)
    return SimulatedMigNode(gpu_driver=gpu_driver, has_agent=True, agent_partitions=partitions)


def problem_of(mig_node: MigNode, minutes: int = 0) -> tuple[LayoutReady | None, str]:
    since = a_node(HALVES).at
    status = AgentBackend().status(
        mig_node, {0: SMALL}, 1, since, since + timedelta(minutes=minutes)
    )
    return (status.problem.reason, status.problem.message) if status.problem else (None, "")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("ResetRequired", LayoutReady.GPU_RESET_REQUIRED),
        ("InUse", LayoutReady.GPU_IN_USE),
        ("PartitionFailed", LayoutReady.BACKEND_FAILED),
        ("QueryFailed", LayoutReady.BACKEND_FAILED),
        ("UnknownProfile", LayoutReady.UNKNOWN_PROFILE),
    ],
)
def test_a_fault_of_a_gpu_is_reported_with_the_agents_words(
    fault: GpuFault, reason: LayoutReady
) -> None:
    mig_node = a_node(HALVES).observed()
    gpus = tuple(replace(gpu, fault=fault, message="run this") for gpu in mig_node.gpus)
    assert problem_of(replace(mig_node, gpus=gpus)) == (reason, "GPU 0 of Node/a100-0: run this")


def test_a_fault_of_another_gpu_keeps_nothing() -> None:
    mig_node = a_node(HALVES, HALVES).observed()
    first, second = mig_node.gpus
    assert problem_of(replace(mig_node, gpus=(first, replace(second, fault="InUse")))) == (None, "")


def test_a_node_without_an_agent_or_with_a_read_only_one_says_which_value_to_set() -> None:
    node = a_node(HALVES, partitions=False)
    reason, message = problem_of(node.observed())
    assert (reason, "node.partition" in message) == (LayoutReady.BACKEND_UNAVAILABLE, True)
    node.has_agent = False
    reason, message = problem_of(node.observed())
    assert (reason, "node.enabled" in message) == (LayoutReady.BACKEND_UNAVAILABLE, True)
    assert AgentBackend().request(node.observed(), {0: SMALL}, 1, node.at).layout_spec is None


def test_an_agent_that_does_nothing_is_missed_after_ten_minutes() -> None:
    mig_node = a_node(HALVES).observed()
    assert problem_of(mig_node, minutes=9) == (None, "")
    reason, message = problem_of(mig_node, minutes=10)
    assert (reason, "kubectl get nodelayouts a100-0" in message) == (
        LayoutReady.BACKEND_TIMEOUT,
        True,
    )


def test_requests_for_other_gpus_stay() -> None:
    node = a_node(HALVES, HALVES)
    assert BackendRun(backend=AgentBackend(), node=node, desired={1: SMALL}).run().done
    request = AgentBackend().request(node.observed(), {0: SMALL}, 1, node.at)
    assert request.layout_spec is not None
    assert [gpu.slices for gpu in request.layout_spec.gpus] == [node.spec.gpus[0].slices] * 2


def test_the_device_plugin_goes_once_and_comes_back_once() -> None:
    node = a_node(HALVES)
    backend_run = BackendRun(backend=AgentBackend(), node=node, desired={0: SMALL})
    states = []
    while not backend_run.run(cycles=1).done:
        states.append(node.labels[DEVICE_PLUGIN_LABEL])
    changes = [
        state for state, previous in zip(states, [None, *states], strict=False) if state != previous
    ]
    assert changes == ["true", PAUSED, "true"]


def test_a_restart_is_repeated_for_other_devices_or_after_a_while() -> None:
    node = a_node(SMALL)
    assert BackendRun(backend=AgentBackend(), node=node, desired={0: HALVES}).run().done

    def pauses() -> bool:
        request = AgentBackend().request(node.observed(), {0: HALVES}, 1, node.at)
        return request.labels.get(DEVICE_PLUGIN_LABEL) == PAUSED

    node.allocatable = {"nvidia.com/mig-1g.10gb": 2}
    assert not pauses()
    node.now += 15 * 60
    assert pauses()
    node.now -= 15 * 60
    node.gpu_driver.clear(0)
    for placement in HALVES:
        node.gpu_driver.create(0, placement.profile, placement.start)
    assert pauses()


def test_a_node_that_had_no_slices_offers_its_first_ones() -> None:
    node = a_node(())
    assert BackendRun(backend=AgentBackend(), node=node, desired={0: SMALL}).run().done


def test_devices_that_do_not_come_are_requested_again_and_then_reported() -> None:
    node = a_node(HALVES)
    backend_run = BackendRun(backend=AgentBackend(), node=node, desired={0: SMALL})
    backend_run.run(cycles=3)
    node.allocatable = {"nvidia.com/mig-3g.40gb": 2}
    status = AgentBackend().status(
        node.observed(), {0: SMALL}, 1, node.at - timedelta(minutes=3), node.at
    )
    assert status.retry
    assert status.problem is not None
    assert status.problem.reason is LayoutReady.DEVICES_MISSING


@pytest.mark.parametrize(
    ("labels", "written"),
    [({MIG_MANAGER_LABEL: "true"}, True), ({MIG_MANAGER_LABEL: "false"}, False), ({}, False)],
)
def test_mig_manager_is_removed_where_the_agent_partitions(
    labels: Mapping[str, str], written: bool
) -> None:
    node = a_node(HALVES)
    node.labels |= labels
    assert (
        MIG_MANAGER_LABEL in AgentBackend().request(node.observed(), {0: SMALL}, 1, node.at).labels
    ) is written
