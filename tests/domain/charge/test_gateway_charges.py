"""What gateways reserve, top up and settle; with scenes in which budgets of others failed."""

import pytest

from tessera.api.tenant_budget import WindowName
from tessera.domain.charge.account import window_at
from tessera.domain.charge.exchange import AccountKey
from tessera.domain.charge.gateway_charges import (
    LEAST_SECONDS,
    RENEWAL_SECONDS,
    UNLIMITED,
    ChargeRefusal,
    ChargeReservation,
    ChargesNeeded,
    GatewayCharges,
)
from tessera.domain.charge.scopes import OTHER_MONTH
from tessera.domain.usage.statement import month_of
from tests.domain.charge.fleet import NOON, ChargeFleet, Member, a_scope, with_limit

DAY = (a_scope(1000),)


def a_fleet(gateways: int = 1) -> tuple[ChargeFleet, list[Member]]:
    fleet = ChargeFleet()
    return fleet, [fleet.start() for _ in range(gateways)]


# LiteLLM #34732, ai-gateway #680: parallel requests pass a budget that has money for one.


@pytest.mark.parametrize("gateways", [1, 4])
def test_64_requests_at_once_against_money_for_one_admit_one(gateways: int) -> None:
    fleet, members = a_fleet(gateways)
    waiting = [members[index % gateways] for index in range(64)]
    admitted: list[tuple[Member, ChargeReservation]] = []
    for _ in range(200):
        refused = []
        asks = []
        for member in waiting:
            answer = member.charges.reserve(DAY, 600, 600, fleet.now)
            if isinstance(answer, ChargesNeeded):
                asks.append((member, answer.asks))
            elif isinstance(answer, ChargeReservation):
                admitted.append((member, answer))
                continue
            else:
                assert answer.is_reserved
            refused.append(member)
        for member, needed in asks:
            fleet.send(member, needed)
        waiting = refused
        fleet.now += 0.05
    ((member, reservation),) = admitted
    assert (reservation.nanos, len(waiting)) == (600, 63)
    member.charges.settle(reservation, 600)
    fleet.renew(2.5)
    refusal = fleet.refuse(members[0], DAY, 600)
    assert (refusal.left, refusal.is_reserved) == (400, False)


# LiteLLM #40095: the first requests of an unknown user pass.


def test_the_first_request_of_a_new_member_is_within_its_limit() -> None:
    fleet, (member,) = a_fleet()
    scopes = (*DAY, a_scope(10, "each-key/Key/new"))
    refusal = fleet.refuse(member, scopes, 11)
    assert refusal.scope.key == "team-a/each-key/Key/new"
    assert fleet.admit(member, DAY, 1000).nanos == 1000


# LiteLLM #26672, #11962: of several limits only one is looked at.


def test_all_scopes_hold_together_and_a_refused_request_takes_from_none() -> None:
    fleet, (member,) = a_fleet()
    scopes = (*DAY, a_scope(100, "month", "Month"))
    fleet.spend(member, scopes, 60)
    assert fleet.refuse(member, scopes, 50).scope.key == "team-a/month"
    assert fleet.admit(member, DAY, 940).nanos == 940


# LiteLLM #27639, #36926: reservations leak, and refuse what was never spent.


def test_an_aborted_request_leaves_all_that_it_was_not_charged() -> None:
    fleet, members = a_fleet(2)
    for number in range(50):
        member = members[number % 2]
        fleet.settle(member, fleet.admit(member, DAY, 900), 0)
        fleet.renew()
    assert fleet.account(DAY[0]).settled == 0
    assert fleet.admit(members[0], DAY, 1000).nanos == 1000


# LiteLLM #30460: counters inflate across pods, by messages that come twice.


def test_a_repeated_message_changes_nothing() -> None:
    fleet, (member,) = a_fleet()
    needed = member.charges.reserve(DAY, 100, 100, fleet.now)
    assert isinstance(needed, ChargesNeeded)
    first, second = (fleet.answer(member, needed.asks[0]) for _ in range(2))
    assert first == second
    for answer in (first, second, first):
        member.charges.receive([answer], fleet.now)
    assert fleet.account(DAY[0]).lent == 100
    fleet.spend(member, DAY, 100)
    for _ in range(3):
        fleet.accounts.record("record", member.name, (("team-a/day", 0, 5),))
    assert fleet.accounts.all()[AccountKey("team-a/day", 0)].settled == 5


