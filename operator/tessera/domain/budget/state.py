"""What a tenant may still spend: every addition passes here.

Of a replica above the floor the next ten minutes are always paid: it starts when they can be set
aside, and goes on as long as they can. When they cannot, it leaves as on any scale-down: drained,
with no stream lost. What runs of the floors is never cut; what that will burn beyond a limit is
published.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tessera.domain.budget.periods import CalendarPeriod
from tessera.domain.money import Tariff, from_nanos
from tessera.domain.observed.snapshot import Ref

# So much of every replica beyond the floor is set aside; an operator that is away for less than
# this, less a drain, cannot overspend.
RESERVED_DURATION = timedelta(minutes=10)


def format_amount(nanos: int) -> str:
    """An amount for people: to a hundredth, and small ones to four digits."""
    value = from_nanos(nanos)
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.4f}"


@dataclass(slots=True, kw_only=True)
class BudgetWindow:
    """One window of one limit, while a plan is made; amounts are nano-units."""

    field_path: str
    """The limit's place in the spec."""
    period: CalendarPeriod
    limit: int
    spent: int = 0
    min_replicas_cost: int = 0
    """What the floors burn until its end."""
    granted: int = 0
    """What was granted beyond the floors, and what those that leave still take."""
    forecast: int = 0
    """What everything planned will have cost at its end."""

    @property
    def allocated(self) -> int:
        return self.spent + self.min_replicas_cost + self.granted

    def cost(self, tariff: Tariff, start: datetime, end: datetime) -> int:
        return tariff.cost(*self.period.overlap(start, end))


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetShortage:
    """Why something was refused."""

    message: str


