"""Whose devices a successor can take: those on schedulable nodes that its pod selects."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from tessera.domain.hardware.pools import HardwareOffer
from tessera.domain.incremental import reused_by_all
from tessera.domain.observed.snapshot import Node, Pod

Selector: TypeAlias = tuple[tuple[str, str], ...]


def usable_nodes(nodes: Sequence[Node], offer: HardwareOffer) -> frozenset[str]:
    """Return the nodes where a new replica may be bound, with or without a free device.

    A cordoned node has none for it, and neither has one that left the selector of the pool.
    """
    return _usable_nodes(tuple(sorted(offer.node_selector.items())), nodes)


@reused_by_all
def _usable_nodes(selector: Selector, nodes: Sequence[Node]) -> frozenset[str]:
    labels = dict(selector).items()
    return frozenset(
        node.name for node in nodes if node.schedulable and labels <= node.labels.items()
    )


@reused_by_all
def ready_nodes(_all: str, nodes: Sequence[Node]) -> frozenset[str]:
    """Return the nodes whose kubelet answers."""
    return frozenset(node.name for node in nodes if node.kubelet_ready)


def free_devices(
    nodes: Sequence[Node], pods: Sequence[Pod], offer: HardwareOffer
) -> Mapping[str, int]:
    """Return the devices of an offer's kind that no pod holds, of each node that is usable."""
    return _free_devices(_kind(offer), nodes, pods)


def _kind(offer: HardwareOffer) -> tuple[Selector, str]:
    return tuple(sorted(offer.node_selector.items())), offer.hardware.resource


@reused_by_all
def _free_devices(
    kind: tuple[Selector, str], nodes: Sequence[Node], pods: Sequence[Pod]
) -> Mapping[str, int]:
    selector, resource = kind
    usable = _usable_nodes(selector, nodes)
    free = {node.name: node.allocatable.get(resource, 0) for node in nodes if node.name in usable}
    for pod in pods:
        if pod.node in free and pod.ended is None:
            free[pod.node] -= pod.devices.get(resource, 0)
    return free


def free_replicas(
    nodes: Sequence[Node], pods: Sequence[Pod], offer: HardwareOffer
) -> Mapping[str, int]:
    """Return how many more replicas of an offer can be bound, of each node where one can."""
    return _free_replicas((*_kind(offer), offer.hardware.devices), nodes, pods)


@reused_by_all
def _free_replicas(
    kind: tuple[Selector, str, int], nodes: Sequence[Node], pods: Sequence[Pod]
) -> Mapping[str, int]:
    selector, resource, devices = kind
    free = _free_devices((selector, resource), nodes, pods)
    return {node: count // devices for node, count in free.items() if count >= devices}


def holders_by_node(pods: Sequence[Pod]) -> Mapping[str, Sequence[Pod]]:
    """Return the pods that hold devices, by their nodes."""
    return _holders_by_node("", pods)


@reused_by_all
def _holders_by_node(_all: str, pods: Sequence[Pod]) -> Mapping[str, Sequence[Pod]]:
    holders = defaultdict[str, list[Pod]](list)
    for pod in pods:
        if pod.node is not None and pod.holds_devices:
            holders[pod.node].append(pod)
    return dict(holders)


def first_waiting(nodes: Sequence[Node], pods: Sequence[Pod], offer: HardwareOffer) -> Pod | None:
    """Return the pod that waits first for a device of an offer, on a node that is usable.

    Those of others come first, and then those of services by name.
    """
    return _first_waiting(_kind(offer), nodes, pods)


@reused_by_all
def _first_waiting(
    kind: tuple[Selector, str], nodes: Sequence[Node], pods: Sequence[Pod]
) -> Pod | None:
    selector, resource = kind
    waiting = [pod for pod in _unschedulable("", pods) if pod.devices.get(resource, 0) > 0]
    if not waiting:
        return None
    usable = _usable_nodes(selector, nodes)
    labels = [node.labels.items() for node in nodes if node.name in usable]
    selectors = {
        wanted
        for wanted in {pod.node_selector for pod in waiting}
        if any(set(wanted) <= each for each in labels)
    }
    return min(
        (pod for pod in waiting if pod.node_selector in selectors),
        key=lambda pod: (not pod.unmanaged, pod.service, pod.ref),
        default=None,
    )


@reused_by_all
def _unschedulable(_all: str, pods: Sequence[Pod]) -> Sequence[Pod]:
    return tuple(pod for pod in pods if pod.unschedulable is not None and not pod.terminating)
