"""Which requests a gateway admits, what it borrows for them, and what it says otherwise."""

from math import ceil

import pytest

from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.limits.account import BorrowRequest, PortionRequest
from tessera.domain.limits.gateway_limits import Admitted, Allowance, GatewayLimits
from tessera.domain.limits.scopes import ApplicableLimits, Meter
from tests.domain.limits.accounts import Accounts, a_limit, limits_of, slots_limit
from tests.gateway_builders import a_request

PER_MINUTE = limits_of(a_limit(Meter.REQUESTS, 60))


def test_without_limits_nothing_is_borrowed() -> None:
    answer = GatewayLimits().take(limits_of(), a_request(), 0.0)
    assert isinstance(answer, Admitted)
    assert (answer.requests, answer.tokens) == (None, None)


def test_a_rate_admits_its_amount_and_then_says_when_the_next_fits() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    for _ in range(60):
        accounts.admit(gateway, PER_MINUTE, a_request(), 0.0)
    refusal = accounts.refuse(gateway, PER_MINUTE, a_request(), 0.0)
    assert refusal.reason is RequestReason.TOO_MANY_REQUESTS
    assert refusal.exceeded is not None
    assert refusal.exceeded.phrase == "60 requests per minute"
    assert (refusal.limit, refusal.remaining, refusal.retry_after_seconds) == (60, 0, 1.0)
    accounts.refuse(gateway, PER_MINUTE, a_request(), 0.99)
    accounts.admit(gateway, PER_MINUTE, a_request(), 1.0)
    accounts.refuse(gateway, PER_MINUTE, a_request(), 1.0)


def test_two_gateways_share_a_rate() -> None:
    accounts, gateways = Accounts(), (GatewayLimits(), GatewayLimits())
    answers = [
        accounts.take(gateways[index % 2], PER_MINUTE, a_request(), index / 1000)
        for index in range(200)
    ]
    assert sum(isinstance(answer, Admitted) for answer in answers) == 60


def test_the_account_of_an_exhausted_limit_is_asked_five_times_a_second() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    for _ in range(61):
        accounts.take(gateway, PER_MINUTE, a_request(), 0.0)
    exchanges = accounts.exchanges
    for index in range(500):
        accounts.refuse(gateway, PER_MINUTE, a_request(), index / 1000)
    assert accounts.exchanges == exchanges + 2


def test_a_busy_gateway_borrows_for_a_second_and_not_for_a_request() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    limits = limits_of(a_limit(Meter.REQUESTS, 600_000), a_limit(Meter.TOTAL_TOKENS, 10**9))
    for index in range(10_000):
        now = index / 1000
        if index % 500 == 0:
            accounts.exchange(gateway, gateway.renewal(now), now)
        if index == 2000:
            warm = accounts.exchanges
        admitted = accounts.admit(gateway, limits, a_request(), now)
        gateway.settle(admitted, input_tokens=400, output_tokens=100)
    assert accounts.exchanges - warm <= 2 * 8 + 2


def test_a_portion_is_used_for_one_second_and_then_given_back() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    limits = limits_of(a_limit(Meter.REQUESTS, 6000))
    accounts.exchange(gateway, gateway.renewal(0.0), 0.0)
    for index in range(20):
        accounts.admit(gateway, limits, a_request(), index / 100)
    accounts.exchange(gateway, gateway.renewal(0.3), 0.3)
    assert isinstance(gateway.take(limits, a_request(), 1.29), Admitted)
    answer = gateway.take(limits, a_request(), 1.3)
    assert isinstance(answer, BorrowRequest)
    assert answer.portions[0].returned > 1


def test_what_is_no_longer_expected_is_given_back_once() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    limits = limits_of(a_limit(Meter.REQUESTS, 6000))
    gateway.renewal(0.0)
    for index in range(20):
        accounts.admit(gateway, limits, a_request(), index / 100)
    given_back = 0.0
    for tick in range(3, 13):
        renewal = gateway.renewal(tick / 10)
        given_back += sum(portion.returned for portion in renewal.portions)
        accounts.exchange(gateway, renewal, tick / 10)
    assert given_back > 0
    assert given_back == pytest.approx(accounts.lent - 20)


def test_a_request_is_admitted_within_all_limits_or_takes_of_none() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    limits = limits_of(a_limit(Meter.REQUESTS, 60), a_limit(Meter.TOTAL_TOKENS, 1000))
    accounts.admit(gateway, limits, a_request(400, 400), 0.0)
    refusal = accounts.refuse(gateway, limits, a_request(400, 400), 0.0)
    assert refusal.reason is RequestReason.TOO_MANY_TOKENS
    assert refusal.retry_after_seconds == pytest.approx(600 * 60 / 1000)
    admitted = accounts.admit(gateway, limits, a_request(10, 10), 0.0)
    assert admitted.requests is not None
    assert (admitted.requests.limit, admitted.requests.remaining) == (60, 58)
    assert admitted.requests.reset_seconds == pytest.approx(2)


