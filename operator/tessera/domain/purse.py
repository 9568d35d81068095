"""What a tenant may still spend: every addition passes here.

Of a replica above the floor the next ten minutes are always paid: it starts when they can be set
aside, and goes on as long as they can. When they cannot, it leaves as on any scale-down: drained,
with no stream lost. Floors are never cut; what they will burn beyond a limit is published.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tessera.domain.money import Tariff, units
from tessera.domain.snapshot import Ref
from tessera.domain.windows import Window

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
        self.added = False
        """Something new was granted in this plan."""
        for till in (*self.now, *self.ahead):
            till.forecast = till.spent

    def floor(self, tariff: Tariff, replicas: int) -> None:
        """Set aside what replicas that always run burn."""
        for till in (*self.now, *self.ahead):
            cost = till.cost(tariff, self.at, till.window.end) * replicas
            till.floors += cost
            till.forecast += cost

    def leave(self, tariff: Tariff, span: timedelta, replicas: int) -> None:
        """Set aside the last minutes of replicas that go."""
        for till in (*self.now, *self.ahead):
            cost = till.cost(tariff, self.at, self.at + span) * replicas
            till.granted += cost
            till.forecast += cost

    def grant(self, tariff: Tariff, span: timedelta) -> Shortage | None:
        """Set aside the price of one replica for a span: in all windows, or in none."""
        tills = (*self.now, *self.ahead)
        costs = [till.cost(tariff, self.at, self.at + span) for till in tills]
        for till, cost in zip(tills, costs, strict=True):
            if cost and till.taken + cost > till.limit:
                shortage = Shortage(message=self._told(till, cost, span))
                self.shortage = self.shortage or shortage
                return shortage
        for till, cost in zip(tills, costs, strict=True):
            till.granted += cost
            till.forecast += till.cost(tariff, self.at, till.window.end)
        return None

    def _told(self, till: Till, cost: int, span: timedelta) -> str:
        return (
            f"budget {self.name}, {till.field}: of {amount(till.limit)} for the {till.window.name} "
            f"until {till.window.end:%Y-%m-%dT%H:%MZ}, {amount(till.spent)} are spent, the floors "
            f"take {amount(till.floors)}, {amount(till.granted)} are granted, and "
            f"{int(span.total_seconds())} s of 1 more would cost {amount(cost)}; raise the limit, "
            "or wait for the next window"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one service or batch wants to run."""

    ref: Ref
    tariff: Tariff
    floor: int
    """Replicas that are never cut."""
    wanted: int
    """All replicas wished."""
    alive: int
    """Pods that exist."""
    kept: int
    """Replicas beyond the floor that run and go on."""
    leaving: timedelta
    """How long a replica that is let go still costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Funding:
    """What was granted."""

    replicas: int
    shortage: Shortage | None = None


def fund(purse: Purse, claims: Sequence[Claim]) -> Mapping[Ref, Funding]:
    """Pay floors and what leaves, then what runs, then what is new, each in the claims' order."""
    granted = {claim.ref: claim.floor for claim in claims}
    shortages: dict[Ref, Shortage] = {}

    def grant(claim: Claim) -> bool:
        shortage = purse.grant(claim.tariff, max(HOLD, claim.leaving))
        if shortage is not None:
            shortages[claim.ref] = shortage
            return False
        granted[claim.ref] += 1
        return True

    for claim in claims:
        purse.floor(claim.tariff, claim.floor)
        leaving = max(0, claim.alive - claim.floor - claim.kept)
        purse.leave(claim.tariff, claim.leaving, leaving)
    for claim in claims:
        going_on = sum(grant(claim) for _ in range(claim.kept) if claim.ref not in shortages)
        purse.leave(claim.tariff, claim.leaving, claim.kept - going_on)
    for claim in claims:
        while claim.ref not in shortages and granted[claim.ref] < claim.wanted:
            purse.added |= grant(claim)
    return {
        claim.ref: Funding(replicas=granted[claim.ref], shortage=shortages.get(claim.ref))
        for claim in claims
    }