def test_a_message_that_was_passed_by_a_later_one_changes_nothing() -> None:
    fleet, (member,) = a_fleet()
    early = member.charges.reserve(DAY, 100, 100, fleet.now)
    fleet.now += 2
    late = member.charges.reserve(DAY, 500, 500, fleet.now)
    assert isinstance(early, ChargesNeeded)
    assert isinstance(late, ChargesNeeded)
    fleet.send(member, late.asks)
    overtaken = fleet.answer(member, early.asks[0])
    member.charges.receive([overtaken], fleet.now)
    assert fleet.account(DAY[0]).lent == 500
    assert isinstance(member.charges.reserve(DAY, 500, 500, fleet.now), ChargeReservation)


# LiteLLM #40291: a limit holds once for each replica.


def test_four_gateways_together_spend_one_limit() -> None:
    fleet, members = a_fleet(4)
    spent = 0
    for number in range(200):
        answer = fleet.reserve(members[number % 4], DAY, 7)
        if isinstance(answer, ChargeReservation):
            spent += 7
            fleet.settle(members[number % 4], answer, 7)
        fleet.renew(0.25)
    assert spent == 994


# LiteLLM #40020: a counter in the process never begins again; #24675: copies are not reset.


@pytest.mark.parametrize("window", ["Hour", "Day", "Month"])
def test_a_new_window_begins_at_every_gateway_and_requests_pay_where_they_began(
    window: WindowName,
) -> None:
    fleet, members = a_fleet(2)
    scopes = (a_scope(1000, window.lower(), window),)
    old = fleet.admit(members[0], scopes, 600)
    fleet.spend(members[1], scopes, 400)
    end = fleet.refuse(members[1], scopes, 600).end
    fleet.now += end - fleet.now - fleet.clock_offset
    fleet.spend(members[1], scopes, 1000 - 200)
    assert isinstance(fleet.top_up(members[0], old, 200), ChargeReservation)
    (_, first, before), (_, second, after) = fleet.settle(members[0], old, 750)
    assert (before, after, second) == (600, 150, end)
    assert first < end


# LiteLLM #38647: bursts of large maxima fill the budget while nearly nothing is spent.


def test_what_running_requests_have_reserved_is_waited_for() -> None:
    fleet, members = a_fleet(2)
    running = [fleet.admit(members[0], DAY, 250) for _ in range(4)]
    assert fleet.refuse(members[1], DAY, 250).is_reserved
    fleet.settle(members[0], running[0], 10)
    fleet.renew()
    assert fleet.admit(members[1], DAY, 240).nanos == 240


# LiteLLM PR #30039: errors of the store lose spend, or let all pass.


def test_without_the_store_a_gateway_spends_what_it_was_lent_and_no_more() -> None:
    fleet, (member,) = a_fleet()
    for _ in range(4):
        fleet.spend(member, (a_scope(100_000),), 1000)
        fleet.renew(0.1)
    spent = 0
    for _ in range(100):
        fleet.now += 60
        answer = member.charges.reserve((a_scope(100_000),), 1000, 1000, fleet.now)
        if isinstance(answer, ChargeReservation):
            member.charges.settle(answer, 1000)
            spent += 1000
        else:
            assert isinstance(answer, ChargesNeeded)
    assert 1000 <= spent <= 5000


# LiteLLM #34492: a limit that is changed inherits or forgets what was spent.


def test_a_lower_limit_lends_nothing_until_it_holds_and_cuts_nothing_that_runs() -> None:
    fleet, (member,) = a_fleet()
    running = fleet.admit(member, DAY, 500)
    lower = (with_limit(DAY[0], 300),)
    assert fleet.refuse(member, lower, 1, 1).is_reserved
    assert len(fleet.settle(member, running, 400)) == 1
    fleet.renew(2.5)
    refusal = fleet.refuse(member, lower, 1)
    assert (refusal.is_reserved, refusal.left) == (False, 0)
    assert fleet.admit(member, (with_limit(lower[0], 600),), 200).nanos == 200


def test_an_older_generation_lends_nothing() -> None:
    fleet, (member, late) = a_fleet(2)
    fleet.spend(member, (with_limit(DAY[0], 300),), 100)
    answer = late.charges.reserve(DAY, 150, 150, fleet.now)
    assert isinstance(answer, ChargesNeeded)
    fleet.send(late, answer.asks)
    waiting = late.charges.reserve(DAY, 150, 150, fleet.now)
    assert isinstance(waiting, ChargesNeeded)
    assert (waiting.asks, waiting.wait_seconds > 0) == ((), True)
    assert fleet.account(DAY[0]).limit == 300


# What gateways that end take with them


