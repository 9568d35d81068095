from datetime import timedelta

import pytest

from fakegpu.gpu_driver import Code
from tessera.domain.hardware.gpu_layouts import SlicePlacement
from tests.builders import NOW
from tests.node_agent.nodes import GpuNode


async def test_the_status_has_the_slices_and_the_pods_on_them() -> None:
    node = GpuNode([("3g.40gb", 4), ("1g.10gb", 0)], [])
    uuid = node.assign_pod(4, "team-a/chat-0")
    node.gpu_driver.attach(uuid, 4711)
    await node.agent(can_partition=False).reconcile()
    first, second = node.status.gpus
    assert (first.index, first.product, first.mode) == (0, "NVIDIA-A100-SXM4-80GB", "Enabled")
    assert [
        (observed.profile, observed.start, observed.memory_mib, observed.pods, observed.processes)
        for observed in first.slices
    ] == [("1g.10gb", 0, 9728, (), 0), ("3g.40gb", 4, 40192, ("team-a/chat-0",), 1)]
    assert first.slices[1].uuid == uuid
    assert second.slices == ()
    assert (node.status.driver_version, node.status.partitioning_enabled, node.status.problem) == (
        "580.95.05",
        False,
        "",
    )


async def test_nothing_is_written_or_read_again_while_nothing_changes() -> None:
    node = GpuNode([("3g.40gb", 4)])
    agent = node.agent()
    for _ in range(3):
        await agent.reconcile()
    assert (node.own_layout.reads, node.own_layout.writes) == (1, 1)


async def test_the_heartbeat_is_renewed_every_minute() -> None:
    node = GpuNode([("3g.40gb", 4)])
    agent, heartbeats = node.agent(), []
    for _ in range(8):
        await agent.reconcile()
        heartbeats.append(node.own_layout.layout.heartbeat)
        node.at += timedelta(seconds=20)
    minute = timedelta(minutes=1)
    assert heartbeats == [NOW] * 3 + [NOW + minute] * 3 + [NOW + 2 * minute] * 2
    assert node.own_layout.writes == 3


async def test_a_read_only_agent_changes_nothing() -> None:
    node = GpuNode([("3g.40gb", 4)])
    node.set_spec([("7g.80gb", 0)])
    await node.agent(can_partition=False).reconcile()
    assert node.layout() == (SlicePlacement(4, "3g.40gb"),)
    assert node.status.observed_generation == 0


async def test_it_partitions_as_the_spec_says_and_keeps_matching_instances() -> None:
    node = GpuNode([("3g.40gb", 4), ("4g.40gb", 0)], [("7g.80gb", 0)])
    retained = node.assign_pod(4, "team-a/chat-0")
    node.set_spec([("3g.40gb", 4), ("2g.20gb", 0), ("1g.10gb", 3)], None)
    await node.agent().reconcile()
    assert node.layout() == (
        SlicePlacement(0, "2g.20gb"),
        SlicePlacement(3, "1g.10gb"),
        SlicePlacement(4, "3g.40gb"),
    )
    assert node.layout(1) == (SlicePlacement(0, "7g.80gb"),)
    assert node.gpu_driver.gpus[0].instances[2].uuid == retained
    assert node.status.observed_generation == 2
    assert [gpu.fault for gpu in node.status.gpus] == [None, None]


async def test_an_instance_in_use_stays_and_the_others_are_repartitioned() -> None:
    node = GpuNode([("3g.40gb", 4), ("3g.40gb", 0)])
    node.assign_pod(4, "team-a/chat-0")
    node.set_spec([("2g.20gb", 0), ("2g.20gb", 4)])
    agent = node.agent()
    await agent.reconcile()
    assert node.layout() == (SlicePlacement(0, "2g.20gb"), SlicePlacement(4, "3g.40gb"))
    gpu = node.status.gpus[0]
    assert gpu.fault == "InUse"
    assert "3g.40gb@4 is in use by team-a/chat-0" in gpu.message
    node.pods.holders_by_uuid.clear()
    await agent.reconcile()
    assert node.layout() == (SlicePlacement(0, "2g.20gb"), SlicePlacement(4, "2g.20gb"))
    assert node.status.gpus[0].fault is None


async def test_a_process_outside_of_pods_blocks_destruction_too() -> None:
    node = GpuNode([("3g.40gb", 4)])
    node.gpu_driver.attach(node.gpu_driver.gpus[0].instances[0].uuid, 4711)
    node.set_spec([])
    await node.agent().reconcile()
    assert node.layout() == (SlicePlacement(4, "3g.40gb"),)
    assert "1 process outside of pods" in node.status.gpus[0].message


async def test_an_instance_without_a_mig_device_is_completed_or_destroyed() -> None:
    for wanted, expected in (([("3g.40gb", 4)], (SlicePlacement(4, "3g.40gb"),)), ([], ())):
        node = GpuNode([("3g.40gb", 4)])
        instance = node.gpu_driver.gpus[0].instances[0]
        node.gpu_driver.destroy_compute_instance(0, instance.id, 0)
        node.set_spec(wanted)
        await node.agent().reconcile()
        assert node.layout() == expected


