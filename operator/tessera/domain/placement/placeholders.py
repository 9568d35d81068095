"""Placeholders: whether a pool asks for a node by its GPUs, since no autoscaler knows its slices.

The layout of GPUs, and the slices, follow once the node came. Until a pod uses them, Karpenter
leaves the node alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from tessera.api.accelerator_pool import ProvisioningStatus
from tessera.api.meta import find_condition
from tessera.api.reasons import PlacementReason
from tessera.domain.hardware.device import MIG_PREFIX
from tessera.domain.hardware.node_templates import has_devices
from tessera.domain.hardware.pools import PoolView, admits, plans_layouts
from tessera.domain.incremental import reused
from tessera.domain.observed.node_layout import TAINT
from tessera.domain.observed.snapshot import Node, ObservedService, Pod, PodEvent
from tessera.domain.placement.candidates import fitting_choices, hardware_candidates
from tessera.domain.placement.checks import shape_of

# An autoscaler that knows the slices of new nodes has said by then that it starts one.
KNOWN_AFTER = timedelta(seconds=60)
_STARTS = frozenset({"Nominated", "TriggeredScaleUp"})


@reused
def unplaced_by_pool(
    services: Sequence[ObservedService], views: Sequence[PoolView], backing_off: frozenset[str]
) -> Mapping[str, int]:
    """Return how many services wait for a layout of each pool that has no node yet.

    Each counts for the cheapest pool alone, and for none while one that plans layouts has a node.
    """
    counts = Counter[str]()
    for service in services:
        placed = find_condition(service.status.conditions, "Placed")
        if placed is None or placed.reason != PlacementReason.LAYOUT_PENDING:
            continue
        pools = _planned_pools(service, views)
        if any(view.gpus or view.slices for view in pools):
            continue
        startable = [
            view for view in pools if _may_start(view) and view.pool.name not in backing_off
        ]
        cheapest = min(startable, key=_by_price, default=None)
        if cheapest is not None:
            counts[cheapest.pool.name] += 1
    return counts


def _planned_pools(service: ObservedService, views: Sequence[PoolView]) -> Sequence[PoolView]:
    """Return the pools that would plan slices for a service."""
    spec = service.spec
    shape = shape_of(spec) if spec is not None else None
    if spec is None or shape is None or spec.placement.mig != "Auto":
        return ()
    placement = spec.placement
    return [
        view
        for view in views
        if plans_layouts(view.pool.spec)
        and admits(view.pool.spec, service.ref.namespace)
        and (not placement.pools or view.pool.name in placement.pools)
        and any(
            choice.offer.layout_profile and choice.offer.tier in placement.tiers
            for choice in fitting_choices(hardware_candidates(spec, shape, view.offers))
        )
    ]


def _may_start(view: PoolView) -> bool:
    return view.startable is not None and view.startable.count > 0


def _by_price(view: PoolView) -> tuple[object, str]:
    return view.price.per_gpu_hour if view.price is not None else 0, view.pool.name


def needs_placeholder(
    view: PoolView,
    nodes: Sequence[Node],
    waits: Sequence[Pod],
    events: Mapping[str, tuple[PodEvent, ...]],
    unplaced: int,
    at: datetime,
) -> bool:
    """Return whether slices are waited for that no autoscaler brings."""
    if not _may_start(view):
        return False
    slices = [pod for pod in waits if any(name.startswith(MIG_PREFIX) for name in pod.devices)]
    is_empty = not any(has_devices(node) for node in nodes)
    if plans_layouts(view.pool.spec):
        # With nodes, another layout may still give the slices.
        return is_empty and bool(unplaced or slices)
    if any(TAINT in node.taints for node in nodes):
        return False
    said = {event.reason for pod in slices for event in events.get(pod.uid, ())}
    return not said & _STARTS and any(pod.created + KNOWN_AFTER <= at for pod in slices)


def with_placeholder(
    status: ProvisioningStatus, nodes: Sequence[Node], at: datetime, *, needed: bool
) -> ProvisioningStatus:
    """Return the status with a placeholder until a node came, which is guarded from then on."""
    since, at = status.placeholder_since, at.replace(microsecond=0)
    if since is not None:
        ready = [node for node in nodes if node.kubelet_ready and _is_younger(node, since)]
        if ready:
            return status.model_copy(
                update={
                    "placeholder_since": None,
                    "guarded_node": min(node.name for node in ready),
                    "guarded_until": at + 2 * status.expected_start,
                }
            )
    # One node after the other: the slices of the last one are still to come.
    is_coming = status.guarded_node is not None or any(
        not has_devices(node) and _is_younger(node, at - status.expected_start) for node in nodes
    )
    if not needed or (since is None and is_coming):
        since = None
    elif since is None:
        since = at
    return status.model_copy(update={"placeholder_since": since})


def _is_younger(node: Node, at: datetime) -> bool:
    return node.created is not None and node.created >= at


def with_guard(
    status: ProvisioningStatus, nodes: Sequence[Node], bound: Sequence[Pod], at: datetime
) -> ProvisioningStatus:
    """Return the status without a guard that ended: by a pod on the node, or by the time."""
    if status.guarded_node is None:
        return status
    is_used = any(pod.node == status.guarded_node and not pod.unmanaged for pod in bound)
    exists = any(node.name == status.guarded_node for node in nodes)
    if exists and not is_used and status.guarded_until and at < status.guarded_until:
        return status
    return status.model_copy(update={"guarded_node": None, "guarded_until": None})
