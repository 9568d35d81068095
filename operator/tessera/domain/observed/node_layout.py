"""Observed NodeLayouts, and the taint and annotations that control a repartition."""

from dataclasses import dataclass

from tessera.api.node_layout import NodeLayoutSpec, NodeLayoutStatus

# Taint that keeps new pods off a node while some of its GPUs are repartitioned.
TAINT = "tessera.dev/repartition"
# Annotation of a pool: the name of the plan that may be carried out.
APPROVAL = "tessera.dev/approve-layout"
# Annotation of a service: `true` lets it fall below minReplicas during a repartition while no slice
# is free for its replacements.
DOWNTIME = "tessera.dev/allow-downtime"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedNodeLayout:
    """A NodeLayout as read from the API server."""

    name: str
    generation: int
    spec: NodeLayoutSpec
    status: NodeLayoutStatus | None = None
