"""The ModelProviders of the cluster, and the Secrets with their keys."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tessera.api.model_provider import ModelProviderSpec, ModelProviderStatus
from tessera.api.ref import Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedProvider:
    """A ModelProvider with its parsed spec, or None if that is invalid."""

    name: str
    uid: str
    created: datetime
    generation: int
    spec: ModelProviderSpec | None
    problem: str | None = None
    status: ModelProviderStatus = field(default_factory=ModelProviderStatus)

    @property
    def ref(self) -> Ref:
        """Return its name, without a namespace."""
        return Ref("", self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSecret:
    """A Secret in the namespace of providers."""

    name: str
    keys: Mapping[str, str] = field(repr=False)
    """By field; only those that a header can have."""
    authorities: Mapping[str, str] = field(default_factory=dict, repr=False)
    """By field, the certificates in PEM of one that has some."""
