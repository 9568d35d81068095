"""Every reason in the status of a ModelProvider."""

from tessera.api.reasons import StatusReason


class ProviderAccepted(StatusReason):
    """May gateways send requests to the provider?"""

    VALID = "Valid", True
    """The spec is valid. Whether its Secret has a key is known to gateways alone: the operator
    reads no Secrets."""
    INVALID_SPEC = "InvalidSpec"
    """The object does not match the schema of this operator."""
    UNKNOWN_DIALECT = "UnknownDialect"
    """This release has no dialect of the name in `spec.dialect`. Gateways send requests to the
    provider all the same, and read its answers by the general rules alone."""
    PROVIDERS_DISABLED = "ProvidersDisabled"
    """The chart's value `gateway.providers.enabled` is false, so nothing is sent to providers, and
    their keys are not read."""
