"""Tolerations and affinity of pods on spot nodes."""

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

# Seconds before a pod leaves an unreachable node; the Kubernetes default is 300.
_UNREACHABLE_SECONDS = 5


def tolerations() -> list[V1Toleration]:
    """Return tolerations for spot nodes, and for unreachable ones for 5 s."""
    # Taints that announce a termination are not tolerated.
    spot_tolerations = [
        V1Toleration(key=key, operator="Equal", value=value, effect="NoSchedule")
        for key, value in SPOT_LABELS
    ]
    return [*spot_tolerations, *unreachable_tolerations(_UNREACHABLE_SECONDS)]


def affinity() -> V1Affinity:
    """Return the affinity to nodes with at least one spot label."""
    terms = [
        V1NodeSelectorTerm(
            match_expressions=[V1NodeSelectorRequirement(key=key, operator="In", values=[value])]
        )
        for key, value in SPOT_LABELS
    ]
    required = V1NodeSelector(node_selector_terms=terms)
    node_affinity = V1NodeAffinity(required_during_scheduling_ignored_during_execution=required)
    return V1Affinity(node_affinity=node_affinity)
