"""Random schedules of gateways, messages, clocks and losses, and what holds after each step."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from typing_extensions import override

from tessera.domain.charge.account import ChargeAccount, GatewayBalance
from tessera.domain.charge.exchange import AccountKey
from tessera.domain.charge.gateway_charges import ChargeRefusal, ChargeReservation, ChargesNeeded
from tests.domain.charge.fleet import (
    Accounts,
    ChargeFleet,
    Charges,
    Member,
    MemoryAccounts,
    a_scope,
    with_limit,
)

GATEWAYS = 3
HOUR, DAY = 3600.0, 86400.0
SCOPES = (
    a_scope(name="hour", window="Hour"),
    a_scope(name="day", window="Day"),
    a_scope(name="each-key/Key/ci", window="Month"),
)

gateways = st.integers(0, GATEWAYS - 1)
amounts = st.sampled_from([0, 1, 10, 100, 400, 1000, 10**14])
places = st.integers(0, 5)
tries = st.sampled_from([1, 3, 3, 3])
copies = st.sampled_from([0, 1, 1, 1, 2])


T = TypeVar("T")


def pick(choices: list[T], place: int) -> T:
    return choices[place % len(choices)]


class ChargeMachine(RuleBasedStateMachine):
    """Gateways whose messages come late, twice, in another order or never."""

    first_scopes = SCOPES

    def __init__(self) -> None:
        super().__init__()
        self.fleet = ChargeFleet(accounts=self.empty_accounts())
        self.scopes = list(self.first_scopes)
        """As the newest budget has them; gateways learn of it later."""
        self.views: list[list[Any]] = []
        self.volumes: list[Member] = []
        """Of processes that ended, and that no other has read."""
        self.lost: Counter[AccountKey] = Counter()
        """Most that stays lent: to gateways whose volumes are lost, or by a backup."""
        self.highest: dict[AccountKey, int] = {}
        """The highest limit of each account."""
        self.closed: Counter[tuple[AccountKey, str]] = Counter()
        """What was settled of closed gateways."""
        self.backup: Any = None
        self.recorded: Counter[AccountKey] = Counter()
        """What the records in the store were charged."""
        self.unrecorded: Counter[AccountKey] = Counter()
        """What those were charged that a backup does not have."""
        self.unknown: Counter[AccountKey] = Counter()
        """Most that restored accounts do not know of what was lent and charged."""
        self.jumps = 0
        self.is_restored = False
        for _ in range(GATEWAYS):
            self.start()

    def empty_accounts(self) -> Accounts:
        return MemoryAccounts()

    def start(self, seen: Mapping[AccountKey, int] = MappingProxyType({})) -> None:
        self.fleet.start(seen=dict(seen))
        self.views.append(list(self.scopes))

    @initialize(is_restored=st.booleans())
    def choose(self, is_restored: bool) -> None:
        """Restore backups in half of all schedules: less can be said of those."""
        self.is_restored = is_restored

    # Requests

    @rule(index=gateways, scopes=st.integers(0, 2), nanos=amounts, least=amounts, tries=tries)
    def reserve(self, index: int, scopes: int, nanos: int, least: int, tries: int) -> None:
        """Try it once, or again after answers."""
        member = self.fleet.members[index]
        least = min(least, nanos)
        chosen = tuple(self.views[index][: scopes + 1])
        for _ in range(tries):
            answer = member.charges.reserve(chosen, nanos, least, self.fleet.now)
            if isinstance(answer, ChargeReservation):
                assert least <= answer.nanos <= nanos
                member.running.append(answer)
                return
            if isinstance(answer, ChargeRefusal):
                assert answer.left >= 0
                return
            self.wait_for(member, answer, is_delivered=tries > 1)

    @precondition(lambda self: self.running())
    @rule(place=places, nanos=amounts, tries=tries)
    def top_up(self, place: int, nanos: int, tries: int) -> None:
        member, reservation = pick(self.running(), place)
        before = reservation.nanos
        for _ in range(tries):
            answer = member.charges.top_up(reservation, nanos, self.fleet.now)
            is_more = isinstance(answer, ChargeReservation)
            assert reservation.nanos == before + nanos * is_more
            if not isinstance(answer, ChargesNeeded):
                return
            self.wait_for(member, answer, is_delivered=tries > 1)

    def wait_for(self, member: Member, needed: ChargesNeeded, *, is_delivered: bool) -> None:
        assert needed.asks or needed.wait_seconds > 0
        member.asks += needed.asks
        self.fleet.now += needed.wait_seconds
        if is_delivered:
            self.deliver(member)

    @precondition(lambda self: self.running())
    @rule(place=places, nanos=amounts)
    def shrink(self, place: int, nanos: int) -> None:
        member, reservation = pick(self.running(), place)
        member.charges.shrink(reservation, nanos)

    @precondition(lambda self: self.running())
    @rule(place=places, charge=amounts)
    def settle(self, place: int, charge: int) -> None:
        member, reservation = pick(self.running(), place)
        charges = self.fleet.settle(member, reservation, charge)
        paid = Counter[str]()
        for scope, _, nanos in charges:
            paid[scope] += nanos
        assert set(paid.values()) <= {min(charge, reservation.nanos)}
        assert member.charges.settle(reservation, 10**30) == charges

    def running(self) -> list[tuple[Member, ChargeReservation]]:
        return [(member, each) for member in self.fleet.members for each in member.running]

    # Messages

    @rule(index=gateways, seconds=st.sampled_from([0.0, 0.5, 0.5]))
    def renew(self, index: int, seconds: float) -> None:
        self.fleet.now += seconds
        member = self.fleet.members[index]
        member.asks += member.charges.renewal(self.fleet.now)

    @rule()
    def renew_all(self) -> None:
        for member in self.fleet.members:
            member.asks += member.charges.renewal(self.fleet.now)
            self.deliver(member)

    @rule()
    def rest(self) -> None:
        """Without requests gateways forget accounts."""
        for _ in range(14):
            self.fleet.now += 0.5
            self.renew_all()

    @precondition(lambda self: any(member.asks for member in self.fleet.members))
    @rule(place=places, copies=copies, is_last=st.booleans())
    def deliver_ask(self, place: int, copies: int, is_last: bool) -> None:
        """Deliver an ask out of turn, perhaps not at all or once more later."""
        member = pick([member for member in self.fleet.members if member.asks], place)
        ask = member.asks.pop(-1 if is_last else 0)
        for _ in range(copies):
            self.exchange(member, ask)
        if copies > 1:
            member.asks.append(ask)

    @precondition(lambda self: any(member.answers for member in self.fleet.members))
    @rule(place=places, copies=copies)
    def deliver_answer(self, place: int, copies: int) -> None:
        member = pick([member for member in self.fleet.members if member.answers], place)
        answer = member.answers.pop(place % len(member.answers))
        for _ in range(copies):
            member.asks += member.charges.receive([answer], self.fleet.now)
        if copies > 1:
            member.answers.append(answer)

    @rule(index=gateways)
    def deliver_all(self, index: int) -> None:
        self.deliver(self.fleet.members[index])

    def deliver(self, member: Member) -> None:
        while member.asks or member.answers:
            asks, member.asks = member.asks, []
            for ask in asks:
                self.exchange(member, ask)
            answers, member.answers = member.answers, []
            member.asks += member.charges.receive(answers, self.fleet.now)

    def exchange(self, member: Member, ask: Any) -> None:
        key = AccountKey(ask.scope.key, ask.start)
        before = self.fleet.accounts.all().get(key, ChargeAccount())
        number = before.gateways.get(member.name, GatewayBalance()).number
        lent = before.lent
        member.answers.append(self.fleet.answer(member, ask))
        account = self.fleet.accounts.all()[key]
        self.highest[key] = max(self.highest.get(key, 0), account.limit)
        if member.name in account.closed_names:
            assert account.lent == lent
            return
        balance = account.gateways[member.name]
        if ask.number > number and balance.ceiling > max(ask.ceiling, balance.settled):
            assert account.settled + account.lent <= account.limit

    # Records, crashes and volumes

    @precondition(lambda self: any(member.journal for member in self.fleet.members))
    @rule(place=places, copies=st.sampled_from([1, 1, 2]))
    def record(self, place: int, copies: int) -> None:
        """Write a record, perhaps twice since the confirmation is lost."""
        member = pick([member for member in self.fleet.members if member.journal], place)
        record_id, charges = member.journal.pop(place % len(member.journal))
        self.count_recorded(charges)
        for _ in range(copies):
            self.fleet.accounts.record(record_id, member.name, charges)

    def count_recorded(self, charges: Charges) -> None:
        for scope, start, nanos in charges:
            self.recorded[AccountKey(scope, start)] += nanos

    @rule(index=gateways, is_lost=st.booleans())
    def crash(self, index: int, is_lost: bool) -> None:
        member = self.fleet.members[index]
        self.fleet.crash(member)
        del self.views[index]
        self.start({} if is_lost else member.charges.seen)
        if is_lost:
            for key, account in self.fleet.accounts.all().items():
                if member.name in account.gateways:
                    self.lost[key] += account.gateways[member.name].ceiling
            for key in member.charges._lent:
                self.lost[key] += member.committed(key)
        else:
            self.volumes.append(member)

    @precondition(lambda self: self.volumes)
    @rule()
    def recover(self) -> None:
        member = self.volumes.pop(0)
        for _, charges in member.journal:
            self.count_recorded(charges)
        self.fleet.store(member)
        for key, account in self.fleet.accounts.all().items():
            if member.name in account.gateways:
                self.closed[key, member.name] += account.gateways[member.name].settled
        self.fleet.accounts.close(member.name)
        accounts = self.fleet.accounts.all()
        for ask in member.asks:
            asked = accounts.get(AccountKey(ask.scope.key, ask.start))
            if asked is not None and member.name in asked.closed_names:
                self.exchange(member, ask)

    # Limits and clocks

    @rule(place=st.integers(0, 2), amount=st.sampled_from([0, 300, 1000, 3000, 10**15]))
    def set_limit(self, place: int, amount: int) -> None:
        self.scopes[place] = with_limit(self.scopes[place], amount)

    @rule(index=gateways)
    def learn_limits(self, index: int) -> None:
        self.views[index] = list(self.scopes)

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.1, 0.3, 0.3, 1.0, 3.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.fleet.now += seconds

    @precondition(lambda self: self.jumps < 3)
    @rule(seconds=st.sampled_from([-4.0, 4.0, HOUR, -HOUR, DAY, -DAY, 40 * DAY]))
    def set_clock(self, seconds: float) -> None:
        self.jumps += 1
        self.fleet.clock_offset += seconds

    # Backups

    @rule()
    def back_up(self) -> None:
        self.backup = self.fleet.accounts.backup(), dict(self.closed), self.recorded.copy()

    @precondition(lambda self: self.backup and self.is_restored)
    @rule()
    def restore(self) -> None:
        before = self.known()
        backup, closed, recorded = self.backup
        self.fleet.accounts.restore(backup)
        self.unrecorded += self.recorded - recorded
        self.recorded = recorded.copy()
        self.closed = Counter(closed)
        after = self.known()
        for key, name in before | after:
            lent, settled = (
                then - now
                for then, now in zip(
                    before.get((key, name), (0, 0)), after.get((key, name), (0, 0)), strict=True
                )
            )
            # What records that are lost had is lent again once their gateway is closed.
            self.unknown[key] += max(0, lent, settled)
            # A gateway that had returned it since, and forgot the account, does not say so again.
            self.lost[key] += max(0, -lent)

    def known(self) -> dict[tuple[AccountKey, str], tuple[int, int]]:
        """Return what each gateway may be charged, and what it was, as the accounts know."""
        known = {place: (nanos, nanos) for place, nanos in self.closed.items()}
        for key, account in self.fleet.accounts.all().items():
            for name, balance in account.gateways.items():
                closed, _ = known.get((key, name), (0, 0))
                lent = max(balance.ceiling, balance.settled)
                known[key, name] = closed + lent, closed + balance.settled
        return known

    # What holds after each step

    def most(self, key: AccountKey) -> int:
        """Return what a window may be charged at most: the highest limit that lent."""
        return self.highest.get(key, 0)

    @invariant()
    def no_window_is_charged_more_than_its_limit(self) -> None:
        keys = {key for member in self.fleet.members for key in member.charges._lent}
        for key in keys | set(self.fleet.charged):
            committed = sum(member.unsettled(key) for member in self.fleet.members)
            committed += self.fleet.charged[key]
            assert committed <= self.most(key) + self.unknown[key], key

    @invariant()
    def a_gateway_has_no_more_than_it_says(self) -> None:
        for member in self.fleet.members:
            for lent in member.charges._lent.values():
                assert min(lent.used, lent.reserved, lent.free) >= 0

    @invariant()
    def accounts_know_of_all_that_gateways_have(self) -> None:
        if any(self.unknown.values()):
            return
        accounts = self.fleet.accounts.all()
        for member in self.fleet.members:
            for key in member.charges._lent:
                if ceiling := member.committed(key):
                    assert accounts[key].gateways[member.name].ceiling >= ceiling

    @override
    def teardown(self) -> None:
        """Once all is quiet, nothing is lent, and what is settled is what was charged."""
        while self.volumes:
            self.recover()
        for member in self.fleet.members:
            for reservation in list(member.running):
                self.fleet.settle(member, reservation, reservation.nanos // 2)
            self.fleet.store(member)
            member.asks, member.answers = [], []
        for _ in range(30):
            self.fleet.renew()
        for member in self.fleet.members:
            assert not member.charges._lent
        for key, account in self.fleet.accounts.all().items():
            charged = self.fleet.charged[key]
            if not self.unknown[key]:
                assert account.lent <= self.lost[key]
                assert abs(account.restored - self.unrecorded[key]) <= self.lost[key]
                assert account.settled <= charged <= account.settled + self.lost[key]
                assert account.missing == 0 or self.lost[key]


def run(machine: type[ChargeMachine], steps: int, examples: int) -> None:
    """Play random schedules."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            suppress_health_check=list(HealthCheck),
            deadline=None,
        ),
    )
