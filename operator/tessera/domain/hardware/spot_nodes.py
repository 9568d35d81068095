"""Labels of spot nodes, and signals of clouds that a node is about to terminate."""

from collections.abc import Iterable, Mapping

from tessera.domain.observed.batches import NodeHealth
from tessera.domain.observed.snapshot import BatchPod

# Labels of spot nodes: AWS managed node groups, Karpenter, GKE (two), AKS.
#
# The taints that keep other pods off spot nodes have the same keys and values: AKS sets its own,
# on the other clouds the platform team may.
SPOT_LABELS: tuple[tuple[str, str], ...] = (
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("karpenter.sh/capacity-type", "spot"),
    ("cloud.google.com/gke-spot", "true"),
    ("cloud.google.com/gke-provisioning", "spot"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
)

# Taints of nodes that terminate or are unreachable; a cordon alone is no disruption.
DISRUPTION_TAINTS = frozenset(
    {
        "ToBeDeletedByClusterAutoscaler",
        "aws-node-termination-handler/asg-lifecycle-termination",
        "aws-node-termination-handler/rebalance-recommendation",
        "aws-node-termination-handler/scheduled-maintenance",
        "aws-node-termination-handler/spot-itn",
        "cloud.google.com/impending-node-termination",
        "karpenter.sh/disrupted",
        "node.cloudprovider.kubernetes.io/shutdown",
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/out-of-service",
        "node.kubernetes.io/unreachable",
        "remediator.aks.microsoft.com/unschedulable",
    }
)


def disruption_message(pod: BatchPod, nodes: Mapping[str, NodeHealth]) -> str | None:
    """Return why a pod is lost, by the first signal that shows it; None while it is safe."""
    if pod.terminating and pod.ended is None:
        return f"pod {pod.ref.name} is being deleted"
    if pod.disrupted:
        return f"pod {pod.ref.name} is being evicted (DisruptionTarget)"
    return None if pod.node is None else _node_disruption(pod.node, nodes.get(pod.node))


def _node_disruption(name: str, node: NodeHealth | None) -> str | None:
    if node is None:
        return f"node {name} no longer exists"
    if taints := sorted(node.taints & DISRUPTION_TAINTS):
        return f"node {name} is terminating (taint {taints[0]})"
    return None if node.ready else f"node {name} is not ready"


def has_spot_labels(nodes: Iterable[NodeHealth]) -> bool:
    """Return whether any of these nodes has a spot label of its cloud."""
    return any(node.labels.get(key) == value for node in nodes for key, value in SPOT_LABELS)
