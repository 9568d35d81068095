"""What is asked of Tessera's agent, and how it is heard."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from fakegpu.gpu_driver import GpuDriver
from tessera.api.node_layout import GpuFault
from tessera.api.reasons import LayoutReady
from tessera.domain.mig.layouts import Layout, SlicePlacement
from tessera.domain.mig_backends.agent import MIG_MANAGER_LABEL, REFRESHED_LABEL, AgentBackend
from tessera.domain.mig_backends.devices import DEVICE_PLUGIN_LABEL, PAUSED
from tessera.domain.mig_backends.nodes import MigNode
from tests.builders import A100
from tests.simulated_mig_nodes import BackendRun, SimulatedMigNode

HALVES: Layout = (SlicePlacement(0, "3g.40gb"), SlicePlacement(4, "3g.40gb"))
SMALL: Layout = (SlicePlacement(0, "1g.10gb"), SlicePlacement(1, "1g.10gb"))


def a_node(*layouts: Layout, cuts: bool = True) -> SimulatedMigNode:
    made = [[(spot.profile, spot.start) for spot in layout] for layout in layouts]
    gpu_driver = GpuDriver(A100, len(layouts), layouts=made)
    return SimulatedMigNode(gpu_driver=gpu_driver, has_agent=True, agent_partitions=cuts)


def heard(ground: MigNode, minutes: int = 0) -> tuple[LayoutReady | None, str]:
    since = a_node(HALVES).at
    got = AgentBackend().status(ground, {0: SMALL}, 1, since, since + timedelta(minutes=minutes))
    return (got.problem.reason, got.problem.message) if got.problem else (None, "")


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
def test_a_fault_of_a_gpu_is_told_with_the_agents_words(
    fault: GpuFault, reason: LayoutReady
) -> None:
    ground = a_node(HALVES).observed()
    cards = tuple(replace(card, fault=fault, message="run this") for card in ground.gpus)
    assert heard(replace(ground, gpus=cards)) == (reason, "GPU 0 of Node/a100-0: run this")


def test_a_fault_of_another_gpu_keeps_nothing() -> None:
    ground = a_node(HALVES, HALVES).observed()
    first, second = ground.gpus
    assert heard(replace(ground, gpus=(first, replace(second, fault="InUse")))) == (None, "")


def test_a_node_without_an_agent_or_with_one_that_only_looks_says_which_value_is_to_be_set() -> (
    None
):
    far = a_node(HALVES, cuts=False)
    reason, message = heard(far.observed())
    assert (reason, "node.partition" in message) == (LayoutReady.BACKEND_UNAVAILABLE, True)
    far.has_agent = False
    reason, message = heard(far.observed())
    assert (reason, "node.enabled" in message) == (LayoutReady.BACKEND_UNAVAILABLE, True)
    assert AgentBackend().request(far.observed(), {0: SMALL}, 1).layout_spec is None


def test_an_agent_that_does_nothing_is_missed_after_ten_minutes() -> None:
    ground = a_node(HALVES).observed()
    assert heard(ground, minutes=9) == (None, "")
    reason, message = heard(ground, minutes=10)
    assert (reason, "kubectl get nodelayouts a100-0" in message) == (
        LayoutReady.BACKEND_TIMEOUT,
        True,
    )


def test_what_was_asked_of_other_gpus_stays_asked() -> None:
    far = a_node(HALVES, HALVES)
    assert BackendRun(backend=AgentBackend(), node=far, desired={1: SMALL}).run().done
    ask = AgentBackend().request(far.observed(), {0: SMALL}, 1)
    assert ask.layout_spec is not None
    assert [gpu.slices for gpu in ask.layout_spec.gpus] == [far.spec.gpus[0].slices] * 2


def test_the_device_plugin_goes_once_and_comes_back_once() -> None:
    far = a_node(HALVES)
    course = BackendRun(backend=AgentBackend(), node=far, desired={0: SMALL})
    states = []
    while not course.run(cycles=1).done:
        states.append(far.labels[DEVICE_PLUGIN_LABEL])
    changes = [one for one, before in zip(states, [None, *states], strict=False) if one != before]
    assert changes == ["true", PAUSED, "true"]
    assert far.labels[REFRESHED_LABEL] == "2-1"


def test_a_node_that_had_no_slices_offers_its_first_ones() -> None:
    far = a_node(())
    assert BackendRun(backend=AgentBackend(), node=far, desired={0: SMALL}).run().done


def test_devices_that_do_not_come_are_asked_for_again_and_then_told() -> None:
    far = a_node(HALVES)
    course = BackendRun(backend=AgentBackend(), node=far, desired={0: SMALL})
    course.run(cycles=3)
    far.allocatable = {"nvidia.com/mig-3g.40gb": 2}
    got = AgentBackend().status(
        far.observed(), {0: SMALL}, 1, far.at - timedelta(minutes=3), far.at
    )
    assert got.retry
    assert got.problem is not None
    assert got.problem.reason is LayoutReady.DEVICES_MISSING


@pytest.mark.parametrize(
    ("labels", "written"),
    [({MIG_MANAGER_LABEL: "true"}, True), ({MIG_MANAGER_LABEL: "false"}, False), ({}, False)],
)
def test_mig_manager_goes_where_the_agent_cuts(labels: Mapping[str, str], written: bool) -> None:
    far = a_node(HALVES)
    far.labels |= labels
    assert (
        MIG_MANAGER_LABEL in AgentBackend().request(far.observed(), {0: SMALL}, 1).labels
    ) is written
