"""The ModelRoutes of the cluster."""

from dataclasses import dataclass, field

from tessera.api.model_route import ModelRouteSpec, ModelRouteStatus
from tessera.domain.observed.object import Observed


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedRoute(Observed):
    """A ModelRoute."""

    spec: ModelRouteSpec | None
    status: ModelRouteStatus = field(default_factory=ModelRouteStatus)

    @property
    def served_name(self) -> str:
        """Return `model` of the requests that it gets."""
        return (self.spec and self.spec.served_name) or self.name
