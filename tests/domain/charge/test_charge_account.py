"""What the account of one window lends, and what messages, clocks and restores change of it."""

import json
from datetime import datetime
from itertools import count
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tessera.api.tenant_budget import WindowName
from tessera.domain.charge.account import CLOSED_NAMES, ChargeAccount, window_at
from tessera.domain.charge.exchange import ChargeAsk, LendingOutcome
from tests.domain.charge.fleet import NOON, a_scope, with_limit

SCOPE = a_scope(100)
START, END = window_at(SCOPE.limit, NOON)
BERLIN = ZoneInfo("Europe/Berlin")
numbers = count(1)


def an_ask(need: int = 0, **fields: Any) -> ChargeAsk:
    defaults: dict[str, Any] = {
        "scope": SCOPE,
        "start": START,
        "number": next(numbers),
        "ceiling": 0,
        "used": 0,
        "reserved": 0,
        "want": need,
    }
    return ChargeAsk(need=need, **defaults | fields)


def outcome(account: ChargeAccount, gateway: str, ask: ChargeAsk, now: float = NOON) -> str:
    return account.exchange(gateway, ask, now).outcome.name


def test_what_is_lent_and_settled_stays_within_the_limit() -> None:
    account = ChargeAccount()
    answer = account.exchange("a", an_ask(10, want=30), NOON)
    assert (answer.ceiling, answer.lent, answer.scarce) == (30, 30, False)
    answer = account.exchange("b", an_ask(60, want=70), NOON)
    assert (answer.ceiling, answer.lent, answer.scarce) == (60, 90, True)
    assert outcome(account, "c", an_ask(11)) == "WAIT"
    assert outcome(account, "c", an_ask(101)) == "NOTHING"


def test_a_round_ends_when_all_that_live_have_returned_and_serves_all_who_wait() -> None:
    account = ChargeAccount()
    account.exchange("a", an_ask(5, want=10), NOON)
    account.exchange("b", an_ask(5, want=10), NOON)
    assert [outcome(account, gateway, an_ask(88)) for gateway in "cd"] == ["WAIT", "WAIT"]
    account.exchange("a", an_ask(ceiling=5, reserved=5), NOON + 0.2)
    assert outcome(account, "c", an_ask(88), NOON + 0.2) == "WAIT"
    account.exchange("b", an_ask(ceiling=5, reserved=5), NOON + 0.3)
    assert outcome(account, "c", an_ask(88), NOON + 0.3) == "GRANTED"
    assert outcome(account, "d", an_ask(88), NOON + 0.3) == "RESERVED"


@pytest.mark.parametrize("clock", [0.0, -86400.0])
def test_a_round_takes_a_second_at_most(clock: float) -> None:
    # The round of before the clock was set.
    account = ChargeAccount(round_at=NOON + 3)
    start, _ = window_at(SCOPE.limit, NOON + clock)
    account.exchange("a", an_ask(10, want=40, start=start), NOON + clock)
    for seconds, expected in ((0.0, "WAIT"), (0.9, "WAIT"), (1.0, "RESERVED"), (2.0, "WAIT")):
        now = NOON + clock + seconds
        assert outcome(account, "b", an_ask(70, start=start), now) == expected


def test_a_gateway_that_does_not_renew_is_not_waited_for_and_not_lent_again() -> None:
    account = ChargeAccount()
    account.exchange("a", an_ask(10, want=40), NOON)
    assert outcome(account, "b", an_ask(61), NOON + 3) == "RESERVED"
    assert outcome(account, "b", an_ask(60), NOON + 3) == "GRANTED"


@pytest.mark.parametrize(
    ("window", "day", "hours"),
    [
        ("Day", datetime(2026, 3, 29, 12, tzinfo=BERLIN), 23),
        ("Day", datetime(2026, 10, 25, 12, tzinfo=BERLIN), 25),
        ("Month", datetime(2028, 2, 29, 12, tzinfo=BERLIN), 29 * 24),
        ("Month", datetime(2026, 3, 1, 0, tzinfo=BERLIN), 31 * 24 - 1),
    ],
)
def test_nothing_is_lent_outside_of_the_window_in_its_time_zone(
    window: WindowName, day: datetime, hours: int
) -> None:
    scope = a_scope(100, window=window)
    start, end = window_at(scope.limit, day.timestamp())
    assert end - start == hours * 3600
    for now, expected in (
        (start - 1, "ENDED"),
        (start, "GRANTED"),
        (end - 1, "GRANTED"),
        (end, "ENDED"),
    ):
        ask = an_ask(1, scope=scope, start=start)
        assert outcome(ChargeAccount(), "a", ask, now) == expected
    between = an_ask(1, scope=scope, start=start + 3600)
    assert outcome(ChargeAccount(), "a", between, start + 3600) == "ENDED"


def test_what_was_charged_in_a_window_that_ended_still_counts() -> None:
    account = ChargeAccount()
    account.exchange("a", an_ask(30), NOON)
    account.exchange("a", an_ask(ceiling=30, used=20, reserved=10), END + 5.0)
    account.record("a", 25)
    assert (account.settled, account.lent) == (25, 5)


def test_a_repetition_and_an_older_message_change_nothing() -> None:
    account = ChargeAccount()
    early, late = an_ask(10), an_ask(50)
    first = account.exchange("a", late, NOON)
    state = account.to_json()
    assert account.exchange("a", late, NOON) == first
    assert account.exchange("a", early, NOON).outcome is LendingOutcome.GRANTED
    assert account.to_json() == state


def test_a_closed_gateway_leaves_what_it_was_charged_and_its_late_messages_count_no_more() -> None:
    account = ChargeAccount()
    account.exchange("a", an_ask(50), NOON)
    account.exchange("a", an_ask(ceiling=50, used=20, reserved=30), NOON)
    account.record("a", 15)
    account.close("a")
    assert (account.settled, account.lent, account.restored) == (20, 0, 5)
    answer = account.exchange("a", an_ask(10, ceiling=50, used=20), NOON)
    assert (answer.outcome, answer.ceiling, account.lent) == (LendingOutcome.NOTHING, 0, 0)
    account.record("a", 4)
    assert (account.settled, account.lent) == (24, 0)
    for number in range(2 * CLOSED_NAMES):
        account.close(f"b-{number}")
    assert len(account.closed_names) == CLOSED_NAMES


def test_a_restored_account_takes_what_gateways_claim_and_the_highest_sum_they_saw() -> None:
    account = ChargeAccount()
    answer = account.exchange("a", an_ask(5, ceiling=60, used=40, reserved=20, seen=70), NOON)
    assert (answer.settled, answer.ceiling, account.missing) == (70, 65, 30)
    assert account.lent + account.settled <= 100


def test_an_older_generation_neither_lends_nor_sets_the_limit() -> None:
    account = ChargeAccount()
    newer = with_limit(SCOPE, 20)
    account.exchange("a", an_ask(scope=newer), NOON)
    assert outcome(account, "b", an_ask(1)) == "OLD_GENERATION"
    assert outcome(account, "b", an_ask(20, scope=newer)) == "GRANTED"
    raised = with_limit(newer, 50, newer.limit.generation)
    assert outcome(account, "c", an_ask(30, scope=raised)) == "GRANTED"


def test_the_state_keeps_each_integer() -> None:
    account = ChargeAccount()
    scope = a_scope(10**30)
    account.exchange("a", an_ask(10**29 + 1, scope=scope), NOON)
    account.record("b", 10**28 + 3)
    account.close("b")
    assert ChargeAccount.from_json(json.loads(json.dumps(account.to_json()))) == account