class BudgetState:
    """What one tenant may still spend, while a plan is made.

    Its tills are the present windows, and the next ones: what is granted shortly before a window
    ends is paid in the next.
    """

    def __init__(
        self,
        name: str,
        at: datetime,
        current_windows: Sequence[BudgetWindow],
        next_windows: Sequence[BudgetWindow],
    ) -> None:
        self.name = name
        self.at = at
        self.current_windows = tuple(current_windows)
        self.next_windows = tuple(next_windows)
        self.shortage: BudgetShortage | None = None
        """The first refusal of this plan."""
        self.min_replicas_shortage: BudgetShortage | None = None
        """The first refusal of a replica that should always run."""
        self.has_new_grants = False
        """Something new was granted in this plan."""
        for window in self._windows:
            window.forecast = window.spent

    def reserve_min_replicas(self, tariff: Tariff, replicas: int) -> None:
        """Set aside what replicas that always run burn."""
        for window in self._windows:
            cost = window.cost(tariff, self.at, window.period.end) * replicas
            window.min_replicas_cost += cost
            window.forecast += cost

    def reserve_termination(self, tariff: Tariff, span: timedelta, replicas: int) -> None:
        """Set aside the last minutes of replicas that go."""
        for window in self._windows:
            cost = window.cost(tariff, self.at, self.at + span) * replicas
            window.granted += cost
            window.forecast += cost

    def reserve_replica(self, tariff: Tariff, span: timedelta) -> BudgetShortage | None:
        """Set aside the price of one replica for a span: in all windows, or in none."""
        spans = [(window, window.cost(tariff, self.at, self.at + span)) for window in self._windows]
        shortage = self._find_shortage(spans, f"{int(span.total_seconds())} s of 1 more")
        if shortage is None:
            for window, cost in spans:
                window.granted += cost
                window.forecast += window.cost(tariff, self.at, window.period.end)
        return shortage

    def reserve_new_min_replica(self, tariff: Tariff) -> BudgetShortage | None:
        """Set aside what one more replica that always runs burns, if the windows can bear it."""
        spans = [
            (window, window.cost(tariff, self.at, window.period.end)) for window in self._windows
        ]
        shortage = self._find_shortage(spans, "1 more that always runs")
        if shortage is None:
            self.reserve_min_replicas(tariff, 1)
        else:
            self.min_replicas_shortage = self.min_replicas_shortage or shortage
        return shortage

    def refuse(self, message: str) -> BudgetShortage:
        """Refuse for another reason than money."""
        self.shortage = self.shortage or BudgetShortage(message=message)
        return BudgetShortage(message=message)

    @property
    def _windows(self) -> tuple[BudgetWindow, ...]:
        return (*self.current_windows, *self.next_windows)

    def _find_shortage(
        self, spans: Sequence[tuple[BudgetWindow, int]], what: str
    ) -> BudgetShortage | None:
        for window, cost in spans:
            if cost and window.allocated + cost > window.limit:
                return self.refuse(
                    f"budget {self.name}, {window.field_path}: of {format_amount(window.limit)} "
                    "for the "
                    f"{window.period.name} until {window.period.end:%Y-%m-%dT%H:%MZ}, "
                    f"{format_amount(window.spent)} are spent, the floors take "
                    f"{format_amount(window.min_replicas_cost)}, "
                    f"{format_amount(window.granted)} are granted, and {what} would cost "
                    f"{format_amount(cost)}; "
                    "raise the limit, or wait for the next window"
                )
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRequest:
    """What one service or batch wants to run."""

    ref: Ref
    tariff: Tariff
    min_replicas: int
    """Replicas that should always run; those that do are never cut."""
    desired: int
    """All replicas wished."""
    running: int
    """Replicas that were wanted last."""
    existing_pods: int
    """Pods that exist."""
    termination_time: timedelta
    """How long a replica that is let go still costs."""

    @property
    def running_min_replicas(self) -> int:
        """Replicas of the floor that run."""
        return min(self.min_replicas, self.running)

    @property
    def continuing_extra(self) -> int:
        """Replicas beyond the floor that run and go on."""
        return max(0, min(self.running, self.desired) - self.min_replicas)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What was granted."""

    replicas: int
    shortage: BudgetShortage | None = None


def grant_requests(
    state: BudgetState, requests: Sequence[GrantRequest], currency: str
) -> Mapping[Ref, Grant]:
    """Pay what runs of the floors and what leaves, then what else runs, then new floors, then what
    is new beyond them; each in the order of the claims. In another currency nothing is added."""
    other_currency = [request for request in requests if request.tariff.currency != currency]
    requests = [request for request in requests if request.tariff.currency == currency]
    granted = {request.ref: request.running_min_replicas for request in requests}
    shortages: dict[Ref, BudgetShortage] = {}

    def record_grant(request: GrantRequest, shortage: BudgetShortage | None) -> bool:
        if shortage is not None:
            shortages[request.ref] = shortage
            return False
        granted[request.ref] += 1
        return True

    def grant(request: GrantRequest) -> bool:
        return record_grant(
            request,
            state.reserve_replica(request.tariff, max(RESERVED_DURATION, request.termination_time)),
        )

    for request in requests:
        state.reserve_min_replicas(request.tariff, request.running_min_replicas)
        terminating = max(
            0, request.existing_pods - request.running_min_replicas - request.continuing_extra
        )
        state.reserve_termination(request.tariff, request.termination_time, terminating)
    for request in requests:
        continued = sum(
            grant(request) for _ in range(request.continuing_extra) if request.ref not in shortages
        )
        state.reserve_termination(
            request.tariff, request.termination_time, request.continuing_extra - continued
        )
    for request in requests:
        while request.ref not in shortages and granted[request.ref] < request.min_replicas:
            state.has_new_grants |= record_grant(
                request, state.reserve_new_min_replica(request.tariff)
            )
    for request in requests:
        while request.ref not in shortages and granted[request.ref] < request.desired:
            state.has_new_grants |= grant(request)
    grants = {
        request.ref: Grant(replicas=granted[request.ref], shortage=shortages.get(request.ref))
        for request in requests
    }
    return grants | {
        request.ref: _other_currency_grant(state, request, currency) for request in other_currency
    }


def _other_currency_grant(state: BudgetState, request: GrantRequest, currency: str) -> Grant:
    if request.desired <= request.running:
        return Grant(replicas=request.desired)
    return Grant(
        replicas=request.running,
        shortage=state.refuse(
            f"budget {state.name}, spec.currency is {currency}, and the pool of {request.ref} is "
            f"priced in {request.tariff.currency}, so 0 are added there; name pools priced in "
            f"{currency} in spec.placement.pools, or convert the price"
        ),
    )
