"""How often the nodes of each spot pool are taken from the pods on them, as observed."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

from tessera.api.accelerator_pool import MAX_PREEMPTIONS, NodePreemption, SpotStatus
from tessera.domain.hardware.pools import PoolView
from tessera.domain.hardware.spot_nodes import DISRUPTION_TAINTS
from tessera.domain.incremental import FOREVER, Until, reused, reused_until
from tessera.domain.observed.snapshot import Node, Pod, Snapshot
from tessera.domain.placement.provisioning import nodes_by_pool
from tessera.domain.steps import Step

# The supply of spot nodes changes over hours: what was taken a day ago says nothing more.
WINDOW = timedelta(days=1)
# As if one node had been left alone for so long, so that a single early preemption says little.
_PRIOR = timedelta(hours=1)
# The rate falls while nodes stay; in between it is the same, and so is what is planned with it.
_REFRESH = timedelta(hours=1)


def with_preemptions(
    views: tuple[PoolView, ...], snapshot: Snapshot, last_views: Sequence[PoolView]
) -> tuple[PoolView, ...]:
    """Return the pools with the measured rate of preemptions of those of tier Spot.

    A preemption is a node with a taint of a node that terminates while a pod of Tessera is on it:
    an autoscaler takes unneeded ones once they are empty. A node that vanishes without a
    taint is not counted. Nothing is known of a pool without one, which counts as never preempted.
    """
    names = {
        view.pool.name: view.node_names
        for view in views
        if view.pool.spec is not None and view.pool.spec.tier == "Spot"
    }
    if not names:
        return views
    nodes = _spot_nodes(snapshot.nodes, names)
    used = _used_nodes(snapshot.pods)
    last = {view.pool.name: view for view in last_views}
    return tuple(
        _measured_view(view, nodes[name], used, last.get(name), snapshot.at)
        if (name := view.pool.name) in nodes
        else view
        for view in views
    )


_spot_nodes = reused(nodes_by_pool)


@reused
def _used_nodes(pods: Sequence[Pod]) -> frozenset[str]:
    """Return the nodes with a replica or with a pod of a batch."""
    return frozenset(pod.node for pod in pods if pod.node is not None and not pod.unmanaged)


def _measure(
    view: PoolView,
    nodes: tuple[Node, ...],
    used: frozenset[str],
    last: PoolView | None,
    at: datetime,
) -> PoolView:
    status = view.pool.status.spot
    if last is not None and last.pool.uid == view.pool.uid:
        status = last.spot or status  # the API server may not have it yet
    taken = tuple(node for node in nodes if node.taints & DISRUPTION_TAINTS and node.name in used)
    staying = sorted(
        node.created for node in nodes if node.created and not node.taints & DISRUPTION_TAINTS
    )
    return _rated_view(view.pool.name, view, tuple(staying), taken, at=at, memory=status)


def _set_aside(_error: Exception, view: PoolView, *_: object) -> PoolView:
    """Return the pool as if none of its nodes had been taken."""
    return replace(view, spot=view.pool.status.spot)


_measured_view = Step(_measure, _set_aside)


@reused_until
def _rated_view(
    _name: str,
    view: PoolView,
    staying: tuple[datetime, ...],
    taken: tuple[Node, ...],
    *,
    at: datetime,
    memory: SpotStatus | None,
) -> Until[PoolView]:
    """Return the pool with its preemptions and their rate; `staying` are when nodes came."""
    known = memory.recent if memory is not None else ()
    recent = _with_taken(known, taken, at)
    if not recent:
        return Until(replace(view, spot=None), FOREVER, None)
    if memory is None or recent != known or memory.measured_at + _REFRESH <= at:
        rate, measured_at = preemption_rate(recent, staying, at), at.replace(microsecond=0)
    else:
        rate, measured_at = memory.preemptions_per_node_hour, memory.measured_at
    spot = SpotStatus(preemptions_per_node_hour=rate, measured_at=measured_at, recent=recent)
    offers = tuple(replace(offer, preemptions_per_hour=rate) for offer in view.offers)
    until = min(measured_at + _REFRESH, recent[0].at + WINDOW)
    return Until(replace(view, offers=offers, spot=spot), until, spot)


def _with_taken(
    recent: Sequence[NodePreemption], taken: Sequence[Node], at: datetime
) -> tuple[NodePreemption, ...]:
    # One that still terminates after a day counts again.
    recent = [each for each in recent if at < each.at + WINDOW]
    known = {(each.node, each.created_at) for each in recent}
    new = [
        NodePreemption(node=node.name, created_at=node.created, at=at.replace(microsecond=0))
        for node in taken
        if node.created is not None and (node.name, node.created) not in known
    ]
    return tuple(sorted([*recent, *new], key=lambda each: (each.at, each.node))[-MAX_PREEMPTIONS:])


def preemption_rate(
    recent: Sequence[NodePreemption], staying: Sequence[datetime], at: datetime
) -> Decimal:
    """Return the preemptions per hour of a node: their number by the time that nodes existed.

    That of lifetimes which end at a constant rate, some of them unknown as the nodes still exist.
    """
    since, count = at - WINDOW, len(recent)
    if count == MAX_PREEMPTIONS:  # what came before is not known
        since, count = max(since, recent[0].at), count - 1
    spans = [(each.created_at, each.at) for each in recent] + [(created, at) for created in staying]
    lived = sum((max(timedelta(), end - max(since, begin)) for begin, end in spans), _PRIOR)
    return round(Decimal(count) * 3600 / Decimal(lived.total_seconds()), 2)
