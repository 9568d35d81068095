"""`tessera-operator --release-nodes`: takes back what an uninstalled operator would leave on nodes.

The chart runs it before it is uninstalled. It takes the lease of the leader election away, waits
until no operator leads, and removes the taints and starts the device plugins of all nodes.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from tessera.adapters.kube.client import KubeCluster
from tessera.adapters.kube.leader_election import RENEW_DEADLINE, LeaderElector
from tessera.controller.runtime import LEASE
from tessera.domain.mig_backends.gpu_clients import STOPPED_LABEL, start_device_plugin
from tessera.domain.names import DISRUPT_ANNOTATION, GUARD_ANNOTATION
from tessera.domain.observed.node_layout import TAINT
from tessera.domain.observed.snapshot import Node
from tessera.ports import Clock, ClusterError
from tessera.resources.api_resources import NODES
from tessera.settings import Settings

log = logging.getLogger("tessera")

# No operator leads again for so long, unless a new one is installed and waits for it.
_LEASE_SECONDS = 60


async def release_nodes(
    settings: Settings,
    cluster: KubeCluster,
    clock: Clock,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> int:
    """Release every node; return the number of nodes that could not be released."""
    elector = LeaderElector(
        cluster,
        namespace=settings.namespace,
        name=LEASE,
        identity="uninstall",
        clock=clock,
        monotonic=time.monotonic,
    )
    await elector.seize(_LEASE_SECONDS)
    await sleep(RENEW_DEADLINE)
    listing = await cluster.list(NODES)
    failures = 0
    for observed in listing.items if listing is not None else ():
        node = observed.plan_input
        if not isinstance(node, Node) or not (patch := release_patch(node)):
            continue
        try:
            await cluster.patch_node(node.name, *patch)
            log.info("released node %s", node.name)
        except ClusterError as error:
            log.error("node %s not released: %s", node.name, error)
            failures += 1
    return failures


def release_patch(
    node: Node,
) -> tuple[Mapping[str, str | None], Mapping[str, bool], Mapping[str, str | None]] | None:
    """Return the labels, taints and annotations that release a node; None if nothing holds it."""
    labels = start_device_plugin(node.labels) if STOPPED_LABEL in node.labels else {}
    taints = {TAINT: False} if TAINT in node.taints else {}
    annotations: dict[str, str | None] = {}
    if node.guarded:
        annotations = {DISRUPT_ANNOTATION: None, GUARD_ANNOTATION: None}
    return (labels, taints, annotations) if labels or taints or annotations else None
