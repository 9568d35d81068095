"""The ModelRoutes of the cluster."""

from dataclasses import dataclass, field
from datetime import datetime

from tessera.api.model_route import ModelRouteSpec, ModelRouteStatus
from tessera.api.ref import Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedRoute:
    """A ModelRoute with its parsed spec, or None if that is invalid."""

    ref: Ref
    uid: str
    created: datetime
    """Of routes with one name the older has it."""
    generation: int
    spec: ModelRouteSpec | None
    problem: str | None = None
    status: ModelRouteStatus = field(default_factory=ModelRouteStatus)

    @property
    def served_name(self) -> str:
        """Return `model` of the requests that it gets."""
        return (self.spec and self.spec.served_name) or self.ref.name
