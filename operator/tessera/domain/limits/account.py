"""The shared state of limits: what all gateways together may still use.

Gateways borrow from an account before they admit a request, and what they borrow is subtracted at
once. So all gateways together never admit more than `amount + elapsed / period * amount` since the
account began. What a gateway borrowed a moment ago it may use now: in a window of `t` seconds they
admit at most `amount + t / period * amount` plus what they held when it began, which is at most
the number of gateways times a portion. Returns that get lost make a limit stricter for a while,
never wider. What requests take beyond their reservations is owed, at most one period of it. A clock
set forward fills the account, once and at most to its amount.
"""

from dataclasses import dataclass, field

from tessera.domain.charge.exchange import ChargeAnswer, ChargeAsk
from tessera.domain.limits.scopes import ScopedLimit

# Clocks of gateways on several machines differ; further back, the clock was set.
MAX_CLOCK_SKEW_SECONDS = 5.0

# A gateway gets what its request needs, and of the rest at most this share to use the next second.
PORTION_SHARE = 1 / 8

# Of a level: who waits as long as a refusal says must not be short by the rounding of seconds.
ROUNDING = 1e-6

# A gateway that does not renew its slots for so long is dead.
SLOT_LEASE_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PortionRequest:
    """What a gateway wants of one limit."""

    limit: ScopedLimit
    need: int = 0
    """Less than this is of no use."""
    want: int = 0
    """What it expects to use within a second."""
    returned: int = 0
    """What it did not use; negative where a request took more than was reserved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """A part of a limit that one gateway may use for one second.

    It is whole: a gateway has no use for the fraction of a request, which others would lack.
    """

    key: str
    """Of the limit."""
    amount: int
    left: float
    """In the account after this portion; negative while it owes."""


@dataclass(slots=True, kw_only=True)
class Account:
    """The token bucket of one limit; it starts full, refills evenly, and may owe one period."""

    level: float
    updated_at: float
    """Unix seconds of the clock that the callers share."""

    def refilled(self, limit: ScopedLimit, now: float) -> float:
        """Return the level with what came since the last update, perhaps above the amount."""
        elapsed = max(0.0, now - self.updated_at)
        return self.level + elapsed * limit.amount / limit.period_seconds

    def borrow(self, request: PortionRequest, now: float) -> Portion:
        """Take back what is returned, and grant a portion or, short of the need, nothing."""
        limit = request.limit
        elapsed = now - self.updated_at
        if elapsed > 0 or elapsed < -MAX_CLOCK_SKEW_SECONDS:
            self.level, self.updated_at = self.refilled(limit, now), now
        level = self.level + request.returned
        self.level = min(max(level, -float(limit.amount)), float(limit.amount))
        amount = 0
        if self.level >= request.need - ROUNDING:
            spare = int((self.level - request.need) * PORTION_SHARE)
            amount = request.need + min(max(0, request.want - request.need), spare)
            self.level -= amount
        return Portion(key=limit.key, amount=amount, left=self.level)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRequest:
    """What a gateway wants of a limit of concurrent requests."""

    limit: ScopedLimit
    in_use: int
    want: int
    """In total, with those in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotGrant:
    """How many requests a gateway may have at once, until it renews within `SLOT_LEASE_SECONDS`."""

    key: str
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BorrowRequest:
    """What a gateway asks of the accounts; to be sent, since it has what the gateway returns."""

    portions: tuple[PortionRequest, ...] = ()
    slots: tuple[SlotRequest, ...] = ()
    charges: tuple[ChargeAsk, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What a gateway got, in the order in which it asked."""

    portions: tuple[Portion, ...] = ()
    slots: tuple[SlotGrant, ...] = ()
    charges: tuple[ChargeAnswer, ...] = ()
    """None while the store fails: what it was lent before it may spend."""


@dataclass(slots=True, kw_only=True)
class SlotAccount:
    """Concurrent requests of one limit, by gateway.

    The gateways together never have more slots than the limit, unless one could not renew for
    `SLOT_LEASE_SECONDS` and its slots went to others: then by at most the slots that it uses.
    """

    leases: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Slots of each gateway, and when they lapse."""

    def lease(self, gateway: str, request: SlotRequest, now: float) -> SlotGrant:
        """Renew the slots of a gateway; never below those in use."""
        self.leases = {
            name: (slots, lapses)
            for name, (slots, lapses) in self.leases.items()
            # A lease that lapses later than a full one is of a clock that was set back.
            if name != gateway and now < lapses <= now + SLOT_LEASE_SECONDS + MAX_CLOCK_SKEW_SECONDS
        }
        free = request.limit.amount - sum(slots for slots, _ in self.leases.values())
        slots = max(request.in_use, min(request.want, free), 0)
        if slots:
            self.leases[gateway] = (slots, now + SLOT_LEASE_SECONDS)
        return SlotGrant(key=request.limit.key, slots=slots)


@dataclass(slots=True)
class OwnAccounts:
    """The accounts that one gateway has for itself: they need no store and end with it."""

    _rates: dict[str, tuple[ScopedLimit, Account]] = field(default_factory=dict)

    def lease(self, request: BorrowRequest, now: float) -> Lease:
        """Lend from these accounts; `now` is of a monotonic clock."""
        return Lease(
            portions=tuple(
                self._account(each.limit, now).borrow(each, now) for each in request.portions
            ),
            slots=tuple(
                SlotGrant(
                    key=each.limit.key, slots=max(each.in_use, min(each.want, each.limit.amount))
                )
                for each in request.slots
            ),
        )

    def forget_full(self, now: float) -> None:
        """Forget the accounts that are full, as new ones are."""
        self._rates = {
            key: (limit, account)
            for key, (limit, account) in self._rates.items()
            if account.refilled(limit, now) < limit.amount
        }

    def _account(self, limit: ScopedLimit, now: float) -> Account:
        new = limit, Account(level=float(limit.amount), updated_at=now)
        return self._rates.setdefault(limit.key, new)[1]