def test_the_limit_that_takes_longest_refuses() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    limits = limits_of(a_limit(Meter.REQUESTS, 1, 1), a_limit(Meter.REQUESTS, 1, 86_400))
    accounts.admit(gateway, limits, a_request(), 0.0)
    refusal = accounts.refuse(gateway, limits, a_request(), 0.5)
    assert refusal.retry_after_seconds == pytest.approx(86_399.5)


def test_unused_tokens_are_available_to_the_next_request() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    limits = limits_of(a_limit(Meter.TOTAL_TOKENS, 1000))
    for index in range(10):
        admitted = accounts.admit(gateway, limits, a_request(100, 400), index / 100)
        gateway.settle(admitted, input_tokens=50, output_tokens=0)
    assert accounts.refuse(gateway, limits, a_request(100, 500), 0.1).remaining == 500 + 1


def test_settling_twice_returns_once() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    limits = limits_of(a_limit(Meter.TOTAL_TOKENS, 1000), slots_limit(2))
    admitted = accounts.admit(gateway, limits, a_request(400, 400), 0.0)
    for _ in range(5):
        gateway.settle(admitted, input_tokens=400, output_tokens=0)
    assert accounts.refuse(gateway, limits, a_request(400, 400), 0.0).remaining == 600
    for _ in range(2):
        accounts.admit(gateway, limits, a_request(1, 1), 0.0)
    accounts.refuse(gateway, limits, a_request(1, 1), 0.0)


def test_more_than_was_reserved_is_owed() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    limits = limits_of(a_limit(Meter.INPUT_TOKENS, 600))
    admitted = accounts.admit(gateway, limits, a_request(600), 0.0)
    gateway.settle(admitted, input_tokens=900, output_tokens=5)
    refusal = accounts.refuse(gateway, limits, a_request(60), 30.0)
    assert refusal.remaining == 0
    assert refusal.retry_after_seconds == pytest.approx(6)


def test_concurrent_requests_are_counted_over_gateways() -> None:
    accounts, gateways = Accounts(), {"a": GatewayLimits(), "b": GatewayLimits()}
    limits = limits_of(slots_limit(3))
    admitted = [
        accounts.admit(gateways[name], limits, a_request(), 0.0, name) for name in ("a", "a", "b")
    ]
    for name, gateway in gateways.items():
        refusal = accounts.refuse(gateway, limits, a_request(), 0.1, name)
        assert refusal.reason is RequestReason.TOO_MANY_CONCURRENT_REQUESTS
        assert refusal.retry_after_seconds == 1.0
    gateways["a"].settle(admitted[0], input_tokens=1, output_tokens=1)
    accounts.exchange(gateways["a"], gateways["a"].renewal(0.5), 0.5, name="a")
    accounts.exchange(gateways["a"], gateways["a"].renewal(1.0), 1.0, name="a")
    accounts.admit(gateways["b"], limits, a_request(), 1.0, "b")


def test_requests_that_ask_for_a_slot_at_once_all_get_one() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    limits = limits_of(slots_limit(40), a_limit(Meter.REQUESTS, 6000))
    asked = [gateway.take(limits, a_request(), 0.0) for _ in range(50)]
    for question in asked:
        assert isinstance(question, BorrowRequest)
        accounts.exchange(gateway, question, 0.0)
    admitted = [gateway.take(limits, a_request(), 0.0) for _ in range(50)]
    assert sum(isinstance(answer, Admitted) for answer in admitted) == 40


def test_slots_that_are_given_back_are_not_used_before_the_answer() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    limits = limits_of(slots_limit(40))
    admitted = accounts.admit(gateway, limits, a_request(), 0.0)
    gateway.settle(admitted, input_tokens=1, output_tokens=1)
    accounts.exchange(gateway, gateway.renewal(0.5), 0.5)
    [slots] = gateway.renewal(1.0).slots
    assert (slots.in_use, slots.want) == (0, 0)
    assert isinstance(gateway.take(limits, a_request(), 1.0), BorrowRequest)


def test_a_lease_counts_from_its_question() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    limits = limits_of(slots_limit(40))
    question = gateway.take(limits, a_request(), 0.0)
    assert isinstance(question, BorrowRequest)
    accounts.exchange(gateway, question, 2.0)
    assert isinstance(gateway.take(limits, a_request(), 3.0), BorrowRequest)


