"""Gateways that reserve charges, the accounts that lend to them, and the messages between them."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Protocol

from tessera.api.tenant_budget import WindowName
from tessera.domain.charge.account import ChargeAccount
from tessera.domain.charge.exchange import AccountKey, ChargeAnswer, ChargeAsk
from tessera.domain.charge.gateway_charges import (
    ChargeRefusal,
    ChargeReservation,
    ChargesNeeded,
    GatewayCharges,
)
from tessera.domain.charge.scopes import ChargeLimit, ChargeScope

# Noon of a day that is neither the first of its month nor of its week.
NOON = 1_800_014_400.0

Charges = tuple[tuple[str, int, int], ...]


def a_scope(
    amount: int = 1000,
    name: str = "day",
    window: WindowName = "Day",
    generation: int = 1,
    **fields: Any,
) -> ChargeScope:
    limit = ChargeLimit(
        budget="team-a",
        generation=generation,
        name=name,
        window=window,
        amount=amount,
        currency="USD",
        time_zone=fields.pop("time_zone", "Europe/Berlin"),
        **fields,
    )
    return ChargeScope(key=f"team-a/{name}", limit=limit)


def with_limit(scope: ChargeScope, amount: int, generation: int | None = None) -> ChargeScope:
    """Return a scope as a later generation of its budget has it."""
    generation = scope.limit.generation + 1 if generation is None else generation
    return replace(scope, limit=replace(scope.limit, amount=amount, generation=generation))


class Accounts(Protocol):
    """Where accounts are stored; a store shows what it has, and can be restored."""

    def exchange(self, gateway: str, ask: ChargeAsk, now: float) -> ChargeAnswer: ...

    def record(self, record_id: str, gateway: str, charges: Charges) -> None:
        """Add what a request was charged, once for its id."""

    def close(self, gateway: str) -> None:
        """Close a gateway in all accounts."""

    def all(self) -> dict[AccountKey, ChargeAccount]: ...

    def backup(self) -> object: ...

    def restore(self, backup: Any) -> None: ...


@dataclass(slots=True)
class MemoryAccounts:
    """Accounts in memory, and as a store has them: with the ids of all records, backups in JSON."""

    accounts: dict[AccountKey, ChargeAccount] = field(default_factory=dict)
    record_ids: set[str] = field(default_factory=set)

    def exchange(self, gateway: str, ask: ChargeAsk, now: float) -> ChargeAnswer:
        account = self.accounts.setdefault(AccountKey(ask.scope.key, ask.start), ChargeAccount())
        return account.exchange(gateway, ask, now)

    def record(self, record_id: str, gateway: str, charges: Charges) -> None:
        if record_id not in self.record_ids:
            self.record_ids.add(record_id)
            for scope, start, nanos in charges:
                key = AccountKey(scope, start)
                self.accounts.setdefault(key, ChargeAccount()).record(gateway, nanos)

    def close(self, gateway: str) -> None:
        for account in self.accounts.values():
            if gateway in account.gateways:
                account.close(gateway)

    def all(self) -> dict[AccountKey, ChargeAccount]:
        return self.accounts

    def backup(self) -> object:
        states = [(key, account.to_json()) for key, account in self.accounts.items()]
        return json.dumps([states, sorted(self.record_ids)])

    def restore(self, backup: Any) -> None:
        states, record_ids = json.loads(backup)
        self.record_ids = set(record_ids)
        self.accounts = {AccountKey(*key): ChargeAccount.from_json(state) for key, state in states}


@dataclass(slots=True, eq=False)
class Member:
    """One process of a gateway with its volume."""

    name: str
    charges: GatewayCharges
    journal: list[tuple[str, Charges]] = field(default_factory=list)
    """Records that the store does not have."""
    running: list[ChargeReservation] = field(default_factory=list)
    asks: list[ChargeAsk] = field(default_factory=list)
    """Under way to the accounts."""
    answers: list[ChargeAnswer] = field(default_factory=list)
    """Under way from there."""

    def committed(self, key: AccountKey) -> int:
        """Return what it may be charged in a window, if it gets nothing more."""
        lent = self.charges._lent.get(key)
        return 0 if lent is None else lent.ceiling

    def unsettled(self, key: AccountKey) -> int:
        """Return the part of that which ended requests were not charged."""
        lent = self.charges._lent.get(key)
        return 0 if lent is None else lent.reserved + lent.free


@dataclass(slots=True, kw_only=True)
class ChargeFleet:
    """Gateways and accounts with one clock, and what all of them charged in truth."""

    accounts: Accounts = field(default_factory=MemoryAccounts)
    now: float = 0.0
    """Monotonic, of all gateways."""
    clock_offset: float = NOON
    """Of the accounts' clock."""
    members: list[Member] = field(default_factory=list)
    charged: Counter[AccountKey] = field(default_factory=Counter)
    """By all gateways there ever were."""
    asks: int = 0
    names: Iterable[int] = field(default_factory=count)
    """Of processes."""
    record_ids: Iterable[int] = field(default_factory=count)

    def start(self, **fields: Any) -> Member:
        fields.setdefault("clock_offset", self.clock_offset)
        member = Member(f"gateway-{next(iter(self.names))}", GatewayCharges(**fields))
        self.members.append(member)
        return member

    def send(self, member: Member, asks: Sequence[ChargeAsk]) -> None:
        """Exchange asks at once, and what is returned upon the answers."""
        while asks:
            asks = member.charges.receive([self.answer(member, ask) for ask in asks], self.now)

    def answer(self, member: Member, ask: ChargeAsk) -> ChargeAnswer:
        self.asks += 1
        return self.accounts.exchange(member.name, ask, self.now + self.clock_offset)

    def renew(self, seconds: float = 0.5) -> None:
        """Let time pass, then let all gateways renew."""
        self.now += seconds
        for member in self.members:
            self.send(member, member.charges.renewal(self.now))

    def reserve(
        self, member: Member, scopes: tuple[ChargeScope, ...], nanos: int, least: int | None = None
    ) -> ChargeReservation | ChargeRefusal:
        """Reserve as a request does that waits for answers, and not for running requests."""
        for _ in range(100):
            answer = member.charges.reserve(
                scopes, nanos, nanos if least is None else least, self.now
            )
            if not isinstance(answer, ChargesNeeded):
                return self.running(member, answer)
            self.await_charges(member, answer)
        raise AssertionError(answer)

    def top_up(
        self, member: Member, reservation: ChargeReservation, nanos: int
    ) -> ChargeReservation | ChargeRefusal:
        for _ in range(100):
            answer = member.charges.top_up(reservation, nanos, self.now)
            if not isinstance(answer, ChargesNeeded):
                return answer
            self.await_charges(member, answer)
        raise AssertionError(answer)

    def await_charges(self, member: Member, needed: ChargesNeeded) -> None:
        self.send(member, needed.asks)
        if not needed.asks:
            # Others return meanwhile what they can.
            self.renew(needed.wait_seconds)

    def running(
        self, member: Member, answer: ChargeReservation | ChargeRefusal
    ) -> ChargeReservation | ChargeRefusal:
        if isinstance(answer, ChargeReservation):
            member.running.append(answer)
        return answer

    def admit(
        self, member: Member, scopes: tuple[ChargeScope, ...], nanos: int, least: int | None = None
    ) -> ChargeReservation:
        reservation = self.reserve(member, scopes, nanos, least)
        assert isinstance(reservation, ChargeReservation), reservation
        return reservation

    def refuse(
        self, member: Member, scopes: tuple[ChargeScope, ...], nanos: int, least: int | None = None
    ) -> ChargeRefusal:
        refusal = self.reserve(member, scopes, nanos, least)
        assert isinstance(refusal, ChargeRefusal), refusal
        return refusal

    def settle(self, member: Member, reservation: ChargeReservation, charge: int) -> Charges:
        """End a request; its record is in the journal then."""
        member.running.remove(reservation)
        charges = member.charges.settle(reservation, charge)
        for scope, start, nanos in charges:
            self.charged[AccountKey(scope, start)] += nanos
        member.journal.append((f"record-{next(iter(self.record_ids))}", charges))
        return charges

    def spend(self, member: Member, scopes: tuple[ChargeScope, ...], nanos: int) -> Charges:
        return self.settle(member, self.admit(member, scopes, nanos), nanos)

    def store(self, member: Member) -> None:
        """Write all of a journal to the store."""
        for record_id, charges in member.journal:
            self.accounts.record(record_id, member.name, charges)
        member.journal.clear()

    def crash(self, member: Member) -> None:
        self.members.remove(member)

    def recover(self, dead: Member) -> None:
        """Read the journal of a process that ended, as the next one on its volume does."""
        self.store(dead)
        self.accounts.close(dead.name)

    def account(self, scope: ChargeScope) -> ChargeAccount:
        """Return the only account of a scope."""
        (account,) = [
            account for key, account in self.accounts.all().items() if key.scope == scope.key
        ]
        return account
