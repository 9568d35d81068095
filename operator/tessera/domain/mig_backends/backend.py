"""The protocol of backends, which give GPUs their layouts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeAlias

from tessera.api.node_layout import NodeLayoutSpec
from tessera.api.pool_reasons import LayoutReady
from tessera.api.reasons import StatusVerdict
from tessera.domain.hardware.gpu_layouts import Layout
from tessera.domain.mig_backends.nodes import MigNode


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend can do; plans and rollouts rely on nothing more."""

    pinned_starts: bool
    """Slices get the starts that are requested; otherwise only their counts."""
    sibling_safe: bool
    """Slices are created and removed while other slices of the GPU are in use."""
    knows_pods: bool
    """It is observed which pod holds which slice; otherwise a whole node has to be drained."""


# Desired layouts of the GPUs of one node, by index.
LayoutsByGpu: TypeAlias = Mapping[int, Layout]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendRequest:
    """State of API objects that makes a backend do its work; written where it differs."""

    labels: Mapping[str, str | None] = field(default_factory=dict)
    """Labels of the node; None removes one. They are written in one patch."""
    configs: Mapping[str, str] = field(default_factory=dict)
    """Entries of mig-manager's configuration, name -> YAML; they stay while a label may name them.
    """
    layout_spec: NodeLayoutSpec | None = None
    """Spec of the node's NodeLayout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendStatus:
    """How far a backend is with a request."""

    done: bool = False
    """The node offers exactly the requested slices."""
    retry: bool = False
    """Another attempt may succeed; the problem counts when no attempt is left."""
    problem: StatusVerdict[LayoutReady] | None = None
    """What blocks it, with the fix."""


class GeometryBackend(Protocol):
    """Partitions the GPUs of a node. Pure: it decides what to write and judges what is observed."""

    @property
    def capabilities(self) -> Capabilities: ...

    def request(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, at: datetime
    ) -> BackendRequest:
        """Return what to write until `status` is done; equal input gives an equal request.

        Without `knows_pods`, `desired` names all GPUs of the node.
        """

    def status(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, since: datetime, at: datetime
    ) -> BackendStatus:
        """Return the outcome of this attempt, which was requested at `since`."""
