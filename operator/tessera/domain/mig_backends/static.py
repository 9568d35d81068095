"""The backend of pools whose slices are managed by hand: it changes nothing."""

from dataclasses import dataclass
from datetime import datetime

from tessera.api.reasons import LayoutReady, StatusVerdict
from tessera.domain.mig_backends.backend import (
    BackendRequest,
    BackendStatus,
    Capabilities,
    LayoutsByGpu,
)
from tessera.domain.mig_backends.nodes import MigNode


@dataclass(frozen=True, slots=True)
class StaticBackend:
    """`GeometryBackend` of pools that are used as they are."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(pinned_starts=False, sibling_safe=False, knows_pods=False)

    def request(self, node: MigNode, desired: LayoutsByGpu, attempt: int) -> BackendRequest:
        del node, desired, attempt
        return BackendRequest()

    def status(
        self, node: MigNode, desired: LayoutsByGpu, attempt: int, since: datetime, at: datetime
    ) -> BackendStatus:
        del desired, attempt, since, at
        message = f"spec.mig.layout is empty, so the slices of Node/{node.name} stay as they are"
        return BackendStatus(problem=StatusVerdict(LayoutReady.NOT_MANAGED, message))