async def test_an_instance_with_partial_devices_is_created_again() -> None:
    node = GpuNode([("3g.40gb", 4)])
    instance = node.gpu_driver.gpus[0].instances[0]
    node.gpu_driver.destroy_compute_instance(0, instance.id, 0)
    part = node.gpu_driver.create_compute_instance(0, instance.id, 1)
    node.pods.holders_by_uuid[part.uuid] = ("team-a/chat-0",)
    node.set_spec([("3g.40gb", 4)])
    agent = node.agent()
    await agent.reconcile()
    assert node.gpu_driver.gpus[0].instances[0].computes == [part]
    assert node.status.gpus[0].fault == "InUse"
    node.pods.holders_by_uuid.clear()
    await agent.reconcile()
    assert [observed.slices for observed in node.gpu_driver.gpus[0].instances[0].computes] == [3]


async def test_nothing_is_partitioned_while_the_kubelet_does_not_answer() -> None:
    node = GpuNode([("3g.40gb", 4)])
    node.pods.silent = True
    node.set_spec([])
    agent = node.agent()
    await agent.reconcile()
    assert node.layout() == (SlicePlacement(4, "3g.40gb"),)
    assert node.status.problem == "the kubelet does not answer"
    node.pods.silent = False
    await agent.reconcile()
    assert (node.layout(), node.status.problem) == ((), "")


@pytest.mark.parametrize(
    ("slices", "fault", "words"),
    [
        ([("3g.50gb", 0)], "UnknownProfile", "has no profile 3g.50gb; supported: 1g.10gb"),
        ([("3g.40gb", 2)], "PartitionFailed", "cannot start at 2"),
        ([("7g.80gb", 0), ("1g.10gb", 0)], "PartitionFailed", "overlaps"),
    ],
)
async def test_a_layout_that_no_gpu_can_have_changes_nothing(
    slices: list[tuple[str, int]], fault: str, words: str
) -> None:
    node = GpuNode([("1g.10gb", 6)])
    node.set_spec(slices)
    await node.agent().reconcile()
    assert node.layout() == (SlicePlacement(6, "1g.10gb"),)
    assert node.status.gpus[0].fault == fault
    assert words in node.status.gpus[0].message


async def test_a_pending_mig_mode_is_reported_and_nothing_is_partitioned() -> None:
    node = GpuNode([("1g.10gb", 6)])
    node.gpu_driver.set_mode(0, enabled=False)
    node.set_spec([])
    await node.agent().reconcile()
    gpu = node.status.gpus[0]
    assert (gpu.mode, gpu.fault) == ("Disabling", "ResetRequired")
    assert "nvidia-smi --gpu-reset -i 0" in gpu.message
    assert node.layout() == (SlicePlacement(6, "1g.10gb"),)


async def test_mig_mode_is_never_changed() -> None:
    node = GpuNode([], mig=False)
    agent = node.agent()
    await agent.reconcile()
    assert (node.status.gpus[0].mode, node.status.gpus[0].fault) == ("Disabled", None)
    node.set_spec([("7g.80gb", 0)])
    agent.invalidate_layout()
    await agent.reconcile()
    assert node.status.gpus[0].fault == "PartitionFailed"
    assert "nvidia-smi -i 0 -mig 1" in node.status.gpus[0].message


async def test_a_refusal_is_reported_and_retried_with_backoff() -> None:
    node = GpuNode([("3g.40gb", 4)])
    node.gpu_driver.fail("nvmlComputeInstanceDestroy", Code.IN_USE, times=3)
    node.set_spec([])
    agent = node.agent()
    seen: list[int] = []
    while node.gpu_driver.gpus[0].instances:
        await agent.reconcile()
        seen.append(len(node.gpu_driver.gpus[0].instances))
        assert len(seen) < 30
        if node.gpu_driver.gpus[0].instances:
            assert node.status.gpus[0].fault == "InUse"
            assert "restart DCGM" in node.status.gpus[0].message
    assert len(seen) == 1 + (1 + 1) + (2 + 1) + (4 + 1)
    assert node.status.gpus[0].fault is None


async def test_another_spec_is_tried_at_once_after_a_refusal() -> None:
    node = GpuNode([("3g.40gb", 4), ("1g.10gb", 0)])
    node.gpu_driver.fail("nvmlComputeInstanceDestroy", Code.IN_USE, times=3)
    node.set_spec([])
    agent = node.agent()
    for _ in range(1 + (1 + 1) + (2 + 1)):
        await agent.reconcile()
    node.set_spec([("3g.40gb", 4)])
    agent.invalidate_layout()
    await agent.reconcile()
    assert node.layout() == (SlicePlacement(4, "3g.40gb"),)


