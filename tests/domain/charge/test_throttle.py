"""Limits that are spread over the rest of their windows."""

from datetime import UTC, datetime
from typing import Any

import pytest

from tessera.api.rate_limits import RateLimitsSpec
from tessera.domain.charge.account import ChargeAccount
from tessera.domain.charge.gateway_charges import (
    ChargeRefusal,
    ChargeReservation,
    ChargesNeeded,
    GatewayCharges,
)
from tessera.domain.charge.scopes import ChargeLimit, ChargeScope
from tessera.domain.charge.throttle import ThrottleBucket, ThrottleTerms
from tessera.domain.gateway.build import GatewayObservations, build_directory
from tests.builders import a_budget

START = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
HOUR = 3600
LIMIT = 3_600_000


def a_scope(throttle: ThrottleTerms | None) -> ChargeScope:
    limit = ChargeLimit(
        budget="team-a",
        generation=1,
        name="charge-hour",
        window="Hour",
        amount=LIMIT,
        currency="USD",
        time_zone="UTC",
        throttle=throttle,
    )
    return ChargeScope(key="team-a/charge-hour", limit=limit)


class Fleet:
    """Gateways that send a request of 1,000 each second each, and renew as they ask."""

    def __init__(self, gateways: int, throttle: ThrottleTerms | None) -> None:
        self.scope, self.account = a_scope(throttle), ChargeAccount()
        self.gateways = [GatewayCharges(clock_offset=START) for _ in range(gateways)]
        self.refusals: list[ChargeRefusal] = []
        self.spent_by_minute: list[int] = []

    def send(self, index: int, asks: Any, now: float) -> None:
        while asks:
            name = f"gateway-{index}"
            answers = [self.account.exchange(name, ask, START + now) for ask in asks]
            asks = self.gateways[index].receive(answers, now)

    def request(self, index: int, now: float) -> int:
        """Return what was charged; of a refusal nothing."""
        gateway = self.gateways[index]
        for attempt in range(40):
            at = now + attempt * 0.002
            answer = gateway.reserve((self.scope,), 1000, 1000, at)
            match answer:
                case ChargesNeeded():
                    self.send(index, answer.asks, at)
                case ChargeReservation():
                    gateway.settle(answer, 1000)
                    return 1000
                case ChargeRefusal():
                    self.refusals.append(answer)
                    return 0
        return 0

    def run(self, seconds: int) -> int:
        total = 0
        for second in range(seconds):
            if second % 60 == 0:
                self.spent_by_minute.append(0)
            for index in range(len(self.gateways)):
                spent = self.request(index, float(second))
                self.spent_by_minute[-1] += spent
                total += spent
            for index, gateway in enumerate(self.gateways):
                self.send(index, gateway.renewal(second + 0.5), second + 0.5)
        return total


def test_a_nearly_spent_limit_lasts_until_its_window_ends() -> None:
    """Two gateways would spend it in half of the hour."""
    fleet = Fleet(2, ThrottleTerms(50))
    total = fleet.run(HOUR)
    assert 0.97 * LIMIT <= total <= LIMIT
    # Half of it goes in the first quarter, the rest in steady minutes.
    assert sum(fleet.spent_by_minute[:15]) >= 0.49 * LIMIT
    rest = fleet.spent_by_minute[20:59]
    mean = sum(rest) / len(rest)
    assert all(0.5 * mean <= minute <= 1.6 * mean for minute in rest), rest
    # The others come when all of it is spent.
    throttled = [each for each in fleet.refusals if each.throttled_seconds]
    assert len(throttled) > 0.99 * len(fleet.refusals)
    assert all(each.is_reserved for each in throttled)
    free = Fleet(2, None)
    free.run(HOUR)
    assert sum(free.spent_by_minute[31:]) == 0


def test_a_floor_lets_it_be_spent_faster() -> None:
    slow, fast = Fleet(2, ThrottleTerms(1)), Fleet(2, ThrottleTerms(1, floor=2 * LIMIT))
    slow.run(600)
    fast.run(600)
    assert sum(fast.spent_by_minute) >= 1.5 * sum(slow.spent_by_minute)


def test_a_running_request_is_not_throttled() -> None:
    fleet = Fleet(1, ThrottleTerms(0))
    [gateway] = fleet.gateways

    def reserve(running: ChargeReservation | None, nanos: int, now: float) -> Any:
        for _ in range(2):
            if running is None:
                answer = gateway.reserve((fleet.scope,), nanos, nanos, now)
            else:
                answer = gateway.top_up(running, nanos, now)
            if isinstance(answer, ChargesNeeded):
                fleet.send(0, answer.asks, now)
        return answer

    # The bucket holds a minute of 1,000 a second.
    running = reserve(None, 61_000, 0.0)
    assert isinstance(running, ChargeReservation)
    [refusal] = [reserve(None, 1000, 0.5)]
    assert isinstance(refusal, ChargeRefusal)
    assert refusal.throttled_seconds == pytest.approx(0.5, abs=0.1)
    assert isinstance(reserve(running, 5000, 0.5), ChargeReservation)
    assert isinstance(reserve(None, 1000, 1.6), ChargeRefusal)
    # What it gives back is there again, once the account hears of it.
    gateway.settle(running, 1000)
    fleet.send(0, gateway.renewal(3.0), 3.0)
    assert isinstance(reserve(None, 1000, 3.0), ChargeReservation)


@pytest.mark.parametrize(
    ("settled", "seconds_left", "rate"),
    [(799, 100, None), (800, 100, 2.0), (800, 0, 200.0), (900, 1000, 1.0), (1000, 10, 1.0)],
)
def test_the_rate_is_what_is_left_by_the_time_left_and_no_lower_than_the_floor(
    settled: int, seconds_left: float, rate: float | None
) -> None:
    assert ThrottleTerms(80, floor=3600).rate(settled, 1000, seconds_left) == rate


def test_a_bucket_is_filled_by_time_and_by_what_is_returned() -> None:
    bucket = ThrottleBucket(10.0, 100, 0.0)
    assert bucket.wait_seconds(130, 1.0, 0.0) == 20
    assert bucket.wait_seconds(130, 1.0, 15.0) == 5
    assert bucket.wait_seconds(120, 1.0, 15.0) == 0
    assert bucket.wait_seconds(120, 1.0, 10_000.0) == 0
    assert bucket.level == 60
    assert bucket.wait_seconds(200, 0.0, 10_000.0) == float("inf")


def test_gateways_throttle_by_the_first_threshold_of_the_spec() -> None:
    limits = [{"window": "Hour", "amount": "1", "basis": "Charge"}]
    actions = [{"at": 95, "action": "Throttle"}, {"at": 90, "action": "Throttle", "floor": "0.5"}]
    for each, expected in ((actions, ThrottleTerms(90, 5 * 10**8)), ([], None)):
        observed = GatewayObservations(budgets=(a_budget(limits=limits, actions=each),))
        directory = build_directory(observed, RateLimitsSpec())
        assert directory.tenants["team-a"].charge_limits[0].throttle == expected
