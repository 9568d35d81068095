"""The budgets of the tenants: which hold, what was spent, and how each one stands."""

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
from tessera.domain.budget.meter import SpendMeter
from tessera.domain.budget.metering import accrue_spend, rates, restore_meter
from tessera.domain.budget.periods import CalendarPeriod, next_period, period_at, zone_of
from tessera.domain.budget.state import BudgetState, BudgetWindow, format_amount
from tessera.domain.hardware.pools import PoolView
from tessera.domain.money import to_nanos
from tessera.domain.observed.snapshot import Budget, Snapshot

# Share of a limit from which on its owner is warned.
_NEAR_LIMIT_SHARE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetView:
    """A budget in a plan."""

    budget: Budget
    accepted: StatusVerdict[BudgetAccepted]
    meter: SpendMeter = field(default_factory=SpendMeter)
    state: BudgetState | None = None
    """None while the budget cannot be enforced."""
    hourly_cost: int = 0
    """Nano-units that everything running costs in an hour now."""
    services: int = 0
    """Services of the tenant."""
    batches: int = 0
    """Its batches that are not over."""

    @property
    def within_budget(self) -> StatusVerdict[WithinBudget]:
        """How the tenant stands, once everything passed the purse."""
        if self.state is None:
            return StatusVerdict(
                WithinBudget.NOT_ACCEPTED, "nothing is enforced while Accepted is False"
            )
        return _within_budget(self, self.state)


def build_budget_views(
    snapshot: Snapshot,
    views: Sequence[PoolView],
    meters: Mapping[str, SpendMeter],
    last_seen: Mapping[str, datetime],
) -> tuple[BudgetView, ...]:
    """Every budget with what was spent until now, in the order of names."""
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
                f"spec: judging raised {type(error).__name__} ({error}); please report it with the "
                "output of kubectl get tenantbudget -o yaml"
            )
            view = replace(view, accepted=StatusVerdict(BudgetAccepted.INTERNAL_ERROR, message))
        if view.state is not None:
            owners |= dict.fromkeys(names, budget.name)
        budget_views.append(view)
    return tuple(budget_views)


def by_namespace(views: Sequence[BudgetView]) -> Mapping[str, BudgetView]:
    """The budget that holds in each namespace."""
    return {
        name: view
        for view in views
        if view.state is not None and view.budget.spec is not None
        for name in view.budget.spec.tenant.namespaces
    }


def zone_fault(spec: TenantBudgetSpec) -> str | None:
    """Why the zone cannot be used."""
    if zone_of(spec.time_zone) is not None:
        return None
    return (
        f"spec.timeZone: {spec.time_zone} is no name of the IANA database, such as Europe/Berlin; "
        "timedatectl list-timezones shows them"
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
                f"spec.tenant.namespaces[{index}]: {name} belongs to budget {owners[name]} "
                "already, and a namespace has 1 budget; take it out of one of them",
            )
    return StatusVerdict(
        BudgetAccepted.VALID,
        f"{len(spec.limits)} limits in {spec.currency} for "
        f"{', '.join(sorted(spec.tenant.namespaces))}",
    )


def _metered_view(
    snapshot: Snapshot,
    view: BudgetView,
    views: Sequence[PoolView],
    known_meter: SpendMeter | None,
    last_seen: Mapping[str, datetime],
) -> BudgetView:
    """The meter goes on also while the budget is not accepted; only then there is no purse."""
    budget, spec = view.budget, view.budget.spec
    if spec is None:
        return replace(view, meter=known_meter or SpendMeter())
    zone = zone_of(spec.time_zone)
    enforced = view.accepted.reason.is_true and zone is not None
    meter = known_meter or _restored_meter(budget, spec, views)
    at = max(snapshot.at, meter.as_of or snapshot.at)
    periods = (
        [period_at(limit.window, at, zone) for limit in spec.limits] if zone is not None else []
    )
    if meter.as_of is None and (budget.record_lost or _was_enforced(budget)):
        meter = replace(meter, incomplete_windows={period.name: period.start for period in periods})
    pods = [pod for pod in snapshot.pods if pod.ref.namespace in spec.tenant.namespaces]
    pod_rates = rates(pods, views, spec.currency)
    if not enforced:
        if meter.as_of is None:
            return view
        advanced = accrue_spend(meter, pods, pod_rates, periods, at, last_seen)
        return replace(
            view,
            meter=replace(
                advanced, spend_by_window={**meter.spend_by_window, **advanced.spend_by_window}
            ),
        )
    meter = accrue_spend(meter, pods, pod_rates, periods, at, last_seen)
    return replace(
        view,
        meter=meter,
        state=_budget_state(budget.name, spec, meter, periods, at),
        hourly_cost=sum(
            replica.tariff.hourly(at.date()).nanos for replica in meter.running.values()
        ),
    )


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
    return BudgetState(name, at, current, upcoming)


