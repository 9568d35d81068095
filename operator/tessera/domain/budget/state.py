"""Enforcement of tenant budgets: every added replica needs a grant.

The next ten minutes of a replica beyond minReplicas are always reserved: it starts when they can be
reserved, and runs as long as they can. When they cannot, it leaves as on any scale-down, drained
and without losing a stream. Running replicas within minReplicas are never removed; what they will
spend beyond a limit is reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from tessera.api.budget_reasons import LimitAction, WithinBudget
from tessera.api.reasons import ScalingReason, StatusVerdict
from tessera.domain.budget.meter import OutsideLoan
from tessera.domain.budget.periods import CalendarPeriod
from tessera.domain.money import Tariff, from_nanos
from tessera.domain.observed.snapshot import Ref

# Reserved for every replica beyond minReplicas. An operator that is away for less than this, minus
# a drain, cannot overspend.
RESERVED_DURATION = timedelta(minutes=10)

# A cent in nano-units.
CENT = 10**7


def format_amount(nanos: int) -> str:
    """Return nano-units as a number of units: to a hundredth, and below 1 to 4 digits."""
    value = from_nanos(nanos)
    return f"{value:.4f}" if 0 < abs(value) < 1 else f"{value:.2f}"


def amount_path(index: int) -> str:
    """Return the path of the amount of a limit in the spec, by its place."""
    return f"spec.limits[{index}].amount"


@dataclass(slots=True, kw_only=True)
class BudgetWindow:
    """One window of one limit while a plan is made; amounts are nano-units."""

    field_path: str
    """Path of the limit's amount in the spec."""
    period: CalendarPeriod
    limit: int
    is_each: bool = False
    """Whether each service has the amount for itself."""
    spent: int = 0
    """With what gateways used for calls of outside providers."""
    outside: int = 0
    """What of it they used."""
    lent: int = 0
    """What is lent to gateways beyond that: it is not spent, and available to nothing else."""
    min_replicas_cost: int = 0
    """Cost of replicas within minReplicas until the end of the window."""
    granted: int = 0
    """Reserved for replicas beyond minReplicas and for those that terminate."""
    forecast: int = field(init=False)
    """Expected spend at the end of the window if everything planned runs on."""
    owners: dict[Ref, int] = field(default_factory=dict)
    """What of both is for each service and batch."""

    def __post_init__(self) -> None:
        self.forecast = self.spent

    @property
    def allocated(self) -> int:
        """Return the nano-units that are spent, lent, committed or reserved."""
        return self.spent + self.lent + self.min_replicas_cost + self.granted

    @property
    def largest_owner(self) -> Ref | None:
        """Return for whom most is committed and reserved; None where nothing is."""
        return min(self.owners, key=lambda owner: (-self.owners[owner], owner), default=None)

    def reserve(self, owner: Ref | None, *, committed: int = 0, granted: int = 0) -> None:
        """Add nano-units for an owner; None where the owner is not known."""
        self.min_replicas_cost += committed
        self.granted += granted
        if owner is not None and (cost := committed + granted):
            self.owners[owner] = self.owners.get(owner, 0) + cost

    def lend(self, loan: OutsideLoan) -> None:
        """Count what is lent, and what of it is used, for calls of outside providers."""
        used = loan.used - self.outside
        self.outside, self.lent = loan.used, loan.counted - loan.used
        self.spent += used
        self.forecast += used

    def cost(self, tariff: Tariff, start: datetime, end: datetime) -> int:
        """Return the nano-units of the part of a span within the window."""
        return self.period.cost(tariff, start, end)


class Refusal(NamedTuple):
    """Why a replica is not granted."""

    message: str
    reason: ScalingReason = ScalingReason.BUDGET_EXHAUSTED


