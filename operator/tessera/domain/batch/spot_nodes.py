"""How clouds mark spot nodes, and how they say that a node goes away."""

from collections.abc import Iterable, Mapping

from tessera.domain.observed.batches import BatchPod, NodeHealth

# Labels of spot nodes: AWS managed node groups, Karpenter, two of GKE, AKS.
#
# Taints that keep other pods away from spot nodes have the same keys and values: AKS sets its
# own, on the others the platform team may.
SPOT_LABELS: tuple[tuple[str, str], ...] = (
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("karpenter.sh/capacity-type", "spot"),
    ("cloud.google.com/gke-spot", "true"),
    ("cloud.google.com/gke-provisioning", "spot"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
)

# Taints of nodes that are about to go or are gone. Being cordoned alone is none of them.
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
    """Why a pod has to be given up, whichever way that is heard first; None while it is safe."""
    if pod.terminating:
        return f"pod {pod.ref.name} is being deleted"
    if pod.disrupted:
        return f"pod {pod.ref.name} is being evicted (DisruptionTarget)"
    return None if pod.node is None else _node_disruption(pod.node, nodes.get(pod.node))


def _node_disruption(name: str, node: NodeHealth | None) -> str | None:
    if node is None:
        return f"node {name} is gone"
    if taints := sorted(node.taints & DISRUPTION_TAINTS):
        return f"node {name} is going away ({taints[0]})"
    return None if node.ready else f"node {name} is not ready"


def has_spot_labels(nodes: Iterable[NodeHealth]) -> bool:
    """Does a cloud mark any of these nodes as spot?"""
    return any(node.labels.get(key) == value for node in nodes for key, value in SPOT_LABELS)
