"""The budgets of the tenants: which hold, what was spent, and how each one stands."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

from tessera.api.accelerator_pool import Price
from tessera.api.tenant_budget import TenantBudgetSpec
from tessera.domain.batch.allotment import TERMINAL
from tessera.domain.budget.meter import Meter
from tessera.domain.budget.purse import Purse, Till, amount
from tessera.domain.budget.spend import from_record, rates, settle
from tessera.domain.budget.windows import Window, following, window_at, zone_of
from tessera.domain.money import nanos
from tessera.domain.pools import PoolView
from tessera.domain.reasons import BudgetAccepted, StatusVerdict, WithinBudget
from tessera.domain.snapshot import Budget, Snapshot

_NEAR = 0.8
"""Share of a limit from which on its owner is warned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetView:
    """A budget in a plan."""

    budget: Budget
    accepted: StatusVerdict[BudgetAccepted]
    meter: Meter = field(default_factory=Meter)
    purse: Purse | None = None
    """None while the budget cannot be enforced."""
    hourly: int = 0
    """Nano-units that everything running costs in an hour now."""
    services: int = 0
    """Services of the tenant."""
    batches: int = 0
    """Its batches that are not over."""

    @property
    def funded(self) -> StatusVerdict[WithinBudget]:
        """How the tenant stands, once everything passed the purse."""
        if self.purse is None:
            return StatusVerdict(
                WithinBudget.NOT_ACCEPTED, "nothing is enforced while Accepted is False"
            )
        return _funded(self, self.purse)


def open_budgets(snapshot: Snapshot, views: Sequence[PoolView]) -> tuple[BudgetView, ...]:
    """Every budget with what was spent until now, in the order of names."""
    services = Counter(service.ref.namespace for service in snapshot.services)
    batches = Counter(
        batch.ref.namespace for batch in snapshot.batches if batch.status.state not in TERMINAL
    )
    owners: dict[str, str] = {}
    found = []
    for budget in sorted(snapshot.budgets, key=lambda one: one.name):
        accepted = _judged(budget, owners)
        names = budget.spec.tenant.namespaces if budget.spec is not None else ()
        view = BudgetView(
            budget=budget,
            accepted=accepted,
            services=sum(services[name] for name in names),
            batches=sum(batches[name] for name in names),
        )
        try:
            view = _counted(snapshot, view, views)
        except Exception as error:  # noqa: BLE001 - one bad budget must not stop the fleet
            told = (
                f"spec: judging raised {type(error).__name__} ({error}); please report it with the "
                "output of kubectl get tenantbudget -o yaml"
            )
            view = replace(view, accepted=StatusVerdict(BudgetAccepted.INTERNAL_ERROR, told))
        if view.purse is not None:
            owners |= dict.fromkeys(names, budget.name)
        found.append(view)
    return tuple(found)