def test_a_burst_borrows_ahead_of_itself() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    limits = limits_of(a_limit(Meter.REQUESTS, 60_000))
    for _ in range(1000):
        accounts.admit(gateway, limits, a_request(), 0.0)
    assert accounts.exchanges <= 12


def test_a_gateway_that_cannot_renew_admits_nothing_more() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    limits = limits_of(slots_limit(3), a_limit(Meter.REQUESTS, 60))
    accounts.admit(gateway, limits, a_request(), 0.0)
    answer = gateway.take(limits, a_request(), 4.0)
    assert isinstance(answer, BorrowRequest)
    assert answer.slots
    assert answer.portions


@pytest.mark.parametrize(
    ("limits", "allowed"),
    [
        (limits_of(), 500),
        (limits_of(max_output_tokens=200), 200),
        (limits_of(max_context_tokens=550), 450),
        (limits_of(max_context_tokens=150), 50),
        (limits_of(a_limit(Meter.OUTPUT_TOKENS, 300)), 300),
        (limits_of(a_limit(Meter.TOTAL_TOKENS, 180)), 80),
    ],
)
def test_an_answer_is_reduced_to_what_one_request_may_have(
    limits: ApplicableLimits, allowed: int
) -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    assert accounts.admit(gateway, limits, a_request(100, 500), 0.0).max_output_tokens == allowed


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (limits_of(max_context_tokens=100), RequestReason.CONTEXT_TOO_LONG),
        (limits_of(a_limit(Meter.INPUT_TOKENS, 99)), RequestReason.REQUEST_TOO_LARGE),
        (limits_of(a_limit(Meter.TOTAL_TOKENS, 100)), RequestReason.REQUEST_TOO_LARGE),
        (limits_of(a_limit(Meter.REQUESTS, 0)), RequestReason.REQUEST_TOO_LARGE),
    ],
)
def test_a_request_that_never_fits_has_no_retry(
    limits: ApplicableLimits, reason: RequestReason
) -> None:
    refusal = Accounts().refuse(GatewayLimits(), limits, a_request(100, 500), 0.0)
    assert (refusal.reason, refusal.retry_after_seconds) == (reason, None)


def test_requests_without_an_answer_need_no_output() -> None:
    limits = limits_of(a_limit(Meter.TOTAL_TOKENS, 100), max_context_tokens=100)
    admitted = Accounts().admit(GatewayLimits(), limits, a_request(100, 0), 0.0)
    assert admitted.max_output_tokens == 0


def test_the_scarcest_limit_of_tokens_is_named() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    limits = limits_of(a_limit(Meter.INPUT_TOKENS, 10_000), a_limit(Meter.TOTAL_TOKENS, 1000))
    admitted = accounts.admit(gateway, limits, a_request(100, 400), 0.0)
    assert admitted.tokens == Allowance(limit=1000, remaining=500, reset_seconds=30.0)


def test_a_limit_that_nobody_uses_is_returned_and_forgotten() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    limits = limits_of(a_limit(Meter.REQUESTS, 600), slots_limit(9))
    for _ in range(50):
        admitted = accounts.admit(gateway, limits, a_request(), 0.0)
        gateway.settle(admitted, input_tokens=1, output_tokens=1)
    for tick in range(1, 40):
        accounts.exchange(gateway, gateway.renewal(tick / 2), tick / 2)
    nothing = PortionRequest(limit=limits.limits[0])
    assert accounts.rates["Tenant/team-a/Requests/60"].borrow(nothing, 5.0).left == 600
    assert accounts.slots["Tenant/team-a/ConcurrentRequests/0"].leases == {}
    assert gateway == GatewayLimits(_renewed_at=19.5)


def test_a_larger_limit_applies_to_the_next_portion() -> None:
    accounts, gateway = Accounts(), GatewayLimits()
    for _ in range(60):
        accounts.admit(gateway, PER_MINUTE, a_request(), 0.0)
    raised = limits_of(a_limit(Meter.REQUESTS, 6000))
    assert ceil(accounts.refuse(gateway, raised, a_request(), 0.0).retry_after_seconds or 0) == 1
    accounts.admit(gateway, raised, a_request(), 0.1)


def test_answers_for_forgotten_limits_are_ignored() -> None:
    gateway, accounts = GatewayLimits(), Accounts()
    request = PortionRequest(limit=a_limit(Meter.REQUESTS, 60), need=1)
    accounts.exchange(gateway, BorrowRequest(portions=(request,)), 0.0)
    assert gateway == GatewayLimits()