@dataclass(slots=True, eq=False)
class BudgetState:
    """The remaining budget of one tenant while a plan is made.

    It has the current windows and the next ones, since a reservation shortly before the end of a
    window is partly spent in the next.
    """

    name: str
    currency: str
    at: datetime
    current_windows: Sequence[BudgetWindow] = ()
    next_windows: Sequence[BudgetWindow] = ()
    closed: StatusVerdict[WithinBudget] | None = None
    """Why nothing is added, whatever the windows have left."""
    currency_mismatch: str | None = None
    """What the tenant uses, or wants to use, in pools of another currency."""
    shortage: str | None = None
    """The first refusal of this plan."""
    min_replicas_shortage: str | None = None
    """The first refusal of a replica within minReplicas."""
    has_new_grants: bool = False
    """Whether this plan grants a replica that did not run before."""
    gpu_quota: Decimal | None = None
    """GPUs that the tenant may have at once."""
    gpus: Decimal = Decimal(0)
    """Those of everything that is committed or reserved."""
    quota_shortage: str | None = None
    """The first refusal because of the quota."""
    actions: Mapping[LimitAction, str] = field(default_factory=dict)
    """What the budget does by spent shares of its limits, with the sentence that tells of it."""
    _by_service: dict[Ref | None, list[BudgetWindow]] = field(init=False, default_factory=dict)
    """All windows by the service that they count alone, once they are asked for."""

    def amount(self, nanos: int) -> str:
        """Return nano-units as text with the currency of the budget."""
        return f"{format_amount(nanos)} {self.currency}"

    def spent_text(self, window: BudgetWindow) -> str:
        """Return what is spent, how much of it at outside providers, and what is lent for these."""
        outside = f" (of which {self.amount(window.outside)} at outside providers)"
        lent = f", lent to gateways for these {self.amount(window.lent)}"
        return (
            f"spent {self.amount(window.spent)}{outside if window.outside else ''}"
            f"{lent if window.lent else ''}"
        )

    def reserve_min_replicas(self, tariff: Tariff, replicas: int, owner: Ref | None = None) -> None:
        """Commit the cost of replicas within minReplicas until the end of each window."""
        for window in self._windows(tariff):
            cost = window.cost(tariff, self.at, window.period.end) * replicas
            window.reserve(owner, committed=cost)
            window.forecast += cost
        self.gpus += tariff.weight * replicas

    def reserve_termination(
        self, tariff: Tariff, span: timedelta, replicas: int, owner: Ref | None = None
    ) -> None:
        """Reserve the last minutes of replicas that terminate."""
        for window in self._windows(tariff):
            cost = window.cost(tariff, self.at, self.at + span) * replicas
            window.reserve(owner, granted=cost)
            window.forecast += cost
        self.gpus += tariff.weight * replicas

    def reserve_replica(
        self, tariff: Tariff, span: timedelta, owner: Ref | None = None
    ) -> Refusal | None:
        """Reserve the cost of one replica for a span in all windows, or return why not in any."""
        if (refusal := self._refuse_above_quota(tariff)) is not None:
            return refusal
        window_costs = self._window_costs(tariff, span)
        shortage = self._shortage_text(
            window_costs, f"1 more replica for {int(span.total_seconds())} s"
        )
        if shortage is not None:
            self.refuse(shortage)
        else:
            for window, cost in window_costs:
                window.reserve(owner, granted=cost)
                window.forecast += window.cost(tariff, self.at, window.period.end)
            self.gpus += tariff.weight
        return Refusal(shortage) if shortage is not None else None

    def reserve_extra(self, request: "GrantRequest", *, is_new: bool) -> Refusal | None:
        """Reserve one replica beyond the minimum of a service, or the one of a batch."""
        cap = self.actions.get(LimitAction.CAP_SCALE_UP)
        if cap is not None and is_new and not request.is_batch:
            return Refusal(cap)
        span = max(RESERVED_DURATION, request.termination_time)
        return self.reserve_replica(request.tariff, span, request.ref)

    def refuse_start(self, tariff: Tariff, span: timedelta) -> str | None:
        """Return why one replica more would not be granted for a span; nothing is reserved.

        The text has no amount that rises with time, as it is written while a service sleeps.
        """
        if (refusal := self.refuse_always(tariff)) is not None:
            return refusal
        if not (lacking := _lacking(self._window_costs(tariff, span))):
            return None
        window, _ = lacking[0]
        wait = f" or wait for the next {window.period.name.lower()}"
        return (
            f"{self._limit_text(window)} leaves too little for 1 more replica. Raise "
            f"{window.field_path}{'' if window in self.next_windows else wait}."
        )

    def refuse_always(self, tariff: Tariff) -> str | None:
        """Return why a replica would not be granted whatever the limits have left."""
        if self.closed is not None:
            return self.closed.message
        if tariff.currency != self.currency:
            return (
                f"TenantBudget/{self.name}: spec.currency is {self.currency} and the pool is "
                f"priced in {tariff.currency}. Name pools priced in {self.currency} in "
                "spec.placement.pools, or convert the price."
            )
        if self._exceeds_quota(tariff):
            return (
                f"TenantBudget/{self.name}: spec.gpus is {self.gpu_quota:f}, which leaves no room "
                "for 1 more replica. Raise spec.gpus, or lower what other services of the tenant "
                "need."
            )
        return None

    def has_room(self, tariff: Tariff, span: timedelta) -> bool:
        """Return whether one replica more would be granted for a span; nothing is reserved."""
        return self.refuse_start(tariff, span) is None

    def reserve_new_min_replica(self, tariff: Tariff, owner: Ref | None = None) -> Refusal | None:
        """Commit the cost of one more replica within minReplicas, or return why not."""
        if (refusal := self._refuse_above_quota(tariff)) is not None:
            return refusal
        if (shortage := self.refuse_min_replica(tariff)) is None:
            self.reserve_min_replicas(tariff, 1, owner)
        else:
            self.min_replicas_shortage = self.min_replicas_shortage or self.refuse(shortage)
        return Refusal(shortage) if shortage is not None else None

    def refuse_min_replica(self, tariff: Tariff) -> str | None:
        """Return why one replica more of minReplicas would not be granted; nothing is reserved."""
        window_costs = [
            (window, window.cost(tariff, self.at, window.period.end))
            for window in self._windows(tariff)
        ]
        return self._shortage_text(window_costs, "1 more replica of minReplicas")

    def refuse_batch(self, request: "GrantRequest") -> str | None:
        """Return why no attempt runs, by an action of the budget; None for services."""
        if not request.is_batch:
            return None
        refusal = self.actions.get(LimitAction.HOLD_BATCHES)
        if refusal is None and request.tariff.tier != "Spot":
            return self.actions.get(LimitAction.BATCHES_ON_SPOT)
        return refusal

    def _refuse_above_quota(self, tariff: Tariff) -> Refusal | None:
        if not self._exceeds_quota(tariff):
            return None
        message = (
            f"TenantBudget/{self.name}: spec.gpus is {self.gpu_quota:f}, and replicas and batches "
            f"have {self.gpus:.4g}, so 1 more replica of {tariff.weight:.4g} has no room. Raise "
            "spec.gpus, or lower what other services of the tenant need."
        )
        self.quota_shortage = self.quota_shortage or message
        return Refusal(message, ScalingReason.GPU_QUOTA_EXCEEDED)

    def _exceeds_quota(self, tariff: Tariff) -> bool:
        return self.gpu_quota is not None and self.gpus + tariff.weight > self.gpu_quota

    def _window_costs(self, tariff: Tariff, span: timedelta) -> Sequence[tuple[BudgetWindow, int]]:
        """Return what a span from now on costs in each window."""
        end = self.at + span
        return [(window, window.cost(tariff, self.at, end)) for window in self._windows(tariff)]

    def refuse(self, message: str) -> str:
        """Record a refusal and return its message."""
        self.shortage = self.shortage or message
        return message

    def _windows(self, tariff: Tariff) -> Sequence[BudgetWindow]:
        """Return the windows that may count a replica."""
        if not self._by_service:
            for window in (*self.current_windows, *self.next_windows):
                self._by_service.setdefault(window.period.service, []).append(window)
        alone = self._by_service.get(tariff.service, ()) if tariff.service is not None else ()
        return (*self._by_service.get(None, ()), *alone)

    def _limit_text(self, window: BudgetWindow) -> str:
        """Return which limit of which window."""
        period = window.period
        start = f"from {period.start:%Y-%m-%dT%H:%MZ} " if window in self.next_windows else ""
        return (
            f"TenantBudget/{self.name}: {period.name.lower()} limit{period.part} "
            f"{self.amount(window.limit)} {start}until {period.end:%Y-%m-%dT%H:%MZ}"
        )

    def _shortage_text(
        self, window_costs: Sequence[tuple[BudgetWindow, int]], addition_text: str
    ) -> str | None:
        if not (lacking := _lacking(window_costs)):
            return None
        window, cost = lacking[0]
        available = max(0, window.limit - window.allocated)
        period, is_next = window.period.name.lower(), window in self.next_windows
        also_next = any(other.field_path == window.field_path for other, _ in lacking[1:])
        # Rounded up by a cent, since the printed amount may be rounded down.
        needed = max(
            each.allocated + own for each, own in lacking if each.field_path == window.field_path
        )
        way_out = f"raise {window.field_path} to {self.amount(needed + CENT)}"
        if is_next:
            way_out += f"; this {period} it fits"
        elif not also_next:
            way_out += f" or wait for the next {period}"
        owner = window.largest_owner
        largest = f" (the largest part for {owner})" if owner is not None else ""
        return (
            f"{self._limit_text(window)}, {self.spent_text(window)}, "
            f"committed to minReplicas {self.amount(window.min_replicas_cost)}, reserved "
            f"{self.amount(window.granted)}{largest}, available {self.amount(available)}. "
            f"{addition_text} needs {self.amount(cost)}: {way_out}."
        )