def by_namespace(views: Sequence[BudgetView]) -> Mapping[str, BudgetView]:
    """The budget that holds in each namespace."""
    return {
        name: view
        for view in views
        if view.purse is not None and view.budget.spec is not None
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


def _judged(budget: Budget, owners: Mapping[str, str]) -> StatusVerdict[BudgetAccepted]:
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


def _counted(snapshot: Snapshot, view: BudgetView, views: Sequence[PoolView]) -> BudgetView:
    """The meter goes on also while the budget is not accepted; only then there is no purse."""
    budget, spec = view.budget, view.budget.spec
    if spec is None:
        return replace(view, meter=snapshot.meters.get(budget.name) or Meter())
    zone = zone_of(spec.time_zone)
    enforced = view.accepted.reason.is_true and zone is not None
    meter = snapshot.meters.get(budget.name) or _recalled(budget, spec, views)
    at = max(snapshot.at, meter.as_of or snapshot.at)
    windows = [window_at(one.window, at, zone) for one in spec.limits] if zone is not None else []
    if meter.as_of is None and (budget.record_lost or _held_before(budget)):
        meter = replace(meter, lost={window.name: window.start for window in windows})
    pods = [pod for pod in snapshot.pods if pod.ref.namespace in spec.tenant.namespaces]
    priced = rates(pods, views, spec.currency)
    if not enforced:
        if meter.as_of is None:
            return view
        counted = settle(meter, pods, priced, windows, at, snapshot.last_seen)
        return replace(view, meter=replace(counted, settled={**meter.settled, **counted.settled}))
    meter = settle(meter, pods, priced, windows, at, snapshot.last_seen)
    return replace(
        view,
        meter=meter,
        purse=_purse(budget.name, spec, meter, windows, at),
        hourly=sum(one.tariff.hourly(at.date()).nanos for one in meter.running.values()),
    )


def _purse(
    name: str, spec: TenantBudgetSpec, meter: Meter, windows: Sequence[Window], at: datetime
) -> Purse:
    now = [
        Till(
            field=f"spec.limits[{index}].amount",
            window=window,
            limit=_limit(spec, index, known=meter.knows(window)),
            spent=meter.spent(window),
        )
        for index, window in enumerate(windows)
    ]
    zone = zone_of(spec.time_zone) or ZoneInfo("UTC")
    ahead = [
        replace(till, window=following(till.window, zone), limit=nanos(limit.amount), spent=0)
        for till, limit in zip(now, spec.limits, strict=True)
    ]
    return Purse(name, at, now, ahead)


def _held_before(budget: Budget) -> bool:
    """The budget was enforced once, so there was a record."""
    conditions = budget.status.conditions
    return any(one.type == "Accepted" and one.status == "True" for one in conditions)


def _recalled(budget: Budget, spec: TenantBudgetSpec, views: Sequence[PoolView]) -> Meter:
    """What an earlier leader wrote down for its successor."""
    if budget.status.spend is None:
        return Meter()
    prices: dict[str, tuple[Price, ...]] = {
        view.pool.name: view.pool.spec.prices for view in views if view.pool.spec is not None
    }
    return from_record(budget.status.spend, prices, spec.currency)


def _limit(spec: TenantBudgetSpec, index: int, *, known: bool) -> int:
    limit = nanos(spec.limits[index].amount)
    if known:
        return limit
    return min(limit, nanos(spec.on_ledger_loss.allow_up_to or Decimal(0)))


def _funded(view: BudgetView, purse: Purse) -> StatusVerdict[WithinBudget]:
    if (refusing := _refusing(view, purse)) is not None:
        return refusing
    tightest = max(purse.now, key=_share)
    told = (
        f"{tightest.field}: {amount(tightest.spent)} of {amount(tightest.limit)} are spent in this "
        f"{tightest.window.name}, and {amount(tightest.forecast)} are expected at its end"
    )
    if _share(tightest) >= _NEAR:
        return StatusVerdict(WithinBudget.NEAR_LIMIT, told)
    above = next((till for till in purse.now if till.forecast > till.limit), None)
    if above is None:
        return StatusVerdict(WithinBudget.WITHIN_LIMITS, told)
    return StatusVerdict(
        WithinBudget.FORECAST_ABOVE_LIMIT,
        f"{above.field}: {amount(above.forecast)} are expected at the end of the "
        f"{above.window.name}, above its limit of {amount(above.limit)}",
    )


def _refusing(view: BudgetView, purse: Purse) -> StatusVerdict[WithinBudget] | None:
    """Why something is refused, or would be."""
    for till in purse.now:
        if not view.meter.knows(till.window):
            return StatusVerdict(
                WithinBudget.SPEND_UNKNOWN,
                f"spec.onLedgerLoss: the record of this {till.window.name} was lost, so at most "
                f"{amount(till.limit)} are granted until {till.window.end:%Y-%m-%dT%H:%MZ}; "
                "spec.onLedgerLoss.allowUpTo allows more",
            )
    if purse.floor_shortage is not None:
        return StatusVerdict(WithinBudget.MIN_REPLICAS_EXCEED_BUDGET, purse.floor_shortage.message)
    if purse.shortage is not None:
        return StatusVerdict(WithinBudget.BUDGET_EXHAUSTED, purse.shortage.message)
    return _floors_above(purse)


def _floors_above(purse: Purse) -> StatusVerdict[WithinBudget] | None:
    """Those that run, in a whole window."""
    for till in purse.ahead:
        if till.floors > till.limit:
            return StatusVerdict(
                WithinBudget.MIN_REPLICAS_EXCEED_BUDGET,
                f"{till.field}: the replicas that always run cost {amount(till.floors)} in a whole "
                f"{till.window.name}, and its limit is {amount(till.limit)}; lower "
                "spec.scaling.minReplicas of the tenant's services, or raise the limit",
            )
    return None


def _share(till: Till) -> float:
    return till.spent / till.limit if till.limit else 1.0


def summary(view: BudgetView) -> str:
    """The tightest window in one line."""
    if view.purse is None or view.budget.spec is None:
        return ""
    till = max(view.purse.now, key=_share)
    return (
        f"{amount(till.spent)} of {amount(till.limit)} {view.budget.spec.currency} this "
        f"{till.window.name} ({_share(till):.0%})"
    )
