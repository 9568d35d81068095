"""The limits of one request: those of its key, team, tenant and service together."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.api.text import counted
from tessera.domain.gateway.directory import NO_LIMITS, Directory, Identity, OfferedModel


class ScopeKind(StrEnum):
    """Whose limit it is."""

    KEY = "Key"
    TEAM = "Team"
    TENANT = "Tenant"
    DEFAULT = "Default"
    """Of a tenant that has no limits: each gateway has accounts of its own for them."""
    SERVICE = "Service"


class Meter(StrEnum):
    """What a limit counts."""

    REQUESTS = "Requests"
    INPUT_TOKENS = "InputTokens"
    OUTPUT_TOKENS = "OutputTokens"
    TOTAL_TOKENS = "TotalTokens"
    CONCURRENT_REQUESTS = "ConcurrentRequests"


_NOUNS = {
    Meter.REQUESTS: "request",
    Meter.INPUT_TOKENS: "input token",
    Meter.OUTPUT_TOKENS: "output token",
    Meter.TOTAL_TOKENS: "token",
    Meter.CONCURRENT_REQUESTS: "concurrent request",
}
_PERIODS = {1: "second", 60: "minute", 86_400: "day"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopedLimit:
    """One limit of one scope."""

    key: str
    """Identifies the limit in the whole fleet, for example `Tenant/team-a/Requests/60`."""
    scope: ScopeKind
    name: str
    """Of the scope: `team-a`."""
    meter: Meter
    amount: int
    period_seconds: int = 0
    """The amount refills evenly over the period; 0 for concurrent requests."""

    @property
    def is_shared(self) -> bool:
        """Return whether all gateways together have one account for it."""
        return self.scope is not ScopeKind.DEFAULT

    @property
    def phrase(self) -> str:
        """Return what it allows, in words: `500 tokens per minute`."""
        counted_amount = counted(self.amount, _NOUNS[self.meter])
        period = _PERIODS.get(self.period_seconds)
        return counted_amount if period is None else f"{counted_amount} per {period}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicableLimits:
    """All limits of one request; equal for all requests of a sender for a model."""

    limits: tuple[ScopedLimit, ...] = ()
    max_context_tokens: int | None = None
    max_output_tokens: int | None = None
    tenant: str = ""
    """Tenant of the sender."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Shares of the tenants in the limits of a provider; empty where no provider has the model."""


def applicable_limits(
    directory: Directory, identity: Identity, model: OfferedModel | None
) -> ApplicableLimits:
    """Gather the limits of the sender's key, team and tenant, and of the service.

    A tenant without limits of its own has the default ones. The smallest size counts. Of a request
    that names no model only requests in a time are counted.
    """
    tenant = directory.tenants.get(identity.tenant)
    if tenant is not None and tenant.limits != NO_LIMITS:
        scopes = [(ScopeKind.TENANT, identity.tenant, tenant.limits)]
    else:
        scopes = [(ScopeKind.DEFAULT, identity.tenant, directory.default_limits)]
    if identity.limits is not None:
        scopes.append((ScopeKind.KEY, f"{identity.tenant}/{identity.key}", identity.limits))
    if identity.team is not None and tenant is not None:
        of_team = tenant.teams.get(identity.team, NO_LIMITS)
        scopes.append((ScopeKind.TEAM, f"{identity.tenant}/{identity.team}", of_team))
    if model is None:
        scopes = [
            (kind, name, RateLimitsSpec(requests=limits.requests)) for kind, name, limits in scopes
        ]
    else:
        scopes.append((ScopeKind.SERVICE, str(model.service), model.limits))
    outside = model.outside if model is not None else None
    return ApplicableLimits(
        limits=tuple(limit for scope in scopes for limit in _limits(*scope)),
        max_context_tokens=_smallest(limits.max_context_tokens for _, _, limits in scopes),
        max_output_tokens=_smallest(limits.max_output_tokens for _, _, limits in scopes),
        tenant=identity.tenant,
        weights={} if outside is None else outside.provider.weights,
    )


def _limits(scope: ScopeKind, name: str, limits: RateLimitsSpec) -> Iterator[ScopedLimit]:
    amounts = [
        (meter, period_seconds, amount)
        for meter, rate in (
            (Meter.REQUESTS, limits.requests),
            (Meter.INPUT_TOKENS, limits.input_tokens),
            (Meter.OUTPUT_TOKENS, limits.output_tokens),
            (Meter.TOTAL_TOKENS, limits.total_tokens),
        )
        for period_seconds, amount in _periods(rate)
    ]
    amounts.append((Meter.CONCURRENT_REQUESTS, 0, limits.concurrent_requests))
    for meter, period_seconds, amount in amounts:
        if amount is not None:
            yield ScopedLimit(
                key=f"{scope}/{name}/{meter}/{period_seconds}",
                scope=scope,
                name=name,
                meter=meter,
                amount=amount,
                period_seconds=period_seconds,
            )


def _periods(rate: PeriodLimits) -> tuple[tuple[int, int | None], ...]:
    return (1, rate.per_second), (60, rate.per_minute), (86_400, rate.per_day)


def _smallest(values: Iterator[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)