def _lacking(
    window_costs: Sequence[tuple[BudgetWindow, int]],
) -> Sequence[tuple[BudgetWindow, int]]:
    """Return the windows that a cost exceeds; it exceeds none in which nothing is to be paid."""
    return [
        (window, cost)
        for window, cost in window_costs
        if cost and window.allocated + cost > window.limit
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRequest:
    """The replicas that a variant of a service, or a batch, requests from a budget."""

    ref: Ref
    index: int = 0
    """Which of the variants of a service."""
    tariff: Tariff
    min_replicas: int
    """Replicas that should always run; running ones are never removed."""
    desired: int
    """All desired replicas."""
    running: int
    """Replicas that the previous cycle desired."""
    existing_pods: int
    """Pods that have not ended."""
    termination_time: timedelta
    """Time for which a replica that is removed costs on."""
    is_batch: bool = False

    @property
    def running_min_replicas(self) -> int:
        """Return the running replicas within minReplicas."""
        return min(self.min_replicas, self.running)

    @property
    def continuing_extra(self) -> int:
        """Return the running replicas beyond minReplicas that remain desired."""
        return max(0, min(self.running, self.desired) - self.min_replicas)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The replicas that requests got, with the reason when these are fewer than desired."""

    counts: tuple[int, ...]
    """Those of each request: a service has one for each variant."""
    shortage: str | None = None
    reason: ScalingReason = ScalingReason.BUDGET_EXHAUSTED
    is_closed: bool = False
    """The budget grants nothing at all."""

    @property
    def replicas(self) -> int:
        """Return all of them."""
        return sum(self.counts)


def joined_grants(grants: Sequence[Grant]) -> Grant:
    """Return one grant for the requests of several, with the first shortage among them."""
    short = next((grant for grant in grants if grant.shortage is not None), grants[0])
    return replace(short, counts=tuple(count for grant in grants for count in grant.counts))


def grant_requests(state: BudgetState, requests: Sequence[GrantRequest]) -> Sequence[Grant]:
    """Return the grant of each request, in their order.

    Running replicas within minReplicas and terminating ones are paid first, then other running
    ones, then new ones within minReplicas, then new ones beyond; each in the order of the requests.
    A request in another currency gets no new replica, and a closed budget grants none at all.
    """
    open_requests = [
        index
        for index, request in enumerate(requests)
        if state.closed is None and request.tariff.currency == state.currency
    ]
    granted = {index: requests[index].running_min_replicas for index in open_requests}
    shortages = {
        index: Refusal(refusal)
        for index in open_requests
        if (refusal := state.refuse_batch(requests[index])) is not None
    }

    def record_grant(index: int, refusal: Refusal | None) -> bool:
        if refusal is not None:
            shortages[index] = refusal
            return False
        granted[index] += 1
        return True

    def grant(index: int, *, is_new: bool = False) -> bool:
        return record_grant(index, state.reserve_extra(requests[index], is_new=is_new))

    for index in open_requests:
        request = requests[index]
        state.reserve_min_replicas(request.tariff, request.running_min_replicas, request.ref)
        terminating = max(
            0, request.existing_pods - request.running_min_replicas - request.continuing_extra
        )
        state.reserve_termination(
            request.tariff, request.termination_time, terminating, request.ref
        )
    for index in open_requests:
        request = requests[index]
        continued = sum(
            grant(index) for _ in range(request.continuing_extra) if index not in shortages
        )
        replicas = request.continuing_extra - continued
        state.reserve_termination(request.tariff, request.termination_time, replicas, request.ref)
    for index in open_requests:
        request = requests[index]
        while index not in shortages and granted[index] < request.min_replicas:
            state.has_new_grants |= record_grant(
                index, state.reserve_new_min_replica(request.tariff, request.ref)
            )
    for index in open_requests:
        while index not in shortages and granted[index] < requests[index].desired:
            state.has_new_grants |= grant(index, is_new=True)
    return [
        _refused_grant(granted[index], shortages.get(index))
        if index in granted
        else _unchanged_grant(state, request)
        for index, request in enumerate(requests)
    ]


def _refused_grant(count: int, refusal: Refusal | None) -> Grant:
    if refusal is None:
        return Grant(counts=(count,))
    return Grant(counts=(count,), shortage=refusal.message, reason=refusal.reason)


def _unchanged_grant(state: BudgetState, request: GrantRequest) -> Grant:
    """Return a grant that adds nothing: what runs stays, and what is not desired leaves."""
    is_closed = state.closed is not None
    if request.desired <= request.running:
        return Grant(counts=(request.desired,), is_closed=is_closed)
    if state.closed is not None:
        return Grant(counts=(request.running,), shortage=state.closed.message, is_closed=is_closed)
    shortage = (
        f"TenantBudget/{state.name}: spec.currency is {state.currency} and the pool of "
        f"{request.ref} is priced in {request.tariff.currency}, so no replica is added. Name "
        f"pools priced in {state.currency} in spec.placement.pools, or convert the price."
    )
    state.currency_mismatch = state.currency_mismatch or shortage
    return Grant(counts=(request.running,), shortage=shortage)
