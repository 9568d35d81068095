"""The choice of a pool's backend: NVIDIA's mig-manager, Tessera's agent, or none."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tessera.api.mig import Mig
from tessera.api.reasons import LayoutReady, StatusVerdict
from tessera.domain.mig_backends.agent import AgentBackend
from tessera.domain.mig_backends.backend import (
    BackendRequest,
    BackendStatus,
    Capabilities,
    GeometryBackend,
    LayoutsByGpu,
)
from tessera.domain.mig_backends.mig_manager import MigManagerBackend
from tessera.domain.mig_backends.nodes import MigNode


def backend_of(mig: Mig, nodes: Sequence[MigNode]) -> GeometryBackend:
    """Return the backend that `spec.mig` of a pool names."""
    if mig.mode == "Static" and not mig.layout:
        return StaticBackend()
    if mig.backend == "Agent":
        return AgentBackend()
    # Capabilities hold for the whole pool: one node without an agent makes all of them drain as a
    # whole.
    partitioned = [node for node in nodes if node.gpus and not node.unavailable]
    knows_pods = bool(partitioned) and all(node.reports_pods for node in partitioned)
    return MigManagerBackend(knows_pods=knows_pods)


@dataclass(frozen=True, slots=True)
class StaticBackend:
    """`GeometryBackend` of pools whose slices are managed by hand: it changes nothing."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(pinned_starts=False, sibling_safe=False, knows_pods=False)

    def request(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, at: datetime
    ) -> BackendRequest:
        del node, desired, attempt, at
        return BackendRequest()

    def status(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, since: datetime, at: datetime
    ) -> BackendStatus:
        del desired, attempt, since, at
        message = f"spec.mig.layout is empty, so the slices of Node/{node.name} stay as they are"
        return BackendStatus(problem=StatusVerdict(LayoutReady.NOT_MANAGED, message))
