"""Whose limits a request is under."""

from typing import Any

from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import Directory, Identity, OfferedModel, TenantLimits
from tessera.domain.limits.scopes import applicable_limits

MODEL = OfferedModel(service=Ref("team-b", "chat"), uid="1", names=("chat",), tenant="team-b")
UNLIMITED = RateLimitsSpec()
PER_MINUTE = RateLimitsSpec(requests=PeriodLimits(per_minute=60))


def keys(directory: Directory, model: OfferedModel = MODEL, **identity: Any) -> list[str]:
    sender = Identity(**{"tenant": "team-a", **identity})
    return [limit.key for limit in applicable_limits(directory, sender, model).limits]


def a_directory(limits: RateLimitsSpec = UNLIMITED, **fields: Any) -> Directory:
    tenant = TenantLimits(
        name="team-a", namespaces=("team-a",), limits=limits, teams={"ml": PER_MINUTE}
    )
    return Directory(tenants={"team-a": tenant}, **fields)


def test_limits_of_tenant_key_team_and_service_apply_together() -> None:
    model = OfferedModel(
        service=Ref("team-b", "chat"), uid="1", names=("chat",), tenant="team-b", limits=PER_MINUTE
    )
    assert keys(a_directory(PER_MINUTE), model, key="ci", team="ml", limits=PER_MINUTE) == [
        "Tenant/team-a/Requests/60",
        "Key/team-a/ci/Requests/60",
        "Team/team-a/ml/Requests/60",
        "Service/team-b/chat/Requests/60",
    ]


def test_a_tenant_without_limits_has_the_default_ones() -> None:
    default = RateLimitsSpec(concurrent_requests=5)
    assert keys(a_directory(default_limits=default)) == ["Default/team-a/ConcurrentRequests/0"]
    assert keys(a_directory(PER_MINUTE, default_limits=default)) == ["Tenant/team-a/Requests/60"]
    assert keys(Directory(default_limits=default)) == ["Default/team-a/ConcurrentRequests/0"]


def test_keys_of_two_tenants_with_one_name_are_limited_apart() -> None:
    [key] = keys(Directory(), key="ci", limits=PER_MINUTE)
    [other] = keys(Directory(), key="ci", limits=PER_MINUTE, tenant="team-c")
    assert key != other


def test_every_rate_and_period_is_a_limit() -> None:
    rate = PeriodLimits(per_second=1, per_minute=2, per_day=3)
    limits = RateLimitsSpec(requests=rate, input_tokens=rate, output_tokens=rate, total_tokens=rate)
    assert len(set(keys(a_directory(limits)))) == 12


def test_the_smallest_size_of_a_request_counts() -> None:
    directory = a_directory(RateLimitsSpec(max_context_tokens=900, max_output_tokens=100))
    sender = Identity(tenant="team-a", key="ci", limits=RateLimitsSpec(max_output_tokens=50))
    limits = applicable_limits(directory, sender, MODEL)
    assert (limits.max_context_tokens, limits.max_output_tokens) == (900, 50)
