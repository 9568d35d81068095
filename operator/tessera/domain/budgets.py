"""The budgets of the tenants: which hold, what was spent, and how each one stands."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from zoneinfo import ZoneInfo

from tessera.api.accelerator_pool import Price
from tessera.api.tenant_budget import TenantBudgetSpec
from tessera.domain.batch_allotment import TERMINAL
from tessera.domain.batch_facts import Batch
from tessera.domain.meter import Meter
from tessera.domain.money import nanos
from tessera.domain.pools import PoolView
from tessera.domain.purse import Purse, Till, amount
from tessera.domain.reasons import BudgetAccepted, Funded, Verdict
from tessera.domain.snapshot import Budget, Service, Snapshot
from tessera.domain.spend import from_record, rates, settle
from tessera.domain.windows import following, window_at, zone_of

_NEAR = 0.8
"""Share of a limit from which on its owner is warned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetView:
    """A budget in a plan."""

    budget: Budget
    accepted: Verdict[BudgetAccepted]
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
    def funded(self) -> Verdict[Funded]:
        """How the tenant stands, once everything passed the purse."""
        if self.purse is None:
            return Verdict(Funded.NOT_ACCEPTED, "nothing is enforced while Accepted is False")
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
        accepted = _judged(snapshot, budget, views, owners)
        view = BudgetView(budget=budget, accepted=accepted)
        if budget.spec is not None and (zone := zone_of(budget.spec.time_zone)) is not None:
            names = budget.spec.tenant.namespaces
            view = replace(
                view,
                services=sum(services[name] for name in names),
                batches=sum(batches[name] for name in names),
            )
            if accepted.reason.holds:
                owners |= dict.fromkeys(names, budget.name)
                view = _opened(snapshot, view, budget.spec, zone, views)
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


def _judged(
    snapshot: Snapshot, budget: Budget, views: Sequence[PoolView], owners: Mapping[str, str]
) -> Verdict[BudgetAccepted]:
    spec = budget.spec
    if spec is None:
        return Verdict(BudgetAccepted.SPEC_UNREADABLE, budget.problem or "spec: unreadable")
    if (fault := zone_fault(spec)) is not None:
        return Verdict(BudgetAccepted.ZONE_UNKNOWN, fault)
    for index, name in enumerate(spec.tenant.namespaces):
        if name in owners:
            return Verdict(
                BudgetAccepted.OVERLAPPING,
                f"spec.tenant.namespaces[{index}]: {name} belongs to budget {owners[name]} "
                "already, and a namespace has 1 budget; take it out of one of them",
            )
    for view in _usable(snapshot, spec, views):
        if view.price is not None and view.price.currency != spec.currency:
            return Verdict(
                BudgetAccepted.MIXED_CURRENCIES,
                f"spec.currency is {spec.currency}, and pool {view.pool.name}, which the tenant "
                f"may use, is priced in {view.price.currency}; 1 budget has 1 currency: convert "
                "the prices, or name other pools in spec.placement.pools of the services",
            )
    return Verdict(
        BudgetAccepted.VALID,
        f"{len(spec.limits)} limits in {spec.currency} for "
        f"{', '.join(sorted(spec.tenant.namespaces))}",
    )


def _usable(
    snapshot: Snapshot, spec: TenantBudgetSpec, views: Sequence[PoolView]
) -> Sequence[PoolView]:
    """The pools that services and batches of the tenant may use."""
    users: tuple[Service | Batch, ...] = (*snapshot.services, *snapshot.batches)
    named = [
        one.spec.placement.pools
        for one in users
        if one.spec is not None and one.ref.namespace in spec.tenant.namespaces
    ]
    if any(not pools for pools in named):
        return views
    return [view for view in views if any(view.pool.name in pools for pools in named)]


def _opened(
    snapshot: Snapshot,
    view: BudgetView,
    spec: TenantBudgetSpec,
    zone: ZoneInfo,
    views: Sequence[PoolView],
) -> BudgetView:
    budget = view.budget
    meter = snapshot.meters.get(budget.name) or _recalled(budget, spec, views)
    at = max(snapshot.at, meter.as_of or snapshot.at)
    windows = [window_at(limit.window, at, zone) for limit in spec.limits]
    if meter.as_of is None and budget.status.conditions:
        meter = replace(meter, lost={window.name: window.start for window in windows})
    pods = [pod for pod in snapshot.pods if pod.ref.namespace in spec.tenant.namespaces]
    meter = settle(meter, pods, rates(pods, views), windows, at, snapshot.last_seen)
    ends = {pod.uid for pod in pods if pod.ended is not None}
    now = [
        Till(
            field=f"spec.limits[{index}].amount",
            window=window,
            limit=_limit(spec, index, known=meter.knows(window)),
            spent=meter.spent(window),
        )
        for index, window in enumerate(windows)
    ]
    ahead = [
        replace(till, window=following(till.window, zone), limit=nanos(limit.amount), spent=0)
        for till, limit in zip(now, spec.limits, strict=True)
    ]
    return replace(
        view,
        meter=meter,
        purse=Purse(budget.name, at, now, ahead),
        hourly=sum(
            one.tariff.hourly(at.date()).nanos
            for uid, one in meter.running.items()
            if uid not in ends
        ),
    )


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


def _funded(view: BudgetView, purse: Purse) -> Verdict[Funded]:
    if (refusing := _refusing(view, purse)) is not None:
        return refusing
    tightest = max(purse.now, key=_share)
    told = (
        f"{tightest.field}: {amount(tightest.spent)} of {amount(tightest.limit)} are spent in this "
        f"{tightest.window.name}, and {amount(tightest.forecast)} are expected at its end"
    )
    if _share(tightest) >= _NEAR:
        return Verdict(Funded.NEAR_LIMIT, told)
    above = next((till for till in purse.now if till.forecast > till.limit), None)
    if above is None:
        return Verdict(Funded.WITHIN_LIMITS, told)
    return Verdict(
        Funded.FORECAST_ABOVE_LIMIT,
        f"{above.field}: {amount(above.forecast)} are expected at the end of the "
        f"{above.window.name}, above its limit of {amount(above.limit)}",
    )


def _refusing(view: BudgetView, purse: Purse) -> Verdict[Funded] | None:
    """Why something is refused, or would be."""
    for till in purse.now:
        if not view.meter.knows(till.window):
            return Verdict(
                Funded.SPEND_UNKNOWN,
                f"spec.onLedgerLoss: the record of this {till.window.name} was lost, so at most "
                f"{amount(till.limit)} are granted until {till.window.end:%Y-%m-%dT%H:%MZ}; "
                "spec.onLedgerLoss.allowUpTo allows more",
            )
    if (floors := _floors_above(purse.now)) is not None:
        return floors
    if purse.shortage is not None:
        return Verdict(Funded.BUDGET_EXHAUSTED, purse.shortage.message)
    return _floors_above(purse.ahead)


def _floors_above(tills: Sequence[Till]) -> Verdict[Funded] | None:
    for till in tills:
        if till.spent + till.floors > till.limit:
            return Verdict(
                Funded.FLOORS_ABOVE_LIMIT,
                f"{till.field}: the replicas that always run take the {till.window.name} that "
                f"begins at {till.window.start:%Y-%m-%dT%H:%MZ} to "
                f"{amount(till.spent + till.floors)}, above its limit of {amount(till.limit)}; "
                "lower spec.scaling.minReplicas of the tenant's services, or raise the limit",
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