def test_a_gateway_killed_20_times_in_a_window_is_lent_nothing_while_dead() -> None:
    fleet, (member,) = a_fleet()
    for _ in range(20):
        fleet.admit(member, DAY, 30)
        fleet.spend(member, DAY, 10)
        fleet.renew(0.1)
        lent = fleet.account(DAY[0]).lent
        fleet.crash(member)
        dead, member = member, fleet.start(seen=dict(member.charges.seen))
        fleet.now += 60
        fleet.refuse(member, DAY, 1000 - fleet.account(DAY[0]).settled - lent + 1)
        fleet.recover(dead)
        for _ in range(12):
            fleet.renew()
        assert fleet.account(DAY[0]).lent == 0
    account = fleet.account(DAY[0])
    assert (account.settled, account.missing, len(account.gateways)) == (200, 0, 1)
    assert fleet.admit(member, DAY, 800).nanos == 800


def test_of_a_lost_volume_nothing_is_lent_again_in_its_window() -> None:
    fleet, (dead, member) = a_fleet(2)
    fleet.admit(dead, DAY, 300)
    fleet.crash(dead)
    fleet.now += 3600
    assert fleet.refuse(member, DAY, 701).is_reserved
    assert fleet.admit(member, DAY, 700).nanos == 700


def test_after_a_restore_the_highest_sum_that_a_gateway_saw_counts() -> None:
    fleet, (dead, member) = a_fleet(2)
    fleet.spend(dead, DAY, 100)
    backup = fleet.accounts.backup()
    fleet.spend(dead, DAY, 500)
    fleet.recover(dead)
    fleet.crash(dead)
    fleet.spend(member, DAY, 50)
    fleet.renew(2.5)
    fleet.accounts.restore(backup)
    fleet.recover(dead)
    fleet.renew(2.5)
    refusal = fleet.refuse(member, DAY, 400)
    assert (refusal.left, fleet.account(DAY[0]).missing) == (350, 600)


# What is scarce


def test_where_charges_leave_less_a_request_gets_what_is_left_and_never_too_little() -> None:
    fleet, (member,) = a_fleet()
    fleet.spend(member, DAY, 700)
    assert fleet.admit(member, DAY, 500, 200).nanos == 300
    assert fleet.refuse(member, DAY, 500, 200).is_reserved
    assert not fleet.refuse(member, DAY, 500, 301).is_reserved


def test_nothing_left_stands_for_a_second_without_an_ask_and_ends_with_a_raise() -> None:
    fleet, (member,) = a_fleet()
    fleet.spend(member, DAY, 990)
    fleet.refuse(member, DAY, 100)
    asks = fleet.asks
    for _ in range(100):
        fleet.refuse(member, DAY, 100)
    assert fleet.asks == asks
    assert fleet.admit(member, (with_limit(DAY[0], 2000),), 100).nanos == 100


def test_a_round_of_returns_comes_before_a_refusal() -> None:
    fleet, (rich, poor) = a_fleet(2)
    for _ in range(10):
        fleet.spend(rich, DAY, 20)
    fleet.renew(0.5)
    ahead = fleet.account(DAY[0]).lent
    assert ahead > 0
    assert fleet.admit(poor, DAY, 1000 - 200).nanos == 800
    assert fleet.account(DAY[0]).lent == 800


def test_a_running_request_comes_before_new_ones() -> None:
    fleet, (member, other) = a_fleet(2)
    running = [fleet.admit(member, DAY, 400), fleet.admit(member, DAY, 400)]
    refusal = fleet.top_up(member, running[0], 300)
    assert isinstance(refusal, ChargeRefusal)
    assert refusal.is_reserved
    for gateway in (member, other):
        assert fleet.refuse(gateway, DAY, 100).is_reserved
    fleet.settle(member, running[1], 100)
    fleet.renew(0.3)
    assert isinstance(fleet.top_up(member, running[0], 300), ChargeReservation)
    assert running[0].nanos == 700


# A reservation


def test_the_charge_fills_the_reservation_and_is_paid_once() -> None:
    fleet, (member,) = a_fleet()
    reservation = fleet.admit(member, DAY, 100)
    member.charges.shrink(reservation, 30)
    charges = fleet.settle(member, reservation, 10**12)
    assert [nanos for _, _, nanos in charges] == [70]
    assert member.charges.settle(reservation, 1) == charges
    assert fleet.top_up(member, reservation, 50) is reservation
    assert reservation.nanos == 70


def test_a_request_without_limits_allocates_nothing() -> None:
    charges = GatewayCharges()
    reservation = charges.reserve((), 10**12, 1, 0.0)
    assert reservation is UNLIMITED
    assert charges.top_up(UNLIMITED, 10**12, 0.0) is UNLIMITED
    assert charges.settle(UNLIMITED, 5) == ()
    assert charges.renewal(0.0) == ()


