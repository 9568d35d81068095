"""Whose devices a successor can take: those on schedulable nodes that its pod selects."""

from collections.abc import Iterable, Mapping, Sequence

from tessera.domain.hardware.pools import HardwareOffer
from tessera.domain.observed.snapshot import Node, Pod


def usable_nodes(nodes: Sequence[Node], offer: HardwareOffer) -> frozenset[str]:
    """Return the nodes where a new replica may be bound, with or without a free device.

    A cordoned node has none for it, and neither has one that left the selector of the pool.
    """
    selector = offer.node_selector.items()
    return frozenset(
        node.name for node in nodes if node.schedulable and selector <= node.labels.items()
    )


def free_devices(
    nodes: Sequence[Node], pods: Iterable[Pod], offer: HardwareOffer
) -> Mapping[str, int]:
    """Return the devices of an offer's kind that no pod holds, of each node that is usable."""
    resource, usable = offer.hardware.resource, usable_nodes(nodes, offer)
    free = {node.name: node.allocatable.get(resource, 0) for node in nodes if node.name in usable}
    for pod in pods:
        if pod.node in free and pod.ended is None:
            free[pod.node] -= pod.devices.get(resource, 0)
    return free
