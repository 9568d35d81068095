"""Tolerations and affinity of pods on spot nodes, and of attempts to other nodes."""

from kubernetes.client import (
    V1Affinity,
    V1NodeAffinity,
    V1NodeSelector,
    V1NodeSelectorRequirement,
    V1NodeSelectorTerm,
    V1PreferredSchedulingTerm,
    V1Toleration,
)

from tessera.domain.hardware.spot_nodes import SPOT_LABELS
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


def affinity(*, spot: bool, avoided_node: str = "") -> V1Affinity | None:
    """Return the affinity to nodes with a spot label, if at all possible to another node."""
    if not spot and not avoided_node:
        return None
    node_affinity = V1NodeAffinity()
    if spot:
        node_affinity.required_during_scheduling_ignored_during_execution = _spot_nodes()
    if avoided_node:
        other = V1NodeSelectorRequirement(
            key="metadata.name", operator="NotIn", values=[avoided_node]
        )
        term = V1PreferredSchedulingTerm(
            weight=100, preference=V1NodeSelectorTerm(match_fields=[other])
        )
        node_affinity.preferred_during_scheduling_ignored_during_execution = [term]
    return V1Affinity(node_affinity=node_affinity)


def _spot_nodes() -> V1NodeSelector:
    terms = [
        V1NodeSelectorTerm(
            match_expressions=[V1NodeSelectorRequirement(key=key, operator="In", values=[value])]
        )
        for key, value in SPOT_LABELS
    ]
    return V1NodeSelector(node_selector_terms=terms)
