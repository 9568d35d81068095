"""What is cut anew at once: some GPUs of a node, who has to leave for that, what forbids it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from tessera.api.reasons import LayoutReady, StatusVerdict
from tessera.api.ref import Ref
from tessera.domain.mig.layouts import SlicePlacement
from tessera.domain.mig_backends.backend import Capabilities, LayoutsByGpu
from tessera.domain.mig_backends.nodes import GpuInstance, MigGpu, MigNode
from tessera.domain.repartition.capacity import PoolCapacity
from tessera.domain.repartition.goals import NodeGoal, canonical_layout

# Those of which cutting again does not help.
_FAULT_REASONS = {
    "NeedsReset": LayoutReady.GPU_RESET_REQUIRED,
    "Unreadable": LayoutReady.NODE_NOT_READY,
    "ProfileUnknown": LayoutReady.UNKNOWN_PROFILE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRepartition:
    """Some GPUs of a node, with what holds their slices that go."""

    node: MigNode
    gpus: tuple[int, ...]
    desired: LayoutsByGpu
    """Of these GPUs."""
    pods: frozenset[Ref]
    """Replicas that have to leave."""
    unlocated: tuple[Ref, ...] = ()
    """Replicas on the node that may sit on a slice that goes: no agent has told yet."""
    other_users: tuple[str, ...] = ()
    """What else is on slices that go, in words."""
    unused_profiles: frozenset[str] = frozenset()
    """Profiles of slices that go and that nobody holds."""

    @property
    def free(self) -> bool:
        """Nobody is on the slices that go, by all that is known."""
        return not (self.pods or self.unlocated or self.other_users)


def node_repartition(
    node: MigNode,
    desired: LayoutsByGpu,
    gpus: Collection[int],
    capacity: PoolCapacity,
    capabilities: Capabilities,
) -> NodeRepartition:
    """Who has to leave when these GPUs are cut as wanted."""
    replicas = capacity.replicas_by_node.get(node.name, ())
    chosen = {gpu: desired[gpu] for gpu in sorted(gpus)}
    if not (capabilities.knows_pods and node.reports_pods):
        pods = frozenset(replica.pod for replica in replicas if chosen)
        return NodeRepartition(node=node, gpus=tuple(chosen), desired=chosen, pods=pods)
    removed = [
        (mig_gpu, instance)
        for mig_gpu in node.gpus
        if mig_gpu.index in chosen
        for instance in removed_instances(node, mig_gpu, chosen, capabilities)
    ]
    holders = {pod for _, instance in removed for pod in instance.holders}
    known_pods = {
        pod for mig_gpu in node.gpus for instance in mig_gpu.instances for pod in instance.holders
    }
    unused = {instance.placement.profile for _, instance in removed if not instance.holders}
    return NodeRepartition(
        node=node,
        gpus=tuple(chosen),
        desired=chosen,
        pods=frozenset(pod for pod in holders if pod in capacity.owner),
        unlocated=tuple(
            sorted(
                replica.pod
                for replica in replicas
                if replica.pod not in known_pods and replica.profile in unused
            )
        ),
        unused_profiles=frozenset(unused),
        other_users=tuple(
            _describe_users(node, mig_gpu, instance, capacity)
            for mig_gpu, instance in removed
            if (not instance.holders and instance.processes)
            or any(pod not in capacity.owner for pod in instance.holders)
        ),
    )


def removed_instances(
    node: MigNode, gpu: MigGpu, desired: LayoutsByGpu, capabilities: Capabilities
) -> Iterator[GpuInstance]:
    """Slices that go: all of the GPU, unless its neighbours may stay."""
    retained = set(desired[gpu.index]) if capabilities.sibling_safe else set[SlicePlacement]()
    for instance in gpu.instances:
        if canonical_layout(node.gpu_model, (instance.placement,))[0] not in retained:
            yield instance


def _describe_users(
    node: MigNode, gpu: MigGpu, instance: GpuInstance, capacity: PoolCapacity
) -> str:
    place = (
        f"{instance.placement.profile}@{instance.placement.start} of GPU {gpu.index} of {node.name}"
    )
    foreign_pods = [str(pod) for pod in instance.holders if pod not in capacity.owner]
    if foreign_pods:
        return f"{', '.join(foreign_pods)} on {place}"
    return f"{instance.processes} processes on {place}"


def blocker(
    goal: NodeGoal,
    gpu: int,
    capacity: PoolCapacity,
    capabilities: Capabilities,
    own_pods: Collection[Ref],
) -> StatusVerdict[LayoutReady] | None:
    """Why this GPU cannot be cut as wanted, however long it is waited for room."""
    node = goal.node
    mig_gpu = next(candidate for candidate in node.gpus if candidate.index == gpu)
    place = f"GPU {gpu} of {node.name}"
    if mig_gpu.fault in _FAULT_REASONS:
        message = mig_gpu.message or f"the agent says {mig_gpu.fault}"
        return StatusVerdict(
            _FAULT_REASONS[mig_gpu.fault], f"{place}: {message}{_FIXES.get(mig_gpu.fault, '')}"
        )
    if not (capabilities.knows_pods and node.reports_pods):
        return None
    for instance in removed_instances(node, mig_gpu, goal.desired, capabilities):
        slice_ = f"{instance.placement.profile}@{instance.placement.start} of {place}"
        for pod in instance.holders:
            if pod not in own_pods:
                return StatusVerdict(
                    LayoutReady.UNMANAGED_POD,
                    f"the pod {pod} is not Tessera's and holds {slice_}, which has to go; delete "
                    "it or move it to another node",
                )
            if pod not in capacity.owner:
                return StatusVerdict(
                    LayoutReady.REPARTITIONING,
                    f"waits for the pod {pod} on {slice_} to end by itself",
                )
        if instance.processes and not instance.holders:
            return StatusVerdict(
                LayoutReady.GPU_IN_USE,
                f"{instance.processes} processes of no pod compute on {slice_}, which has to go; "
                "end "
                "them on the node",
            )
    return None


_FIXES = {"NeedsReset": "; drain the node and reset the GPU or restart the node"}


def node_blocker(goal: NodeGoal) -> StatusVerdict[LayoutReady] | None:
    """Why nothing of this node can be cut now."""
    node = goal.node
    if node.inconsistency:
        return StatusVerdict(
            LayoutReady.INCONSISTENT_LABELS,
            f"{node.name} is left alone: {node.inconsistency}; correct its labels, or restart its "
            "device plugin and GPU feature discovery",
        )
    if not node.ready:
        return StatusVerdict(
            LayoutReady.NODE_NOT_READY,
            f"the node {node.name} is not ready or takes no pods, and {len(goal.mismatched)} of "
            "its GPUs have to be cut anew; repair or uncordon it",
        )
    return None


def plan_blocker(goal: NodeGoal) -> StatusVerdict[LayoutReady] | None:
    """What of the plan no GPU of the node can become."""
    if goal.infeasible:
        return StatusVerdict(LayoutReady.UNKNOWN_PROFILE, goal.infeasible[0])
    if goal.missing and not goal.node.inconsistency:
        missing = ", ".join(map(str, goal.missing))
        return StatusVerdict(
            LayoutReady.NODE_NOT_READY,
            f"GPU {missing} of {goal.node.name} is not there in MIG mode, but the plan cuts it; "
            "turn MIG mode on, which Tessera never does, or repair the GPU",
        )
    return None