def _was_enforced(budget: Budget) -> bool:
    """The budget was enforced once, so there was a record."""
    conditions = budget.status.conditions
    return any(
        condition.type == "Accepted" and condition.status == "True" for condition in conditions
    )


def _restored_meter(
    budget: Budget, spec: TenantBudgetSpec, views: Sequence[PoolView]
) -> SpendMeter:
    """What an earlier leader wrote down for its successor."""
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
    return min(limit, to_nanos(spec.on_ledger_loss.allow_up_to or Decimal(0)))


def _within_budget(view: BudgetView, state: BudgetState) -> StatusVerdict[WithinBudget]:
    if (refusing := _refusal(view, state)) is not None:
        return refusing
    tightest = max(state.current_windows, key=_spent_share)
    message = (
        f"{tightest.field_path}: {format_amount(tightest.spent)} of "
        f"{format_amount(tightest.limit)} are spent in this "
        f"{tightest.period.name}, and {format_amount(tightest.forecast)} are expected at its end"
    )
    if _spent_share(tightest) >= _NEAR_LIMIT_SHARE:
        return StatusVerdict(WithinBudget.NEAR_LIMIT, message)
    exceeded = next(
        (window for window in state.current_windows if window.forecast > window.limit), None
    )
    if exceeded is None:
        return StatusVerdict(WithinBudget.WITHIN_LIMITS, message)
    return StatusVerdict(
        WithinBudget.FORECAST_ABOVE_LIMIT,
        f"{exceeded.field_path}: {format_amount(exceeded.forecast)} are expected at the end of the "
        f"{exceeded.period.name}, above its limit of {format_amount(exceeded.limit)}",
    )


def _refusal(view: BudgetView, state: BudgetState) -> StatusVerdict[WithinBudget] | None:
    """Why something is refused, or would be."""
    for window in state.current_windows:
        if not view.meter.is_complete(window.period):
            return StatusVerdict(
                WithinBudget.SPEND_UNKNOWN,
                f"spec.onLedgerLoss: the record of this {window.period.name} was lost, so at most "
                f"{format_amount(window.limit)} are granted until "
                f"{window.period.end:%Y-%m-%dT%H:%MZ}; "
                "spec.onLedgerLoss.allowUpTo allows more",
            )
    if state.min_replicas_shortage is not None:
        return StatusVerdict(
            WithinBudget.MIN_REPLICAS_EXCEED_BUDGET, state.min_replicas_shortage.message
        )
    if state.shortage is not None:
        return StatusVerdict(WithinBudget.BUDGET_EXHAUSTED, state.shortage.message)
    return _min_replicas_refusal(state)


def _min_replicas_refusal(state: BudgetState) -> StatusVerdict[WithinBudget] | None:
    """Those that run, in a whole window."""
    for window in state.next_windows:
        if window.min_replicas_cost > window.limit:
            return StatusVerdict(
                WithinBudget.MIN_REPLICAS_EXCEED_BUDGET,
                f"{window.field_path}: the replicas that always run cost "
                f"{format_amount(window.min_replicas_cost)} in a whole "
                f"{window.period.name}, and its limit is {format_amount(window.limit)}; lower "
                "spec.scaling.minReplicas of the tenant's services, or raise the limit",
            )
    return None


def _spent_share(window: BudgetWindow) -> float:
    return window.spent / window.limit if window.limit else 1.0


def summary(view: BudgetView) -> str:
    """The tightest window in one line."""
    if view.state is None or view.budget.spec is None:
        return ""
    window = max(view.state.current_windows, key=_spent_share)
    return (
        f"{format_amount(window.spent)} of {format_amount(window.limit)} "
        f"{view.budget.spec.currency} this "
        f"{window.period.name} ({_spent_share(window):.0%})"
    )
