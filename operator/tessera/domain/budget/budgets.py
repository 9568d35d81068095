"""The budgets of all tenants: acceptance, spend, and the condition WithinBudget."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

from tessera.api.accelerator_pool import Price
from tessera.api.batch_inference import TERMINAL_STATES
from tessera.api.reasons import BudgetAccepted, StatusVerdict, WithinBudget
from tessera.api.tenant_budget import TenantBudgetSpec
from tessera.api.text import counted
from tessera.domain.budget.meter import SpendMeter
from tessera.domain.budget.metering import accrue_spend, rates, restore_meter
from tessera.domain.budget.periods import CalendarPeriod, next_period, period_at, zone_of
from tessera.domain.budget.state import BudgetState, BudgetWindow, format_amount
from tessera.domain.hardware.pools import PoolView
from tessera.domain.money import to_nanos
from tessera.domain.observed.snapshot import Budget, Snapshot

# Spent share of a limit from which on the condition warns.
_NEAR_LIMIT_SHARE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetView:
    """A budget with its meter and remaining amounts in a plan."""

    budget: Budget
    accepted: StatusVerdict[BudgetAccepted]
    meter: SpendMeter = field(default_factory=SpendMeter)
    state: BudgetState | None = None
    """None while the budget cannot be enforced."""
    hourly_cost: int = 0
    """Nano-units that all running replicas cost in an hour now."""
    services: int = 0
    """Services of the tenant."""
    batches: int = 0
    """Batches of the tenant that have not finished."""

    @property
    def within_budget(self) -> StatusVerdict[WithinBudget]:
        """Return the condition WithinBudget; valid once the plan has granted all requests."""
        if self.state is None:
            return StatusVerdict(
                WithinBudget.NOT_ACCEPTED, "no limit is enforced while Accepted is False"
            )
        return _within_budget(self, self.state)


def build_budget_views(
    snapshot: Snapshot,
    views: Sequence[PoolView],
    meters: Mapping[str, SpendMeter],
    last_seen: Mapping[str, datetime],
) -> tuple[BudgetView, ...]:
    """Return every budget with its spend until now, in the order of names."""
    services = Counter(service.ref.namespace for service in snapshot.services)
    batches = Counter(
        batch.ref.namespace
        for batch in snapshot.batches
        if batch.status.state not in TERMINAL_STATES
    )
    owners: dict[str, str] = {}
    budget_views = []
    for budget in sorted(snapshot.budgets, key=lambda tenant_budget: tenant_budget.name):
        accepted = _acceptance(budget, owners)
        names = budget.spec.tenant.namespaces if budget.spec is not None else ()
        view = BudgetView(
            budget=budget,
            accepted=accepted,
            services=sum(services[name] for name in names),
            batches=sum(batches[name] for name in names),
        )
        try:
            view = _metered_view(snapshot, view, views, meters.get(budget.name), last_seen)
        except Exception as error:  # noqa: BLE001 - one bad budget must not stop the fleet
            message = (
                f"TenantBudget/{budget.name}: the operator raised {type(error).__name__} "
                f"({error}); please report this with the output of kubectl get tenantbudget -o yaml"
            )
            view = replace(view, accepted=StatusVerdict(BudgetAccepted.PLANNER_ERROR, message))
        if view.state is not None:
            owners |= dict.fromkeys(names, budget.name)
        budget_views.append(view)
    return tuple(budget_views)


def by_namespace(views: Sequence[BudgetView]) -> Mapping[str, BudgetView]:
    """Return the enforced budget of each namespace."""
    return {
        name: view
        for view in views
        if view.state is not None and view.budget.spec is not None
        for name in view.budget.spec.tenant.namespaces
    }


def zone_fault(spec: TenantBudgetSpec) -> str | None:
    """Return why spec.timeZone cannot be used; None when it can."""
    if zone_of(spec.time_zone) is not None:
        return None
    return (
        f"spec.timeZone: {spec.time_zone} is not an IANA time zone; use a name such as "
        "Europe/Berlin from timedatectl list-timezones"
    )


def _acceptance(budget: Budget, owners: Mapping[str, str]) -> StatusVerdict[BudgetAccepted]:
    spec = budget.spec
    if spec is None:
        return StatusVerdict(BudgetAccepted.INVALID_SPEC, budget.problem or "spec: unreadable")
    if (fault := zone_fault(spec)) is not None:
        return StatusVerdict(BudgetAccepted.INVALID_TIME_ZONE, fault)
    for index, name in enumerate(spec.tenant.namespaces):
        if name in owners:
            return StatusVerdict(
                BudgetAccepted.OVERLAPPING,
                f"spec.tenant.namespaces[{index}]: {name} belongs to TenantBudget/{owners[name]} "
                "already; remove it from one of the two, since a namespace has at most 1 budget",
            )
    return StatusVerdict(
        BudgetAccepted.VALID,
        f"{counted(len(spec.limits), 'limit')} in {spec.currency} for "
        f"{', '.join(sorted(spec.tenant.namespaces))}",
    )


def _metered_view(
    snapshot: Snapshot,
    view: BudgetView,
    views: Sequence[PoolView],
    known_meter: SpendMeter | None,
    last_seen: Mapping[str, datetime],
) -> BudgetView:
    """Return the view with the meter advanced and, if the budget is accepted, with its state."""
    # Metering continues while the budget is not accepted, so that no spend is missing later.
    budget, spec = view.budget, view.budget.spec
    if spec is None:
        return replace(view, meter=known_meter or SpendMeter())
    zone = zone_of(spec.time_zone)
    enforced = view.accepted.reason.is_true and zone is not None
    meter = known_meter or _restore_meter(budget, spec, views)
    at = max(snapshot.at, meter.as_of or snapshot.at)
    periods = (
        [period_at(limit.window, at, zone) for limit in spec.limits] if zone is not None else []
    )
    was_enforced = any(
        condition.type == "Accepted" and condition.status == "True"
        for condition in budget.status.conditions
    )
    # A budget that was enforced had a record of its spend: without it the windows are incomplete.
    if meter.as_of is None and (budget.record_lost or was_enforced):
        meter = replace(meter, incomplete_windows={period.name: period.start for period in periods})
    pods = [pod for pod in snapshot.pods if pod.ref.namespace in spec.tenant.namespaces]
    pod_rates = rates(pods, views, spec.currency)
    if not enforced:
        if meter.as_of is None:
            return view
        advanced = accrue_spend(meter, pods, pod_rates, periods, at, last_seen)
        spend_by_window = {**meter.spend_by_window, **advanced.spend_by_window}
        return replace(view, meter=replace(advanced, spend_by_window=spend_by_window))
    meter = accrue_spend(meter, pods, pod_rates, periods, at, last_seen)
    state = _budget_state(budget.name, spec, meter, periods, at)
    hourly_cost = sum(replica.tariff.hourly(at.date()).nanos for replica in meter.running.values())
    return replace(view, meter=meter, state=state, hourly_cost=hourly_cost)


def _budget_state(
    name: str,
    spec: TenantBudgetSpec,
    meter: SpendMeter,
    periods: Sequence[CalendarPeriod],
    at: datetime,
) -> BudgetState:
    current = [
        BudgetWindow(
            field_path=f"spec.limits[{index}].amount",
            period=period,
            limit=_limit(spec, index, known=meter.is_complete(period)),
            spent=meter.spent(period),
        )
        for index, period in enumerate(periods)
    ]
    zone = zone_of(spec.time_zone) or ZoneInfo("UTC")
    upcoming = [
        replace(
            budget_window,
            period=next_period(budget_window.period, zone),
            limit=to_nanos(limit.amount),
            spent=0,
        )
        for budget_window, limit in zip(current, spec.limits, strict=True)
    ]
    return BudgetState(name, spec.currency, at, current, upcoming)


def _restore_meter(budget: Budget, spec: TenantBudgetSpec, views: Sequence[PoolView]) -> SpendMeter:
    """Return the meter that an earlier leader recorded in the status, or an empty one."""
    if budget.status.spend is None:
        return SpendMeter()
    prices: dict[str, tuple[Price, ...]] = {
        view.pool.name: view.pool.spec.prices for view in views if view.pool.spec is not None
    }
    return restore_meter(budget.status.spend, prices, spec.currency)


def _limit(spec: TenantBudgetSpec, index: int, *, known: bool) -> int:
    limit = to_nanos(spec.limits[index].amount)
    if known:
        return limit
    # With an unknown spend only the allowed remainder of the limit is available.
    return min(limit, to_nanos(spec.on_spend_unknown.allow_up_to or Decimal(0)))


def _within_budget(view: BudgetView, state: BudgetState) -> StatusVerdict[WithinBudget]:
    if (refusing := _refusal(view, state)) is not None:
        return refusing
    current_windows = state.current_windows
    tightest = max(current_windows, key=_spent_share)
    message = (
        f"{tightest.field_path}: {tightest.period.name.lower()} limit "
        f"{state.amount(tightest.limit)}, spent {state.amount(tightest.spent)}, forecast "
        f"{state.amount(tightest.forecast)}"
    )
    if _spent_share(tightest) >= _NEAR_LIMIT_SHARE:
        return StatusVerdict(WithinBudget.NEAR_LIMIT, message)
    exceeded = next((window for window in current_windows if window.forecast > window.limit), None)
    if exceeded is None:
        return StatusVerdict(WithinBudget.WITHIN_LIMITS, message)
    return StatusVerdict(
        WithinBudget.FORECAST_ABOVE_LIMIT,
        f"{exceeded.field_path}: forecast {state.amount(exceeded.forecast)} at the end of the "
        f"{exceeded.period.name.lower()} exceeds the limit of {state.amount(exceeded.limit)}",
    )


def _refusal(view: BudgetView, state: BudgetState) -> StatusVerdict[WithinBudget] | None:
    """Return why the budget refuses replicas, now or in the next windows; None when it does not."""
    for window in state.current_windows:
        if not view.meter.is_complete(window.period):
            return StatusVerdict(
                WithinBudget.SPEND_UNKNOWN,
                f"the spend of this {window.period.name.lower()} is unknown, so at most "
                f"{state.amount(window.limit)} is available until "
                f"{window.period.end:%Y-%m-%dT%H:%MZ}; raise spec.onSpendUnknown.allowUpTo to "
                "allow "
                "more",
            )
    if state.min_replicas_shortage is not None:
        return StatusVerdict(WithinBudget.MIN_REPLICAS_EXCEED_BUDGET, state.min_replicas_shortage)
    if state.shortage is not None:
        return StatusVerdict(WithinBudget.BUDGET_EXHAUSTED, state.shortage)
    return _min_replicas_refusal(state)


def _min_replicas_refusal(state: BudgetState) -> StatusVerdict[WithinBudget] | None:
    """Return a warning when running replicas alone exceed a limit in a whole window."""
    for window in state.next_windows:
        if window.min_replicas_cost > window.limit:
            return StatusVerdict(
                WithinBudget.MIN_REPLICAS_EXCEED_BUDGET,
                f"{window.field_path}: minReplicas cost {state.amount(window.min_replicas_cost)} "
                f"in a whole {window.period.name.lower()}, above the limit of "
                f"{state.amount(window.limit)}; lower spec.scaling.minReplicas of the tenant's "
                "services, or raise the limit",
            )
    return None


def _spent_share(window: BudgetWindow) -> float:
    return window.spent / window.limit if window.limit else 1.0


def summary(view: BudgetView) -> str:
    """Return the window with the largest spent share in one line; empty when not enforced."""
    if view.state is None:
        return ""
    state = view.state
    window = max(state.current_windows, key=_spent_share)
    return (
        f"{format_amount(window.spent)} of {state.amount(window.limit)} this "
        f"{window.period.name.lower()} ({_spent_share(window):.0%})"
    )
