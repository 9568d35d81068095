"""Default limits: each gateway keeps them by itself, without a store and without a wait."""

import pytest

from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.limits.account import BorrowRequest
from tessera.domain.limits.gateway_limits import Admitted, GatewayLimits, LimitRefusal
from tessera.domain.limits.scopes import ApplicableLimits, Meter, ScopedLimit, ScopeKind
from tests.domain.limits.accounts import Accounts, a_limit, limits_of, slots_limit
from tests.gateway_builders import a_request

REQUESTS = a_limit(Meter.REQUESTS, 60, scope=ScopeKind.DEFAULT)
TOKENS = a_limit(Meter.TOTAL_TOKENS, 64_000, 86_400, scope=ScopeKind.DEFAULT)
SLOTS = slots_limit(50, scope=ScopeKind.DEFAULT)
NOTHING = BorrowRequest()


def admitted(gateway: GatewayLimits, limits: ApplicableLimits, now: float) -> list[Admitted]:
    """Return what is admitted of more than the limits allow at one moment."""
    answers = [gateway.take(limits, a_request(), now) for _ in range(200)]
    assert not any(isinstance(answer, BorrowRequest) for answer in answers)
    return [answer for answer in answers if isinstance(answer, Admitted)]


@pytest.mark.parametrize(
    ("limit", "count", "reason", "retry_seconds"),
    [
        (REQUESTS, 60, RequestReason.TOO_MANY_REQUESTS, 1.0),
        (TOKENS, 100, RequestReason.TOO_MANY_TOKENS, 864.0),
        (SLOTS, 50, RequestReason.TOO_MANY_CONCURRENT_REQUESTS, 1.0),
    ],
)
def test_a_gateway_admits_the_amount_and_says_when_the_next_fits(
    limit: ScopedLimit, count: int, reason: RequestReason, retry_seconds: float
) -> None:
    gateway, limits = GatewayLimits(), limits_of(limit)
    assert len(admitted(gateway, limits, 0.0)) == count
    refusal = gateway.take(limits, a_request(), 0.0)
    assert isinstance(refusal, LimitRefusal)
    assert (refusal.reason, refusal.retry_after_seconds) == (reason, retry_seconds)


def test_what_was_not_used_is_there_again_and_the_rest_refills() -> None:
    gateway, limits = GatewayLimits(), limits_of(REQUESTS, TOKENS, SLOTS)
    requests = admitted(gateway, limits, 0.0)
    assert len(requests) == 50
    for each in requests:
        gateway.settle(each, input_tokens=10, output_tokens=10)
    assert gateway.renewal(0.5) == NOTHING
    assert len(admitted(gateway, limits, 1.5)) == 11
    assert len(admitted(gateway, limits, 60.0)) == 39


def test_beside_limits_that_all_share_only_those_are_borrowed() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    shared = a_limit(Meter.REQUESTS, 30)
    limits = limits_of(REQUESTS, SLOTS, shared)
    answer = gateway.take(limits, a_request(), 0.0)
    assert isinstance(answer, BorrowRequest)
    assert [portion.limit for portion in answer.portions] == [shared]
    assert not answer.slots
    accounts.exchange(gateway, answer, 0.0)
    for _ in range(30):
        accounts.admit(gateway, limits, a_request(), 0.0)
    refusal = accounts.refuse(gateway, limits, a_request(), 0.0)
    assert refusal.exceeded == shared
    assert {each.limit for each in gateway.renewal(0.5).portions} <= {shared}


def test_what_nobody_uses_is_forgotten() -> None:
    gateway, limits = GatewayLimits(), limits_of(REQUESTS, TOKENS, SLOTS)
    for each in admitted(gateway, limits, 0.0):
        gateway.settle(each, input_tokens=500, output_tokens=0)
    for now in (1.0, 2.0, 90_000.0, 90_001.0):
        assert gateway.renewal(now) == NOTHING
    assert gateway == GatewayLimits(_renewed_at=90_001.0)
