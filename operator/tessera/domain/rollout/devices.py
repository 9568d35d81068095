"""Whose devices a successor can take: those on schedulable nodes that its pod selects."""

from collections.abc import Sequence

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


def free_devices(node: Node, pods: Sequence[Pod], resource: str) -> int:
    """Return the devices of a kind that no pod of a node holds."""
    used = sum(
        pod.devices.get(resource, 0) for pod in pods if pod.node == node.name and pod.ended is None
    )
    return node.allocatable.get(resource, 0) - used
