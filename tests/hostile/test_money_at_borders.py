"""Attacks on money at the borders of time: ends of windows in six zones, prices between edits."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from tessera.api.price_list import PriceListSpec
from tessera.api.ref import Ref
from tessera.api.tenant_budget import WindowName
from tessera.domain.charge.account import window_at
from tessera.domain.charge.gateway_charges import ChargeRefusal, ChargeReservation
from tessera.domain.charge.price_book import SEEN_SECONDS, PriceListBook, revised_book
from tessera.domain.observed.price_lists import ObservedPriceList
from tests.domain.charge.fleet import ChargeFleet, a_scope

# Half-hour and quarter-hour offsets, clocks that change by half an hour, at midnight, and never.
ZONES = (
    *("UTC", "Europe/Berlin", "America/Santiago", "Australia/Lord_Howe", "Asia/Kathmandu"),
    "Pacific/Apia",
)
WINDOWS: tuple[WindowName, ...] = ("Hour", "Day", "Week", "Month")
AMOUNT, CHARGE = 50, 7


def borders(zone: str, window: WindowName) -> Sequence[int]:
    """Return ends of windows around the days on which clocks change, and of a year."""
    limit = a_scope(window=window, time_zone=zone).limit
    days = [(2026, 1, 1), (2026, 3, 29), (2026, 4, 5), (2026, 9, 6), (2026, 10, 25), (2026, 12, 31)]
    ends = []
    for day in days:
        noon = datetime(*day, 12, tzinfo=ZoneInfo(zone)).timestamp()
        for at in (noon - 86_400, noon - 43_200, noon):
            start, end = window_at(limit, at)
            assert start <= at < end
            # Windows follow each other without a gap.
            assert window_at(limit, end)[0] == end
            assert window_at(limit, end - 1) == (start, end)
            ends.append(end)
    return sorted({*ends})


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("zone", ZONES)
def test_no_window_gets_more_than_its_amount_at_any_end(zone: str, window: WindowName) -> None:
    for number, end in enumerate(borders(zone, window)):
        fleet = ChargeFleet(clock_offset=float(end - 3))
        members = [fleet.start() for _ in range(2)]
        scopes = (
            a_scope(AMOUNT, window=window, time_zone=zone),
            a_scope(3 * AMOUNT, "month", "Month", time_zone=zone),
        )
        answers, over = list[bool](), list[tuple[int, ChargeReservation]]()
        for tick in range(24):
            fleet.now = tick / 4
            index = (tick + number) % 2
            answer = fleet.reserve(members[index], scopes, CHARGE)
            answers.append(isinstance(answer, ChargeReservation))
            if isinstance(answer, ChargeRefusal):
                continue
            if len(over) < 2:
                over.append((index, answer))
            else:
                charges = fleet.settle(members[index], answer, CHARGE)
                assert sorted(nanos for _, _, nanos in charges) == [CHARGE, CHARGE]
        for index, running in over:
            # Requests that ran over the end pay in the window in which they began, once each.
            assert {n for _, _, n in fleet.settle(members[index], running, CHARGE)} == {CHARGE}
        by_window = {
            key: nanos for key, nanos in fleet.charged.items() if key.scope == scopes[0].key
        }
        assert all(nanos <= AMOUNT for nanos in by_window.values())
        assert {key.start for key in by_window} == {window_at(scopes[0].limit, end - 1)[0], end}
        assert answers[12], "the next window has money at once"
        assert sum(by_window.values()) == answers.count(True) * CHARGE


def a_list(price: int) -> ObservedPriceList:
    entry = {"from": "2026-01-01", "models": ["*"], "input": str(price), "output": "1"}
    return ObservedPriceList(
        ref=Ref("", "standard"), spec=PriceListSpec.model_validate({"entries": [entry]})
    )


@pytest.mark.parametrize("steps_back", [False, True])
def test_a_price_is_that_of_the_last_edit_of_a_minute_ago(steps_back: bool) -> None:
    """A clock that steps back makes a price older, and never one that was in no list."""
    for seed in range(30):
        dice = random.Random(seed)  # noqa: S311 - no secret
        now = datetime(2026, 6, 1, tzinfo=UTC).timestamp()
        book, edits = PriceListBook(), list[tuple[float, int]]()
        for price in range(1, 40):
            now += dice.choice((0.0, 1.0, 30.0, SEEN_SECONDS, 200.0))
            if steps_back and dice.random() < 0.2:
                now -= 90.0
            book = revised_book(book, [a_list(price)], now)
            edits.append((now, price))
            at = now + dice.choice((0.0, 10.0, SEEN_SECONDS))
            price_then = book.find("USD", "team-a", ["chat"], at)
            assert price_then is not None
            counting = [1, *(each for seen, each in edits[1:] if seen + SEEN_SECONDS <= at)]
            if steps_back:
                assert 1 <= price_then.input // 10**9 <= price
            else:
                assert price_then.input == counting[-1] * 10**9
