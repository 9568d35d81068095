"""What gateways report of limits of basis Charge: how much of each is settled."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

# Of a limit that each member has for itself, so many are named.
NEAREST_ACCOUNTS = 5
# Begins the names of limits of basis Cost as they hold at providers, which no limit of a spec has.
OUTSIDE = "outside "


class LimitId(NamedTuple):
    """A limit of a TenantBudget, by both names."""

    budget: str
    limit: str


class AccountCharge(NamedTuple):
    """What requests were charged in one account, in nano-units."""

    settled: int
    lent: int = 0
    """What gateways hold above it."""
    member: str = ""
    """The one whose account it is; empty where a limit has one account."""
    need: int = 0
    """The least that a request needs; of what is lent for providers, one that was refused."""
    generation: int = 0
    """Newest of what was lent for providers that the account has, where the operator waits for
    that or its own is older; 0 else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitCharges:
    """One window of a limit."""

    start: int
    """In Unix seconds."""
    members: int = 0
    """Accounts that are known, where each member has one."""
    accounts: tuple[AccountCharge, ...] = ()
    """The nearest to their end first, at most `NEAREST_ACCOUNTS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedCharges:
    """What one gateway reported last of a limit, and when."""

    at: datetime
    charges: LimitCharges


def nearest(accounts: Iterable[AccountCharge]) -> tuple[AccountCharge, ...]:
    """Return the accounts with most settled, of equal ones the first by name."""
    order = heapq.nsmallest(
        NEAREST_ACCOUNTS, accounts, key=lambda each: (-each.settled, each.member)
    )
    return tuple(order)


def merged_charges(first: LimitCharges, second: LimitCharges) -> LimitCharges:
    """Return what two gateways tell of one limit.

    They tell of the same accounts: the largest sum counts, as sums grow. Of two windows the later
    one counts.
    """
    if first.start != second.start:
        return max(first, second, key=lambda each: each.start)
    accounts: dict[str, AccountCharge] = {}
    for account in sorted((*first.accounts, *second.accounts)):
        known = accounts.get(account.member, account)
        need = min(account.need or known.need, known.need or account.need)
        generation = max(account.generation, known.generation)
        accounts[account.member] = account._replace(need=need, generation=generation)
    return LimitCharges(
        start=first.start,
        members=max(first.members, second.members),
        accounts=nearest(accounts.values()),
    )
