"""What the status of a provider says."""

from datetime import datetime

from tessera.api.model_provider import ModelProviderStatus
from tessera.api.provider_reasons import ProviderAccepted
from tessera.api.reasons import StatusVerdict
from tessera.api.text import counted
from tessera.domain.observed.providers import ObservedProvider
from tessera.domain.providers.dialects import dialects
from tessera.domain.status.conditions import conditions


def provider_status(
    provider: ObservedProvider, at: datetime, *, enabled: bool
) -> ModelProviderStatus:
    """Return the status; `enabled` says whether the installation sends anything to providers."""
    return ModelProviderStatus(
        observed_generation=provider.generation,
        conditions=conditions({"Accepted": _accepted(provider, enabled=enabled)}, provider, at),
    )


def _accepted(provider: ObservedProvider, *, enabled: bool) -> StatusVerdict[ProviderAccepted]:
    spec = provider.spec
    if spec is None:
        return StatusVerdict(ProviderAccepted.INVALID_SPEC, provider.problem or "")
    if not enabled:
        return StatusVerdict(
            ProviderAccepted.PROVIDERS_DISABLED,
            "the chart's value gateway.providers.enabled is false, so nothing is sent to providers",
        )
    if spec.dialect is not None and spec.dialect not in dialects():
        return StatusVerdict(
            ProviderAccepted.UNKNOWN_DIALECT,
            f"spec.dialect: this release has no dialect {spec.dialect}, so gateways read answers "
            "by the general rules alone; omit it, or name one that there is, such as openai",
        )
    return StatusVerdict(
        ProviderAccepted.VALID,
        f"{counted(len(spec.models), 'model')} for routes of {counted(len(spec.tenants), 'tenant')}"
        f", with the key in Secret/{spec.secret.name}",
    )
