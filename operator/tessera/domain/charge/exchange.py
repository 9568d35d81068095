"""What gateways and accounts of charges say to each other.

Amounts are whole nano-units. All that a gateway says of itself is a sum since it began, so that a
message may be repeated or come late: `number` orders them, and an account answers an older one
without a change. A gateway's `ceiling` in an account is what it may have spent there in all,
charges of ended requests and reservations of running ones together. It lowers it by itself, and
tells the account afterwards; the account raises it, and tells the gateway afterwards. So the
account's value is never below what the gateway spent, whatever gets lost.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from tessera.domain.charge.scopes import ChargeScope


class AccountKey(NamedTuple):
    """One window of one scope."""

    scope: str
    """`ChargeScope.key`."""
    start: int
    """Of the window, in Unix seconds."""


class LendingOutcome(Enum):
    """What an account did with a need."""

    GRANTED = auto()
    """The ceiling has room for it; also where nothing was needed."""
    WAIT = auto()
    """Other gateways are asked to return what they do not need: ask again within a second."""
    RESERVED = auto()
    """All gateways returned; requests that run have it reserved, and may leave some."""
    NOTHING = auto()
    """Charges have used the limit up, as far as this need."""
    OLD_GENERATION = auto()
    """The account has seen a newer generation of the budget."""
    ENDED = auto()
    """The window has ended, or has not begun, by the clock of the database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeAsk:
    """What a gateway says of one account, and what it needs there."""

    scope: ChargeScope
    start: int
    """Of the window, in Unix seconds."""
    number: int
    """Higher than that of the gateway's last ask of this account."""
    ceiling: int
    """To which it keeps from now on; lower than the last answer where it returns something."""
    used: int
    """What ended requests were charged."""
    reserved: int
    """By requests that run."""
    need: int = 0
    """What it must have above the ceiling; less is of no use. 0 in a renewal."""
    want: int = 0
    """What it would have above the ceiling, the need with it."""
    seen: int = 0
    """Most that the account ever told this gateway, or a former one on its volume, was settled."""
    is_top_up: bool = False
    """The need is that of a request that runs: it comes before new ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeAnswer:
    """What an account answers."""

    account: AccountKey
    number: int
    """Of the ask."""
    ceiling: int
    used: int
    """What ended requests of this gateway were charged; where it forgot an idle account."""
    outcome: LendingOutcome
    limit: int
    settled: int
    """Of all gateways."""
    lent: int
    """The same: what they hold above what they spent."""
    scarce: bool
    """Nothing is lent ahead, and gateways return what running requests have not reserved."""
    end: int
    """Of the window, in Unix seconds."""
    at: float
    """Unix seconds of the database."""
    generation: int = 0
    """Newest of the limit that the account has."""
