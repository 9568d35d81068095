"""Tenants share the limits of a provider by weights, and each has all while others want less."""

from collections import Counter
from itertools import count

import pytest

from tessera.domain.limits.gateway_limits import Admitted, GatewayLimits
from tessera.domain.limits.limit_shares import LimitShares
from tessera.domain.limits.scopes import ApplicableLimits, Meter, ScopedLimit, ScopeKind
from tests.domain.limits.accounts import Accounts, a_limit, limits_of, slots_limit
from tests.gateway_builders import a_request

PER_MINUTE = a_limit(Meter.REQUESTS, 60, scope=ScopeKind.SERVICE)
BOTH = {"team-a": 1.0, "team-b": 1.0}


def of(
    tenant: str, limit: ScopedLimit = PER_MINUTE, weights: dict[str, float] = BOTH
) -> ApplicableLimits:
    return limits_of(limit, tenant=tenant, weights=weights)


def is_admitted(
    accounts: Accounts, gateway: GatewayLimits, of: ApplicableLimits, at: float
) -> bool:
    return isinstance(accounts.take(gateway, of, a_request(), at), Admitted)


def test_a_tenant_alone_has_the_whole_limit() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    answers = [is_admitted(accounts, gateway, of("team-a"), 0.0) for _ in range(62)]
    assert answers.count(True) == 60
    assert is_admitted(accounts, gateway, of("team-a"), 1.0)


def test_who_was_refused_is_admitted_when_its_answer_said_and_before_who_took_more() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    for _ in range(62):
        is_admitted(accounts, gateway, of("team-a"), 0.0)
    refusal = accounts.refuse(gateway, of("team-b"), a_request(), 0.1)
    assert refusal.retry_after_seconds == pytest.approx(0.9)
    for tick in range(11, 100):
        assert not is_admitted(accounts, gateway, of("team-a"), tick / 100)
    again = accounts.refuse(gateway, of("team-a"), a_request(), 1.0)
    assert again.retry_after_seconds == pytest.approx(1.0)
    assert is_admitted(accounts, gateway, of("team-b"), 1.0)


@pytest.mark.parametrize(("weight", "share"), [(1.0, 0.5), (3.0, 0.75)])
def test_two_who_want_all_have_it_by_their_weights(weight: float, share: float) -> None:
    accounts, gateway, admitted = Accounts(), GatewayLimits(), Counter[str]()
    weights = {"team-a": 1.0, "team-b": weight}
    for tick in range(1200):
        for tenant in ("team-a", "team-b"):
            limits = of(tenant, weights=weights)
            admitted[tenant] += is_admitted(accounts, gateway, limits, tick / 4)
        if not tick % 2:
            accounts.exchange(gateway, gateway.renewal(tick / 4), tick / 4)
    assert admitted.total() == pytest.approx(60 + 300, abs=5)
    assert admitted["team-b"] / admitted.total() == pytest.approx(share, abs=0.07)


def test_who_was_refused_and_stays_away_holds_up_nobody_for_long() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    for _ in range(61):
        is_admitted(accounts, gateway, of("team-a"), 0.0)
    assert not is_admitted(accounts, gateway, of("team-b"), 0.0)
    # What it needs stays for it, and the rest is team-a's.
    assert not is_admitted(accounts, gateway, of("team-a"), 1.5)
    assert is_admitted(accounts, gateway, of("team-a"), 2.0)
    taken = sum(is_admitted(accounts, gateway, of("team-a"), 7.0 + each / 99) for each in range(99))
    assert taken == 6


def test_places_of_concurrent_requests_are_left_to_who_waits_as_well() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    places = slots_limit(4, scope=ScopeKind.SERVICE)
    admitted = [accounts.admit(gateway, of("team-a", places), a_request(), 0.0) for _ in range(4)]
    assert not is_admitted(accounts, gateway, of("team-b", places), 0.0)
    gateway.settle(admitted.pop(), input_tokens=1, output_tokens=1)
    assert not is_admitted(accounts, gateway, of("team-a", places), 1.0)
    assert is_admitted(accounts, gateway, of("team-b", places), 1.0)


def test_limits_of_a_service_are_shared_by_no_weights() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    for _ in range(61):
        is_admitted(accounts, gateway, of("team-a", weights={}), 0.0)
    assert not is_admitted(accounts, gateway, of("team-b", weights={}), 0.1)
    assert is_admitted(accounts, gateway, of("team-a", weights={}), 1.0)


def test_what_a_limit_knows_of_tenants_is_forgotten() -> None:
    shares = LimitShares(60)
    shares.take("team-a", 60, 0.0)
    shares.wait("team-b", 1, 1.0, 0.0)
    seconds = next(second for second in count() if shares.is_idle(float(second)))
    assert 60 < seconds < 600
