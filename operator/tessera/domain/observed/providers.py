"""The ModelProviders of the cluster, and the Secrets with their keys."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.api.model_provider import ModelProviderSpec, ModelProviderStatus
from tessera.domain.observed.object import Observed


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedProvider(Observed):
    """A ModelProvider."""

    spec: ModelProviderSpec | None
    status: ModelProviderStatus = field(default_factory=ModelProviderStatus)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSecret:
    """A Secret in the namespace of providers."""

    name: str
    keys: Mapping[str, str] = field(repr=False)
    """By field; only those that a header can have."""
    authorities: Mapping[str, str] = field(default_factory=dict, repr=False)
    """By field, the certificates in PEM of one that has some."""
