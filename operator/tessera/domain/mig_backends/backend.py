"""What cuts GPUs, as far as plans and rollouts need to know."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeAlias

from tessera.api.node_layout import NodeLayoutSpec
from tessera.api.reasons import LayoutReady, StatusVerdict
from tessera.domain.mig.layouts import Layout
from tessera.domain.mig_backends.nodes import MigNode


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend can; nothing more is asked of it."""

    pinned_starts: bool
    """Slices begin where they are asked to; otherwise only their counts are kept."""
    sibling_safe: bool
    """A slice goes and comes while its neighbours on the GPU run."""
    knows_pods: bool
    """It is known which pod sits on which slice; otherwise a whole node has to be emptied."""
    pauses_node: bool
    """No pod gets a device of the node while it works."""


# GPUs of one node, by index, as they should be.
LayoutsByGpu: TypeAlias = Mapping[int, Layout]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendRequest:
    """What has to be true of the API for a backend to do its work; written where it differs."""

    labels: Mapping[str, str | None] = field(default_factory=dict)
    """Labels of the node; None takes one away. All of one ask go in one patch."""
    configs: Mapping[str, str] = field(default_factory=dict)
    """Entries of mig-manager's configuration, name -> YAML of the entry; they stay for as long as a
    label may name them."""
    layout_spec: NodeLayoutSpec | None = None
    """The spec of the node's NodeLayout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendStatus:
    """How far a backend is."""

    done: bool = False
    """The node offers exactly what was asked for."""
    retry: bool = False
    """It failed in a way that another attempt may mend; the problem counts when none is left."""
    problem: StatusVerdict[LayoutReady] | None = None
    """What keeps it, with what to do."""


class GeometryBackend(Protocol):
    """Cuts the GPUs of a node. Pure: it says what to write, and reads what came of it."""

    @property
    def capabilities(self) -> Capabilities: ...

    def request(self, node: MigNode, desired: LayoutsByGpu, attempt: int) -> BackendRequest:
        """To be repeated until it is heard to be done; equal input asks for the same.

        Where nobody knows which GPU holds what (`not knows_pods`), all GPUs of the node are wanted.
        """

    def status(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, since: datetime, at: datetime
    ) -> BackendStatus:
        """What came of the ask of this attempt, begun at `since`."""