def test_a_clock_that_is_wrong_by_days_is_set_by_the_answer() -> None:
    fleet = ChargeFleet()
    member = fleet.start(clock_offset=fleet.clock_offset - 5 * 86400)
    fleet.spend(member, DAY, 100)
    for _ in range(14):
        fleet.renew()
    old, new = sorted(fleet.accounts.all().items())
    assert (old[1].settled, old[1].lent) == (0, 0)
    assert (new[1].settled, new[1].lent) == (100, 0)


@pytest.mark.parametrize("keys", [6_000, pytest.param(1_000_000, marks=pytest.mark.full)])
def test_many_keys_do_not_let_a_gateway_grow(keys: int) -> None:
    fleet, (member,) = a_fleet()
    most = 0
    for number in range(keys):
        fleet.spend(member, (a_scope(1000, f"each-key/Key/{number}"),), 10)
        member.journal.clear()
        if number % 200 == 199:
            fleet.renew()
            fleet.accounts.all().clear()
        most = max(most, len(member.charges._lent))
    assert most <= 4_000
    for _ in range(20):
        fleet.renew()
    assert not member.charges._lent
    assert not member.charges._current
    assert len(member.charges.seen) <= 10_000


def test_a_reservation_pays_in_each_month_of_statements_what_it_reserved_there() -> None:
    fleet = ChargeFleet()
    member = fleet.start()
    start = month_of(NOON)
    following = month_of(start + 32 * 86_400)
    # Its window goes on, since it ends an hour before in Berlin.
    fleet.clock_offset = member.charges.clock_offset = following - 1.0
    scopes = (a_scope(1000, "month", "Month"),)

    reservation = fleet.admit(member, scopes, 100)
    fleet.now += 2.0
    fleet.top_up(member, reservation, 50)
    fleet.top_up(member, reservation, 5)

    assert [nanos for _, nanos, _ in reservation.parts] == [100, 55]
    assert reservation.other_months(start, 80) == ()
    assert reservation.other_months(start, 130) == ((OTHER_MONTH, following, 30),)
    assert reservation.other_months(following, 130) == ((OTHER_MONTH, start, 100),)
    assert fleet.settle(member, reservation, 130) == (
        ("team-a/month", window_at(scopes[0].limit, following)[0], 130),
    )


def test_a_gateway_whose_streams_have_all_reserved_is_heard_until_they_end() -> None:
    fleet, (member,) = a_fleet()
    reservation = fleet.admit(member, DAY, 1000)
    fleet.renew()
    asks = []
    for _ in range(4):
        before = fleet.asks
        for _ in range(int(RENEWAL_SECONDS / 0.5)):
            fleet.renew()
        asks.append(fleet.asks - before)
    assert asks == [1, 1, 1, 1]
    fleet.settle(member, reservation, 1000)
    fleet.renew(RENEWAL_SECONDS)
    before = fleet.asks
    fleet.renew(RENEWAL_SECONDS)
    assert fleet.asks == before


def test_a_gateway_says_the_least_that_requests_needed_lately() -> None:
    fleet, (member,) = a_fleet()
    other = (a_scope(50, "month", "Month"), *DAY)
    member.charges.settle(fleet.admit(member, DAY, 0, 0), 0)
    assert set(member.charges.needs().values()) == {0}
    for nanos, scopes in ((40, DAY), (60, other), (70, DAY)):
        fleet.reserve(member, scopes, 100, nanos)
    needs = {key.scope: nanos for key, nanos in member.charges.needs().items()}
    assert needs == {"team-a/day": 40, "team-a/month": 60}
    fleet.renew(LEAST_SECONDS - 1)
    fleet.reserve(member, DAY, 100, 40)
    fleet.renew(1)
    fleet.reserve(member, DAY, 100, 70)
    assert set(member.charges.needs().values()) == {40}
    for _ in range(60):
        fleet.renew(1)
        fleet.reserve(member, DAY, 100, 70)
    assert set(member.charges.needs().values()) == {70}


@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize("idle_seconds", [1, 60])
def test_a_gateway_knows_what_all_were_charged(is_stored: bool, idle_seconds: int) -> None:
    """Also of an account that it forgot, whose records are stored, or of which an ask is late."""
    fleet, members = a_fleet(2)
    for member in members:
        fleet.spend(member, DAY, 3)
        if is_stored:
            fleet.store(member)
    for _ in range(2 * idle_seconds):
        fleet.renew()
    (member, _), total = members, 6
    for _ in range(3):
        fleet.spend(member, DAY, 5)
        total += 5
        assert member.charges.known(DAY[0], fleet.now).settled == total
        fleet.now += RENEWAL_SECONDS
        asks = member.charges.renewal(fleet.now)
        assert asks
        assert member.charges.known(DAY[0], fleet.now).settled == total
        fleet.send(member, asks)
        assert member.charges.known(DAY[0], fleet.now).settled == total
