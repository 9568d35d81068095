"""What a tenant may still spend: every addition passes here.

Of a replica above the floor the next ten minutes are always paid: it starts when they can be set
aside, and goes on as long as they can. When they cannot, it leaves as on any scale-down: drained,
with no stream lost. What runs of the floors is never cut; what that will burn beyond a limit is
published.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tessera.domain.budget.windows import Window
from tessera.domain.money import Tariff, units
from tessera.domain.snapshot import Ref

HOLD = timedelta(minutes=10)
"""So much of every replica beyond the floor is set aside; an operator that is away for less than
this, less a drain, cannot overspend."""


def amount(nanos: int) -> str:
    """An amount for people: to a hundredth, and small ones to four digits."""
    value = units(nanos)
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.4f}"


@dataclass(slots=True, kw_only=True)
class Till:
    """One window of one limit, while a plan is made; amounts are nano-units."""

    field: str
    """The limit's place in the spec."""
    window: Window
    limit: int
    spent: int = 0
    floors: int = 0
    """What the floors burn until its end."""
    granted: int = 0
    """What was granted beyond the floors, and what those that leave still take."""
    forecast: int = 0
    """What everything planned will have cost at its end."""

    @property
    def taken(self) -> int:
        return self.spent + self.floors + self.granted

    def cost(self, tariff: Tariff, start: datetime, end: datetime) -> int:
        return tariff.cost(*self.window.overlap(start, end))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Why something was refused."""

    message: str


class Purse:
    """What one tenant may still spend, while a plan is made.

    Its tills are the present windows, and the next ones: what is granted shortly before a window
    ends is paid in the next.
    """

    def __init__(self, name: str, at: datetime, now: Sequence[Till], ahead: Sequence[Till]) -> None:
        self.name = name
        self.at = at
        self.now = tuple(now)
        self.ahead = tuple(ahead)
        self.shortage: Shortage | None = None
        """The first refusal of this plan."""
        self.floor_shortage: Shortage | None = None
        """The first refusal of a replica that should always run."""
        self.added = False
        """Something new was granted in this plan."""
        for till in self._tills:
            till.forecast = till.spent

    def floor(self, tariff: Tariff, replicas: int) -> None:
        """Set aside what replicas that always run burn."""
        for till in self._tills:
            cost = till.cost(tariff, self.at, till.window.end) * replicas
            till.floors += cost
            till.forecast += cost

    def leave(self, tariff: Tariff, span: timedelta, replicas: int) -> None:
        """Set aside the last minutes of replicas that go."""
        for till in self._tills:
            cost = till.cost(tariff, self.at, self.at + span) * replicas
            till.granted += cost
            till.forecast += cost

    def grant(self, tariff: Tariff, span: timedelta) -> Shortage | None:
        """Set aside the price of one replica for a span: in all windows, or in none."""
        spans = [(till, till.cost(tariff, self.at, self.at + span)) for till in self._tills]
        shortage = self._short(spans, f"{int(span.total_seconds())} s of 1 more")
        if shortage is None:
            for till, cost in spans:
                till.granted += cost
                till.forecast += till.cost(tariff, self.at, till.window.end)
        return shortage

    def start_floor(self, tariff: Tariff) -> Shortage | None:
        """Set aside what one more replica that always runs burns, if the windows can bear it."""
        spans = [(till, till.cost(tariff, self.at, till.window.end)) for till in self._tills]
        shortage = self._short(spans, "1 more that always runs")
        if shortage is None:
            self.floor(tariff, 1)
        else:
            self.floor_shortage = self.floor_shortage or shortage
        return shortage

    def refuse(self, message: str) -> Shortage:
        """Refuse for another reason than money."""
        self.shortage = self.shortage or Shortage(message=message)
        return Shortage(message=message)

    @property
    def _tills(self) -> tuple[Till, ...]:
        return (*self.now, *self.ahead)

    def _short(self, spans: Sequence[tuple[Till, int]], what: str) -> Shortage | None:
        for till, cost in spans:
            if cost and till.taken + cost > till.limit:
                return self.refuse(
                    f"budget {self.name}, {till.field}: of {amount(till.limit)} for the "
                    f"{till.window.name} until {till.window.end:%Y-%m-%dT%H:%MZ}, "
                    f"{amount(till.spent)} are spent, the floors take {amount(till.floors)}, "
                    f"{amount(till.granted)} are granted, and {what} would cost {amount(cost)}; "
                    "raise the limit, or wait for the next window"
                )
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one service or batch wants to run."""

    ref: Ref
    tariff: Tariff
    floor: int
    """Replicas that should always run; those that do are never cut."""
    wanted: int
    """All replicas wished."""
    running: int
    """Replicas that were wanted last."""
    alive: int
    """Pods that exist."""
    leaving: timedelta
    """How long a replica that is let go still costs."""

    @property
    def standing(self) -> int:
        """Replicas of the floor that run."""
        return min(self.floor, self.running)

    @property
    def kept(self) -> int:
        """Replicas beyond the floor that run and go on."""
        return max(0, min(self.running, self.wanted) - self.floor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Funding:
    """What was granted."""

    replicas: int
    shortage: Shortage | None = None


def fund(purse: Purse, claims: Sequence[Claim], currency: str) -> Mapping[Ref, Funding]:
    """Pay what runs of the floors and what leaves, then what else runs, then new floors, then what
    is new beyond them; each in the order of the claims. In another currency nothing is added."""
    foreign = [claim for claim in claims if claim.tariff.currency != currency]
    claims = [claim for claim in claims if claim.tariff.currency == currency]
    granted = {claim.ref: claim.standing for claim in claims}
    shortages: dict[Ref, Shortage] = {}

    def paid(claim: Claim, shortage: Shortage | None) -> bool:
        if shortage is not None:
            shortages[claim.ref] = shortage
            return False
        granted[claim.ref] += 1
        return True

    def grant(claim: Claim) -> bool:
        return paid(claim, purse.grant(claim.tariff, max(HOLD, claim.leaving)))

    for claim in claims:
        purse.floor(claim.tariff, claim.standing)
        leaving = max(0, claim.alive - claim.standing - claim.kept)
        purse.leave(claim.tariff, claim.leaving, leaving)
    for claim in claims:
        going_on = sum(grant(claim) for _ in range(claim.kept) if claim.ref not in shortages)
        purse.leave(claim.tariff, claim.leaving, claim.kept - going_on)
    for claim in claims:
        while claim.ref not in shortages and granted[claim.ref] < claim.floor:
            purse.added |= paid(claim, purse.start_floor(claim.tariff))
    for claim in claims:
        while claim.ref not in shortages and granted[claim.ref] < claim.wanted:
            purse.added |= grant(claim)
    found = {
        claim.ref: Funding(replicas=granted[claim.ref], shortage=shortages.get(claim.ref))
        for claim in claims
    }
    return found | {claim.ref: _foreign(purse, claim, currency) for claim in foreign}


def _foreign(purse: Purse, claim: Claim, currency: str) -> Funding:
    if claim.wanted <= claim.running:
        return Funding(replicas=claim.wanted)
    return Funding(
        replicas=claim.running,
        shortage=purse.refuse(
            f"budget {purse.name}, spec.currency is {currency}, and the pool of {claim.ref} is "
            f"priced in {claim.tariff.currency}, so 0 are added there; name pools priced in "
            f"{currency} in spec.placement.pools, or convert the price"
        ),
    )
