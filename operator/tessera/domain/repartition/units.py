"""GPUs of a node that are repartitioned at once: which pods they displace, and what blocks them."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from tessera.api.pool_reasons import LayoutReady
from tessera.api.reasons import StatusVerdict
from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.domain.hardware.gpu_layouts import format_placement
from tessera.domain.mig_backends.backend import Capabilities, LayoutsByGpu
from tessera.domain.mig_backends.nodes import GpuInstance, MigGpu, MigNode
from tessera.domain.repartition.capacity import PoolCapacity
from tessera.domain.repartition.goals import NodeGoal

# Faults that another attempt to partition does not repair.
_FAULT_REASONS = {
    "ResetRequired": LayoutReady.GPU_RESET_REQUIRED,
    "QueryFailed": LayoutReady.NODE_NOT_READY,
    "UnknownProfile": LayoutReady.UNKNOWN_PROFILE,
}
_FIXES = {"ResetRequired": "; drain the node and reset the GPU or restart the node"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRepartition:
    """New layouts for some GPUs of a node, with everything that uses the slices to remove."""

    node: MigNode
    gpus: tuple[int, ...]
    desired: LayoutsByGpu
    """The new layouts of these GPUs."""
    pods: frozenset[Ref]
    """Replicas that have to leave."""
    unlocated: tuple[Ref, ...] = ()
    """Replicas on the node that may hold a slice to remove: the agent has not reported them yet."""
    other_users: tuple[str, ...] = ()
    """Descriptions of other pods and processes on slices to remove."""
    unused_profiles: frozenset[str] = frozenset()
    """Profiles of slices to remove that no pod holds."""
    slices: int = 0
    """Number of slices to remove."""

    @property
    def free(self) -> bool:
        """Whether nothing is known to use the slices to remove."""
        return not (self.pods or self.unlocated or self.other_users)


def node_repartition(
    node: MigNode,
    desired: LayoutsByGpu,
    gpus: Collection[int],
    capacity: PoolCapacity,
    capabilities: Capabilities,
) -> NodeRepartition:
    """Return what it takes to give these GPUs of the node their desired layouts."""
    replicas = capacity.replicas_by_node.get(node.name, ())
    chosen = {gpu: desired[gpu] for gpu in sorted(gpus)}
    removed = [
        (mig_gpu, instance)
        for mig_gpu in node.gpus
        if mig_gpu.index in chosen
        for instance in removed_instances(mig_gpu, chosen, capabilities)
    ]
    unused = {instance.placement.profile for _, instance in removed if not instance.holders}
    others = tuple(f"Pod/{pod}" for pod in _unlocated_others(node, unused, capacity))
    repartition = NodeRepartition(
        node=node,
        gpus=tuple(chosen),
        desired=chosen,
        # Any pod of the node may hold one of the slices, so all of them have to leave.
        pods=frozenset(replica.pod for replica in replicas if chosen),
        other_users=others,
        slices=len(removed),
    )
    if not (capabilities.knows_pods and node.reports_pods):
        return repartition
    located = node.located_pods
    return replace(
        repartition,
        pods=frozenset(
            pod
            for _, instance in removed
            for pod in instance.holders
            if capacity.has_replica(pod, node.name)
        ),
        # A pod can only hold a slice of its own profile that is not reported as held.
        unlocated=tuple(
            sorted(
                replica.pod
                for replica in replicas
                if replica.pod not in located and replica.profile in unused
            )
        ),
        unused_profiles=frozenset(unused),
        other_users=others
        + tuple(
            _describe_users(node, mig_gpu, instance, capacity)
            for mig_gpu, instance in removed
            if (not instance.holders and instance.processes)
            or any(not capacity.has_replica(pod, node.name) for pod in instance.holders)
        ),
    )


def _unlocated_others(
    node: MigNode, unused: Collection[str], capacity: PoolCapacity
) -> Sequence[Ref]:
    """Return pods that are no replica and may hold a slice of these profiles, by name.

    That is every pod with such a slice that no agent reports on another one.
    """
    located = node.located_pods
    return sorted(
        {
            pod
            for pod, profile in capacity.other_pods.get(node.name, ())
            if profile in unused and pod not in located
        }
    )


def removed_instances(
    gpu: MigGpu, desired: LayoutsByGpu, capabilities: Capabilities
) -> Iterator[GpuInstance]:
    """Return the instances of the GPU that have to be removed for its desired layout.

    A backend that is not sibling-safe removes all of them, even those that come back.
    """
    retained = desired[gpu.index] if capabilities.sibling_safe else ()
    return (instance for instance in gpu.instances if instance.placement not in retained)


def _describe_users(
    node: MigNode, gpu: MigGpu, instance: GpuInstance, capacity: PoolCapacity
) -> str:
    place = f"{format_placement(instance.placement)} of GPU {gpu.index} of Node/{node.name}"
    foreign_pods = [
        f"Pod/{pod}" for pod in instance.holders if not capacity.has_replica(pod, node.name)
    ]
    if foreign_pods:
        return f"{', '.join(foreign_pods)} on {place}"
    return f"{counted(instance.processes, 'process', 'processes')} on {place}"


def blocker(
    goal: NodeGoal,
    gpu: int,
    capacity: PoolCapacity,
    capabilities: Capabilities,
    own_pods: Collection[Ref],
) -> StatusVerdict[LayoutReady] | None:
    """Return why this GPU cannot get its desired layout, however many slices are free elsewhere."""
    node = goal.node
    mig_gpu = next(candidate for candidate in node.gpus if candidate.index == gpu)
    place = f"GPU {gpu} of Node/{node.name}"
    if mig_gpu.fault in _FAULT_REASONS:
        message = mig_gpu.message or f"the agent reports {mig_gpu.fault}"
        reason = _FAULT_REASONS[mig_gpu.fault]
        return StatusVerdict(reason, f"{place}: {message}{_FIXES.get(mig_gpu.fault, '')}")
    removed = tuple(removed_instances(mig_gpu, goal.desired, capabilities))
    unused = {instance.placement.profile for instance in removed if not instance.holders}
    for pod in _unlocated_others(node, unused, capacity):
        slice_ = f"a slice of Node/{node.name}, perhaps of GPU {gpu}"
        if verdict := _holder_blocker(pod, slice_, node.name, capacity, own_pods):
            return verdict
    if not (capabilities.knows_pods and node.reports_pods):
        return None
    for instance in removed:
        slice_ = f"{format_placement(instance.placement)} of {place}"
        for pod in instance.holders:
            if verdict := _holder_blocker(pod, slice_, node.name, capacity, own_pods):
                return verdict
        if instance.processes and not instance.holders:
            processes = counted(instance.processes, "process", "processes")
            return StatusVerdict(
                LayoutReady.GPU_IN_USE,
                f"{slice_} has to be removed and is used by {processes} outside any pod; end all "
                "such processes on the node",
            )
    return None


def _holder_blocker(
    pod: Ref, slice_: str, node: str, capacity: PoolCapacity, own_pods: Collection[Ref]
) -> StatusVerdict[LayoutReady] | None:
    """Return why the slice cannot be taken from the pod that an agent says holds it."""
    if pod not in own_pods:
        return StatusVerdict(
            LayoutReady.UNMANAGED_POD,
            f"Pod/{pod} was not created by Tessera and holds {slice_}, which has to be "
            "removed; delete the pod or move it to another node",
        )
    # A pod of a batch or a model job: it is never evicted, since it ends by itself.
    if pod not in capacity.owner:
        return StatusVerdict(
            LayoutReady.REPARTITIONING, f"waiting for Pod/{pod} on {slice_} to end by itself"
        )
    if not capacity.has_replica(pod, node):
        return StatusVerdict(
            LayoutReady.UNMANAGED_POD,
            f"NodeLayout/{node} says that Pod/{pod} holds {slice_}, but the pod runs on another "
            "node; check the agent of this node",
        )
    return None


def node_blocker(goal: NodeGoal) -> StatusVerdict[LayoutReady] | None:
    """Return why no GPU of this node can be partitioned now."""
    node = goal.node
    if node.unavailable:
        return StatusVerdict(LayoutReady.NODE_NOT_READY, f"Node/{node.name}: {node.unavailable}")
    if node.inconsistency:
        return StatusVerdict(
            LayoutReady.INCONSISTENT_LABELS,
            f"Node/{node.name} is skipped: {node.inconsistency}; correct its labels, or restart "
            "its device plugin and GPU feature discovery",
        )
    if not node.ready:
        return StatusVerdict(
            LayoutReady.NODE_NOT_READY,
            f"Node/{node.name} is not ready or unschedulable, so "
            f"{counted(len(goal.mismatched), 'GPU')} cannot be repartitioned; repair or uncordon "
            "the node",
        )
    return None


def plan_blocker(goal: NodeGoal) -> StatusVerdict[LayoutReady] | None:
    """Return why part of the plan can never be carried out on this node."""
    if goal.infeasible:
        return StatusVerdict(LayoutReady.UNKNOWN_PROFILE, goal.infeasible[0])
    if goal.missing and not goal.node.inconsistency:
        missing = ", ".join(map(str, goal.missing))
        return StatusVerdict(
            LayoutReady.NODE_NOT_READY,
            f"GPU {missing} of Node/{goal.node.name} is missing or not in MIG mode, but in the "
            "plan; enable MIG mode, which Tessera never does, or repair the GPU",
        )
    return None