async def test_a_failed_compute_instance_leaves_no_gpu_instance() -> None:
    node = GpuNode([])
    node.gpu_driver.fail("nvmlGpuInstanceCreateComputeInstance", Code.UNKNOWN)
    node.set_spec([("3g.40gb", 4)])
    agent = node.agent()
    await agent.reconcile()
    assert node.gpu_driver.gpus[0].instances == []
    assert node.status.gpus[0].fault == "QueryFailed"
    await agent.reconcile()
    await agent.reconcile()
    assert node.layout() == (SlicePlacement(4, "3g.40gb"),)


async def test_a_success_without_an_effect_is_a_fault() -> None:
    node = GpuNode([("3g.40gb", 4)])
    node.gpu_driver.ignore_destroy(0, 4)
    node.set_spec([])
    agent = node.agent()
    await agent.reconcile()
    assert node.status.gpus[0].fault == "PartitionFailed"
    assert "nothing changed" in node.status.gpus[0].message
    await agent.reconcile()
    await agent.reconcile()
    assert node.layout() == ()


async def test_stale_handles_are_looked_up_again() -> None:
    node = GpuNode([("3g.40gb", 4)])
    agent = node.agent()
    await agent.reconcile()
    node.gpu_driver.invalidate_handles()
    await agent.reconcile()
    assert node.status.problem == ""
    assert node.status.gpus[0].slices[0].start == 4


async def test_an_unreadable_driver_is_a_problem_in_the_status() -> None:
    node = GpuNode([("3g.40gb", 4)])
    await node.agent().reconcile()
    before = node.status
    node.gpu_driver.fail("nvmlInitWithFlags", Code.UNKNOWN, times=2)
    agent = node.agent()
    await agent.reconcile()
    problem = "read the GPUs: NVML error UNKNOWN"
    assert node.status == before.model_copy(update={"problem": problem})
    await agent.reconcile()
    assert node.status.problem == ""


async def test_an_unreadable_gpu_does_not_hide_the_others() -> None:
    node = GpuNode([("3g.40gb", 4)], [("7g.80gb", 0)])
    node.gpu_driver.fail("nvmlDeviceGetGpuInstances", Code.NO_PERMISSION)
    node.set_spec([], [])
    await node.agent(can_partition=False).reconcile()
    first, second = node.status.gpus
    assert (first.fault, first.slices) == ("QueryFailed", ())
    assert "run as root" in first.message
    assert second.slices[0].profile == "7g.80gb"


async def test_two_agents_never_partition_the_same_gpu() -> None:
    node = GpuNode([("3g.40gb", 4)])
    node.set_spec([])
    node.locks.locked.add(node.gpu_driver.gpus[0].uuid)
    agent = node.agent()
    await agent.reconcile()
    assert node.layout() == (SlicePlacement(4, "3g.40gb"),)
    assert node.status.observed_generation == 0
    node.locks.locked.clear()
    await agent.reconcile()
    assert (node.layout(), node.status.observed_generation) == ((), 2)


async def test_a_spec_that_changed_meanwhile_is_not_carried_out_any_more() -> None:
    node = GpuNode([("3g.40gb", 4)])
    agent = node.agent()
    node.set_spec([])
    node.gpu_driver.attach(node.gpu_driver.gpus[0].instances[0].uuid, 4711)
    await agent.reconcile()
    node.set_spec([("3g.40gb", 4)])
    node.gpu_driver.detach(node.gpu_driver.gpus[0].instances[0].uuid)
    await agent.reconcile()
    assert node.layout() == (SlicePlacement(4, "3g.40gb"),)
    assert node.status.observed_generation == 2
    await agent.reconcile()
    assert node.status.observed_generation == 3


async def test_after_a_stop_no_operation_is_started() -> None:
    node = GpuNode([("3g.40gb", 4)])
    node.set_spec([])
    agent = node.agent()
    agent.stop.set()
    await agent.reconcile()
    assert node.layout() == (SlicePlacement(4, "3g.40gb"),)


async def test_a_gpu_that_the_node_does_not_have_is_reported() -> None:
    other, node = GpuNode([], []), GpuNode([])
    other.gpu_driver.gpus[0].uuid = "GPU-elsewhere"
    other.set_spec([], None)
    node.own_layout.layout = other.own_layout.layout
    await node.agent().reconcile()
    assert node.status.problem == (
        "spec.gpus names 1 GPU that the node does not have: GPU-elsewhere; repair the node, or "
        "delete NodeLayout/gpu-1 once GPUs were replaced"
    )


async def test_instances_that_a_reset_destroyed_are_created_again() -> None:
    node = GpuNode([])
    node.set_spec([("3g.40gb", 4)])
    agent = node.agent()
    await agent.reconcile()
    node.gpu_driver.reset(0)
    await agent.reconcile()
    assert node.layout() == (SlicePlacement(4, "3g.40gb"),)
