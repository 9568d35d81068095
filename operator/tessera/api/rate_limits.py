"""Limits of requests through gateways, of tenants, teams, keys and services."""

from typing import Annotated

from pydantic import Field, StringConstraints

from tessera.api.meta import Wire

# Name of a team within a tenant, as keys and tokens carry it.
TeamName = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", min_length=1, max_length=63
    ),
]
_Count = Annotated[int, Field(ge=1, le=10**15)]


class PeriodLimits(Wire):
    """Maximum per period. Each refills evenly, so a full one may be used at once."""

    per_second: _Count | None = None
    """Maximum per second."""

    per_minute: _Count | None = None
    """Maximum per minute."""

    per_day: _Count | None = None
    """Maximum per 24 hours."""


class RateLimitsSpec(Wire):
    """Limits of requests through gateways; what is omitted is not limited."""

    requests: PeriodLimits = Field(default_factory=PeriodLimits)
    """Requests."""

    input_tokens: PeriodLimits = Field(default_factory=PeriodLimits)
    """Tokens of prompts."""

    output_tokens: PeriodLimits = Field(default_factory=PeriodLimits)
    """Generated tokens."""

    total_tokens: PeriodLimits = Field(default_factory=PeriodLimits)
    """Tokens of prompts and generated tokens together."""

    concurrent_requests: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Requests at the same time, queued ones included."""

    max_context_tokens: Annotated[int, Field(ge=16, le=100_000_000)] | None = None
    """Maximum tokens of prompt plus answer of one request."""

    max_output_tokens: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Maximum tokens of one answer; a larger `max_tokens` is reduced to it."""
