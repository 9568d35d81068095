"""What lets a pod onto spot nodes, and off them in time."""

from kubernetes.client import (
    V1Affinity,
    V1NodeAffinity,
    V1NodeSelector,
    V1NodeSelectorRequirement,
    V1NodeSelectorTerm,
    V1Toleration,
)

from tessera.domain.batch.spot_nodes import SPOT_LABELS
from tessera.resources.engine import unreachable_tolerations

# A node that does not answer is given up so soon; by default it would be five minutes.
_UNREACHABLE_SECONDS = 5


def tolerations() -> list[V1Toleration]:
    """The taints of spot nodes are endured; those that announce an end are not, save for 5 s."""
    spot_tolerations = [
        V1Toleration(key=key, operator="Equal", value=value, effect="NoSchedule")
        for key, value in SPOT_LABELS
    ]
    return [*spot_tolerations, *unreachable_tolerations(_UNREACHABLE_SECONDS)]


def affinity() -> V1Affinity:
    """Only nodes that their cloud marks as spot; one of its marks is enough."""
    terms = [
        V1NodeSelectorTerm(
            match_expressions=[V1NodeSelectorRequirement(key=key, operator="In", values=[value])]
        )
        for key, value in SPOT_LABELS
    ]
    required = V1NodeSelector(node_selector_terms=terms)
    return V1Affinity(
        node_affinity=V1NodeAffinity(required_during_scheduling_ignored_during_execution=required)
    )
