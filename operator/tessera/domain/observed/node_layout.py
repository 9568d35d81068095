"""NodeLayouts, and the marks by which a repartition is ordered and allowed."""

from dataclasses import dataclass

from tessera.api.node_layout import NodeLayoutSpec, NodeLayoutStatus

# Keeps new pods off a node while some of its GPUs are cut anew.
TAINT = "tessera.dev/repartition"
# On a pool: the name of the plan that may be carried out.
APPROVAL = "tessera.dev/approve-layout"
# On a service: `true` lets it fall below its floor while its slices are cut, where there is no
# room for replacements.
DOWNTIME = "tessera.dev/allow-downtime"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedNodeLayout:
    """The object of the same kind."""

    name: str
    generation: int
    spec: NodeLayoutSpec
    status: NodeLayoutStatus | None = None
