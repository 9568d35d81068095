"""Taints that keep pods off nodes: which pods do not tolerate which, and where to tolerate them."""

import re
from collections.abc import Sequence
from dataclasses import replace

from tessera.api.text import first_names
from tessera.domain.observed.snapshot import Node, Pod, Pool

_TAINT = "untolerated taint"
# The scheduler's words; older ones name one taint as `{key: value}`.
_UNTOLERATED = re.compile(rf"{_TAINT}(?:\(s\)| \{{[^}}]*\}})")


def names_taints(text: str) -> bool:
    """Return whether a pod would be on a node if it tolerated taints that are named.

    The scheduler counts taints of nodes that a pod does not ask for as well.
    """
    return _TAINT in text and not _UNTOLERATED.search(text)


def with_taints_named(
    pods: tuple[Pod, ...], nodes: Sequence[Node], pools: Sequence[Pool]
) -> tuple[Pod, ...]:
    """Return the pods; those that no node takes for its taints say which, and who tolerates them.

    The scheduler counts such nodes without a name of a taint.
    """
    if not any(pod.unschedulable and _UNTOLERATED.search(pod.unschedulable) for pod in pods):
        return pods
    return tuple(_with_taints_named(pod, nodes, pools) for pod in pods)


def _with_taints_named(pod: Pod, nodes: Sequence[Node], pools: Sequence[Pool]) -> Pod:
    if not pod.unschedulable or not _UNTOLERATED.search(pod.unschedulable):
        return pod
    selector = dict(pod.node_selector)
    taints = {
        taint.text
        for node in nodes
        if selector.items() <= node.labels.items()
        for taint in node.barring_taints
        if not any(toleration.tolerates(taint) for toleration in pod.tolerations)
    }
    if not taints:
        return pod
    named = f"{_TAINT} {first_names(sorted(taints))}"
    advice = "it needs a node without such a taint"
    for pool in pools:
        if pool.spec is not None and selector and pool.spec.node_selector == selector:
            advice = f"add it to spec.tolerations of AcceleratorPool/{pool.name}, or remove it"
    text = _UNTOLERATED.sub(lambda _: named, pod.unschedulable)
    return replace(pod, unschedulable=f"{text}; {advice}")
