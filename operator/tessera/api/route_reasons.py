"""Every reason in the status of a ModelRoute."""

from tessera.api.reasons import StatusReason


class RouteAccepted(StatusReason):
    """Can every target of the route get requests, by its name?"""

    VALID = "Valid", True
    """The spec is valid, and every target may be asked."""
    GATEWAY_DISABLED = "GatewayDisabled", True
    """The spec is valid, but the chart's value `gateway.enabled` is false, so nothing answers
    requests for the route."""
    NAME_NOT_PUBLISHED = "NameNotPublished", True
    """The spec is valid, but some tenants in `spec.access` do not get the route: no grant in
    `spec.publishing` of the TenantBudget has its name for them, or they do not accept its
    models."""
    INVALID_SPEC = "InvalidSpec"
    """The object does not match the schema of this operator."""
    NAME_CONFLICT = "NameConflict"
    """An InferenceService of the tenant, or an older route of it, has the name, or a grant gives it
    to other namespaces, so requests for it do not come here from the gateway."""
    TARGET_NOT_FOUND = "TargetNotFound"
    """Requests skip a target whose service or provider the tenant does not have; the others
    work."""
    POOLING_TARGET = "PoolingTarget"
    """Requests skip a target whose service generates no tokens; the others work."""
    DATA_RESIDENCY = "DataResidency"
    """Requests of the tenant skip a target whose provider is outside of `spec.dataResidency` of its
    TenantBudget; the others work."""
    PROVIDERS_DISABLED = "ProvidersDisabled"
    """Requests skip targets at outside providers, since the chart's value
    `gateway.providers.enabled` is false; the others work."""


class TargetState(StatusReason):
    """Can the target answer?"""

    AVAILABLE = "Available", True
    """It has a replica that takes requests, or is a model of a provider that the tenant may use."""
    NO_READY_REPLICA = "NoReadyReplica"
    """No replica takes requests now."""
    SERVICE_ASLEEP = "ServiceAsleep"
    """It has no replica until a request wakes it; requests that may wake it do, and skip it until
    then."""
    SERVICE_STOPPED = "ServiceStopped"
    """Its `spec.replicas` is 0."""
    TARGET_NOT_FOUND = "TargetNotFound"
    """The InferenceService, or the ModelProvider or its model, does not exist, its spec is invalid,
    or the tenant may not use it."""
    POOLING_TARGET = "PoolingTarget"
    """Its model returns embeddings, scores or classes, which no route does."""
    DATA_RESIDENCY = "DataResidency"
    """`spec.dataResidency` of the tenant does not list the region of the provider."""
    PROVIDERS_DISABLED = "ProvidersDisabled"
    """The installation sends nothing to outside providers."""
