"""Observed NodeLayouts, and the taint and annotations that control a repartition."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from tessera.api.node_layout import NodeLayoutSpec, NodeLayoutStatus

# Taint that keeps new pods off a node while some of its GPUs are repartitioned.
TAINT = "tessera.dev/repartition"
# Annotation of a pool: the name of the plan that may be carried out.
APPROVAL = "tessera.dev/approve-layout"
# Annotation of a service: `true` lets it fall below minReplicas during a repartition while no slice
# is free for its replacements.
DOWNTIME = "tessera.dev/allow-downtime"
# An agent renews its heartbeat after this time.
HEARTBEAT_INTERVAL = timedelta(minutes=1)
# An agent whose heartbeat is older is silent: what it reported says nothing about pods any more.
MAX_HEARTBEAT_AGE = 3 * HEARTBEAT_INTERVAL


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedNodeLayout:
    """A NodeLayout as read from the API server."""

    name: str
    generation: int
    spec: NodeLayoutSpec
    status: NodeLayoutStatus | None = None
    silent_since: datetime | None = None
    """The last heartbeat of an agent that is silent."""
    heartbeat: datetime | None = field(default=None, compare=False)
    """The last heartbeat as it was read; a new one alone is no change."""


def silenced(layout: ObservedNodeLayout, since: datetime) -> ObservedNodeLayout:
    """Return the layout of an agent that is silent."""
    return replace(layout, silent_since=since)
