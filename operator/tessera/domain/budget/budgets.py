"""The budgets of all tenants: acceptance, spend, and the condition WithinBudget."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple
from zoneinfo import ZoneInfo

from tessera.api.accelerator_pool import AcceleratorPoolSpec
from tessera.api.budget_reasons import BudgetAccepted, Enforcing, WithinBudget
from tessera.api.meta import find_condition
from tessera.api.reasons import StatusVerdict
from tessera.api.tenant_budget import (
    EACH,
    BudgetOverride,
    BudgetRaise,
    Limit,
    TenantBudgetSpec,
)
from tessera.api.text import counted
from tessera.domain.budget.actions import ActingBudget, LimitState, current_actions, limit_states
from tessera.domain.budget.meter import SpendMeter, SpendRecord
from tessera.domain.budget.metering import (
    IDLE_INTERVAL,
    MeteringInputs,
    accrue_spend,
    after_setback,
    is_charge_due,
    is_current,
    rates,
    recorded_meter,
    restore_meter,
)
from tessera.domain.budget.name_grants import GrantedNames, TenantGrants
from tessera.domain.budget.namespaces import group_by_namespace, in_namespaces
from tessera.domain.budget.periods import (
    CalendarPeriod,
    limit_key,
    next_period,
    period_at,
    service_of,
    zone_of,
)
from tessera.domain.budget.raises import current_raises, limit_at
from tessera.domain.budget.state import BudgetState, BudgetWindow, amount_path
from tessera.domain.budget.verdicts import within_budget
from tessera.domain.hardware.pools import PoolView
from tessera.domain.incremental import FOREVER, Until, reused, reused_per_object, reused_until
from tessera.domain.money import to_nanos
from tessera.domain.observed.charges import LimitCharges, LimitId
from tessera.domain.observed.snapshot import Budget, ObservedService, Pod, Ref, Snapshot
from tessera.domain.steps import Step, planner_error

_NO_RECORDS: Mapping[str, SpendRecord] = {}
_NO_LIMITS: Mapping[str, Sequence[LimitState]] = {}
_NOT_ACCEPTED = StatusVerdict(
    WithinBudget.NOT_ACCEPTED,
    "no accepted spec names the namespace, so nothing is added there; see the condition Accepted "
    "with kubectl describe tenantbudgets",
)
_BUDGET_REQUIRED = StatusVerdict(
    WithinBudget.BUDGET_REQUIRED,
    "no TenantBudget names the namespace, and the chart value requireBudget is true, so nothing is "
    "added there; create one with the namespace in spec.tenant.namespaces",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetView:
    """A budget with its meter and remaining amounts in a plan."""

    budget: Budget
    accepted: StatusVerdict[BudgetAccepted]
    spec: TenantBudgetSpec | None = None
    """The spec in force: its own, or the last accepted one while that cannot be used."""
    namespaces: tuple[str, ...] = ()
    """Namespaces in which the budget decides."""
    state: BudgetState
    meter: SpendMeter = field(default_factory=SpendMeter)
    override: BudgetOverride | None = None
    """The override in effect: no window is closed because its spend is unknown."""
    raises: tuple[BudgetRaise, ...] = ()
    """The raises in effect."""
    limits: tuple[LimitState, ...] = ()
    """The state of each limit in the order of the spec; empty while none is in force."""
    has_gateway: bool = True
    """Whether a gateway reports."""
    hourly_cost: int = 0
    """Nano-units that all running replicas cost in an hour now."""
    services: int = 0
    """Services of the tenant."""
    batches: int = 0
    """Batches of the tenant that have not finished."""

    @property
    def weight(self) -> float:
        """Return the weight of the tenant where devices are too few for all."""
        return float(self.spec.weight) if self.spec is not None else 1.0

    @property
    def enforcing(self) -> StatusVerdict[Enforcing]:
        """Return the condition Enforcing, which names the limits that hold."""
        if self.state.closed is not None or self.spec is None:
            others = (
                "other than those that other budgets keep"
                if self.accepted.reason is BudgetAccepted.OVERLAPPING
                else "of the budget"
            )
            return StatusVerdict(
                Enforcing.NOT_ACCEPTED,
                f"no spec is in force, so nothing is added in the namespaces {others}: see the "
                "condition Accepted",
            )
        if not self.has_gateway and (charge_limits := self.spec.charge_limits):
            return StatusVerdict(
                Enforcing.NO_GATEWAY,
                f"{counted(len(charge_limits), 'limit')} of basis Charge "
                f"{'holds' if len(charge_limits) == 1 else 'hold'} at gateways alone, and none "
                "reports to the operator: set gateway.enabled in the chart, or see tessera doctor",
            )
        if self.accepted.reason.is_true:
            return StatusVerdict(Enforcing.CURRENT_SPEC, _summarize(self.spec))
        return StatusVerdict(
            Enforcing.LAST_ACCEPTED_SPEC,
            f"status.acceptedSpec continues, {_summarize(self.spec)}; see the condition Accepted",
        )

    @property
    def within_budget(self) -> StatusVerdict[WithinBudget]:
        """Return the condition WithinBudget; valid once the plan has granted all requests."""
        verdict = self.state.closed or within_budget(
            self.state, self.meter, self.limits, is_overridden=self.override is not None
        )
        notes = [
            f"{each.limit} raised by {each.by:f} {self.state.currency} until "
            f"{each.until:%Y-%m-%dT%H:%MZ}: {each.reason}"
            for each in self.raises
        ]
        if self.override is not None:
            until = f"{self.override.until:%Y-%m-%dT%H:%MZ}"
            notes.insert(0, f"override until {until}: {self.override.reason}")
        return StatusVerdict(verdict.reason, "; ".join([verdict.message, *notes]))


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceClaim:
    """The spec of a budget that is in force, and the namespaces that are its own."""

    budget: Budget
    accepted: StatusVerdict[BudgetAccepted]
    spec: TenantBudgetSpec | None
    namespaces: tuple[str, ...]


@reused
def namespace_claims(budgets: Iterable[Budget]) -> Sequence[NamespaceClaim]:
    """Return what every budget claims, the oldest budget first.

    A namespace, and a name in `spec.publishing`, stays with the budget whose accepted spec has it;
    of new claims the older budget's wins, then the earlier name.
    """
    oldest_first = sorted(budgets, key=lambda budget: (budget.created, budget.name))
    owners: dict[str, str] = {}
    granted = GrantedNames()
    for budget in oldest_first:
        if (accepted_spec := budget.status.accepted_spec) is not None:
            granted.replace(budget.name, accepted_spec)
            for name in accepted_spec.tenant.namespaces:
                owners.setdefault(name, budget.name)
    claims = []
    for budget in oldest_first:
        accepted, spec = acceptance(budget, owners, granted), budget.status.accepted_spec
        if accepted.reason.is_true and budget.spec is not None:
            granted.replace(budget.name, budget.spec, spec)
            for name in spec.tenant.namespaces if spec is not None else ():
                if owners[name] == budget.name:
                    del owners[name]
            spec = budget.spec
            owners |= dict.fromkeys(spec.tenant.namespaces, budget.name)
        names = [
            name
            for name in (spec.tenant.namespaces if spec is not None else ())
            if owners.get(name) == budget.name
        ]
        claims.append(
            NamespaceClaim(budget=budget, accepted=accepted, spec=spec, namespaces=tuple(names))
        )
    return _with_contested_names(claims, granted)


def grants_in_force(claims: Iterable[NamespaceClaim | BudgetView]) -> tuple[TenantGrants, ...]:
    """Return what the specs in force say of names, the oldest budget first."""
    oldest_first = sorted(claims, key=lambda claim: (claim.budget.created, claim.budget.name))
    return tuple(
        TenantGrants(
            claim.budget.name,
            claim.namespaces,
            claim.spec.publishing,
            claim.spec.accepted_publishers,
        )
        for claim in oldest_first
        if claim.spec is not None
    )


def _with_contested_names(
    claims: Sequence[NamespaceClaim], granted: GrantedNames
) -> Sequence[NamespaceClaim]:
    """Return the claims; those that keep a name which another budget wants as well say so."""
    contested: dict[str, StatusVerdict[BudgetAccepted]] = {}
    for claim in claims:
        budget = claim.budget
        if claim.accepted.reason is not BudgetAccepted.NAME_CONFLICT or budget.spec is None:
            continue
        if (clash := granted.find_clash(budget.name, budget.spec)) is not None:
            message = (
                f"spec.publishing: {clash.name} stays here, and is also in {clash.field} of "
                f"TenantBudget/{budget.name}, which is not accepted for that; remove it from one "
                "of the two"
            )
            verdict = StatusVerdict(BudgetAccepted.NAME_CONTESTED, message)
            contested.setdefault(clash.holder, verdict)
    return [
        replace(claim, accepted=contested[claim.budget.name])
        if claim.budget.name in contested and claim.accepted.reason is BudgetAccepted.VALID
        else claim
        for claim in claims
    ]


def build_budget_views(
    snapshot: Snapshot,
    inputs: MeteringInputs,
    meters: Mapping[str, SpendMeter],
    last_seen: Mapping[str, datetime],
    records: Mapping[str, SpendRecord] = _NO_RECORDS,
    last_limits: Mapping[str, Sequence[LimitState]] = _NO_LIMITS,
) -> tuple[BudgetView, ...]:
    """Return every budget with its spend until now, in the order of names."""
    services = _refs_by_namespace(snapshot.services)
    batches = Counter(batch.ref.namespace for batch in snapshot.batches if batch.unfinished)
    budget_views = {}
    for claim in namespace_claims(snapshot.budgets):
        budget, names = claim.budget, claim.namespaces
        last = meters.get(budget.name)
        metered = MeteredTenant(
            claim,
            override=budget.override
            if budget.override is not None and snapshot.at < budget.override.until
            else None,
            raises=current_raises(claim.spec, budget.raises, snapshot.at) if claim.spec else (),
            services=tuple(in_namespaces(names, services)),
            batches=sum(batches[name] for name in names),
            pods=tuple(in_namespaces(names, inputs.pods)),
            pools=inputs.pools,
            specs=inputs.specs,
            record=None
            if last is not None and is_current(last, snapshot.at)
            else records.get(budget.name),
        )
        view = meter_budget(metered, at=snapshot.at, memory=last, last_seen=last_seen)
        last_states = last_limits.get(budget.name, ())
        budget_views[budget.name] = judge_limits(view, snapshot.charges, last_states)
    return tuple(budget_views[name] for name in sorted(budget_views))


@reused
def _refs_by_namespace(services: tuple[ObservedService, ...]) -> Mapping[str, Sequence[Ref]]:
    return group_by_namespace((service.ref, service.ref) for service in services)


def closed_views(
    snapshot: Snapshot, budget_views: Sequence[BudgetView], *, require_budget: bool
) -> tuple[BudgetView, ...]:
    """Return a closed view for namespaces without a budget in force that get nothing new.

    Those are the namespaces that only unusable specs name, and with `require_budget` all others.
    """
    decided = {name for view in budget_views for name in view.namespaces}
    closed = []
    for view in budget_views:
        names = [name for name in _named_namespaces(view.budget) if name not in decided]
        decided.update(names)
        if names:
            state = _closed_state(view.budget.name, snapshot.at, _NOT_ACCEPTED)
            closed.append(replace(view, spec=None, namespaces=tuple(names), state=state))
    if not require_budget:
        return tuple(closed)
    refs = [service.ref for service in snapshot.services]
    refs += [batch.ref for batch in snapshot.batches]
    if rest := {ref.namespace for ref in refs} - decided:
        closed.append(
            BudgetView(
                budget=Budget(ref=Ref("", ""), generation=0, spec=None),
                accepted=StatusVerdict(BudgetAccepted.INVALID_SPEC, _BUDGET_REQUIRED.message),
                namespaces=tuple(sorted(rest)),
                state=_closed_state("", snapshot.at, _BUDGET_REQUIRED),
            )
        )
    return tuple(closed)


def by_namespace(views: Sequence[BudgetView]) -> Mapping[str, BudgetView]:
    """Return the budget that decides in each namespace."""
    return {name: view for view in views for name in view.namespaces}


def tenant_of(namespace: str, views: Mapping[str, BudgetView]) -> tuple[str, float]:
    """Return the tenant of a namespace and its weight; without a budget all are one tenant."""
    view = views.get(namespace)
    return ("", 1.0) if view is None else (view.budget.name, view.weight)


def zone_fault(spec: TenantBudgetSpec) -> str | None:
    """Return why spec.timeZone cannot be used; None when it can."""
    if zone_of(spec.time_zone) is not None:
        return None
    return (
        f"spec.timeZone: {spec.time_zone} is not an IANA time zone; use a name such as "
        "Europe/Berlin from timedatectl list-timezones"
    )


def zone_warnings(budget: Budget) -> Iterator[str]:
    """Yield a warning for each window with spend that a new spec.timeZone begins again."""
    spec, accepted_spec, spend = budget.spec, budget.status.accepted_spec, budget.status.spend
    if spec is None or accepted_spec is None or spend is None:
        return
    zone = zone_of(spec.time_zone)
    if zone is None or spec.time_zone == accepted_spec.time_zone:
        return
    for window in spend.windows:
        start = period_at(window.window, spend.as_of, zone).start
        if window.spent and start != window.start:
            yield (
                f"spec.timeZone: {spec.time_zone} instead of {accepted_spec.time_zone} begins the "
                f"window {limit_key(window.window, window.tier)} at "
                f"{start:%Y-%m-%d %H:%M} UTC instead of {window.start:%Y-%m-%d %H:%M} UTC, and its "
                f"limit is whole again: {window.spent.normalize():f} {spec.currency} spent until "
                "now are not counted; change it when the window begins to keep the limit"
            )


def currency_fault(budget: Budget) -> str | None:
    """Return why spec.currency cannot change: the recorded spend is in the accepted currency."""
    spec, accepted_spec, spend = budget.spec, budget.status.accepted_spec, budget.status.spend
    if spec is None or accepted_spec is None or spec.currency == accepted_spec.currency:
        return None
    if spend is None or not (spend.running or any(window.spent for window in spend.windows)):
        return None
    return (
        f"spec.currency: {spec.currency} cannot replace {accepted_spec.currency}, in which the "
        "windows have spend; restore it, or create another TenantBudget in the next window"
    )


def _closed_state(name: str, at: datetime, verdict: StatusVerdict[WithinBudget]) -> BudgetState:
    return BudgetState(name, "", at, closed=verdict)


def _named_namespaces(budget: Budget) -> Sequence[str]:
    return budget.spec.tenant.namespaces if budget.spec is not None else budget.named_namespaces


def _summarize(spec: TenantBudgetSpec) -> str:
    names = ", ".join(sorted(spec.tenant.namespaces))
    return f"{counted(len(spec.limits), 'limit')} in {spec.currency} for {names}"


def _acceptance(
    budget: Budget, owners: Mapping[str, str], granted: GrantedNames
) -> StatusVerdict[BudgetAccepted]:
    spec = budget.spec
    if spec is None:
        return StatusVerdict(BudgetAccepted.INVALID_SPEC, budget.problem or "spec: unreadable")
    if (fault := zone_fault(spec)) is not None:
        return StatusVerdict(BudgetAccepted.INVALID_TIME_ZONE, fault)
    if (fault := currency_fault(budget)) is not None:
        return StatusVerdict(BudgetAccepted.CURRENCY_IMMUTABLE, fault)
    for index, name in enumerate(spec.tenant.namespaces):
        if owners.get(name, budget.name) != budget.name:
            return StatusVerdict(
                BudgetAccepted.OVERLAPPING,
                f"spec.tenant.namespaces[{index}]: {name} belongs to TenantBudget/{owners[name]} "
                "already; remove it from one of the two, since a namespace has at most 1 budget",
            )
    if (clash := granted.find_clash(budget.name, spec)) is not None:
        return StatusVerdict(
            BudgetAccepted.NAME_CONFLICT,
            f"{clash.field}: {clash.name} belongs to TenantBudget/{clash.holder} already; remove "
            "it from one of the two, since no tenant gets services of two others by one name",
        )
    return StatusVerdict(BudgetAccepted.VALID, _summarize(spec))


def _refuse(error: Exception, budget: Budget, *_: object) -> StatusVerdict[BudgetAccepted]:
    message = planner_error(error, "tenantbudget", budget.name)
    return StatusVerdict(BudgetAccepted.PLANNER_ERROR, message)


acceptance = Step(_acceptance, _refuse)


class MeteredTenant(NamedTuple):
    """What the view of a budget is made of but the time and the last meter."""

    claim: NamespaceClaim
    override: BudgetOverride | None
    raises: tuple[BudgetRaise, ...]
    services: tuple[Ref, ...]
    batches: int
    pods: tuple[Pod, ...]
    pools: Mapping[str, PoolView]
    specs: Mapping[str, AcceleratorPoolSpec]
    record: SpendRecord | None
    """What is known outside the object, where the last meter is not known or of the future."""

    def unmetered(self, at: datetime, meter: SpendMeter | None) -> BudgetView:
        """Return the view of a budget of which no spec is in force."""
        budget = self.claim.budget
        return BudgetView(
            budget=budget,
            accepted=self.claim.accepted,
            spec=self.claim.spec,
            namespaces=self.claim.namespaces,
            state=_closed_state(budget.name, at, _NOT_ACCEPTED),
            meter=meter or SpendMeter(),
            override=self.override,
            raises=self.raises,
            services=len(self.services),
            batches=self.batches,
        )


def _metered_view(
    tenant: MeteredTenant,
    *,
    at: datetime,
    memory: SpendMeter | None,
    last_seen: Mapping[str, datetime],
) -> BudgetView:
    """Return the view with the meter advanced and its state, if a spec is in force."""
    name = tenant.claim.budget.name
    return _metered(name, tenant, at=at, memory=memory, last_seen=last_seen)


@reused_until
def _metered(
    _name: str,
    tenant: MeteredTenant,
    *,
    at: datetime,
    memory: SpendMeter | None,
    last_seen: Mapping[str, datetime],
) -> Until[BudgetView]:
    view = tenant.unmetered(at, memory)
    spec, now = view.spec, at
    zone = zone_of(spec.time_zone) if spec is not None else None
    if spec is None or zone is None:
        return Until(view, now)
    meter, is_lost = _latest_meter(now, tenant, spec, memory)
    at = max(now, meter.as_of or now)
    limits = _cost_limits(spec, meter, tenant.services, at, zone)
    # A service may have a limit of its own beside that for each.
    periods = list({each.period.key: each.period for each in limits}.values())
    unknown = {
        period.key: period.start
        for period in periods
        # A record outside the status has no spend of single services.
        if is_lost
        or (period.service is not None and not meter.names_replicas)
        # The clock was set back over its end: only the spend of a later window is known.
        or (
            (later := meter.spend_by_window.get(period.key)) is not None
            and later.start > period.start
        )
    }
    if unknown:
        meter = replace(meter, incomplete_windows={**meter.incomplete_windows, **unknown})
    pods, pools = tenant.pods, tenant.pools
    pod_rates = rates(pods, pools, spec.currency)
    as_of = meter.as_of or at
    next_window = min(
        (period_at(each.window, as_of, zone).end for each in spec.limits), default=FOREVER
    )
    if at >= next_window or is_charge_due(meter, pods, pod_rates, periods, at):
        meter = accrue_spend(meter, pods, pod_rates, periods, at, last_seen)
    as_of = meter.as_of or at
    state = _budget_state(view, spec, meter, limits, as_of)
    state.currency_mismatch = _uncounted_pods(pods, pools, spec.currency)
    hourly_cost = sum(
        replica.tariff.hourly(as_of.date()).nanos for replica in meter.running.values()
    )
    view = replace(view, meter=meter, state=state, hourly_cost=hourly_cost)
    is_moving = meter.running or at >= next_window
    return Until(view, now if is_moving else min(next_window, as_of + IDLE_INTERVAL), meter)


def _uncounted_pods(
    pods: Sequence[Pod], pools: Mapping[str, PoolView], currency: str
) -> str | None:
    """Return which pools of another currency the pods run in; None without one."""
    names = {
        f"{view.pool.name} ({view.price.currency})"
        for pod in pods
        if pod.ended is None
        and (view := pools.get(pod.node or "")) is not None
        and view.price is not None
        and view.price.currency != currency
    }
    if not names:
        return None
    return (
        f"spec.currency: {currency}, but the tenant runs in {', '.join(sorted(names))}, where its "
        "cost is not counted and nothing is added; convert spec.prices of the pool, or name other "
        "pools in spec.placement.pools"
    )


def _set_aside(error: Exception, view: BudgetView) -> BudgetView:
    message = planner_error(error, "tenantbudget", view.budget.name)
    accepted = StatusVerdict(BudgetAccepted.PLANNER_ERROR, message)
    return replace(view, accepted=accepted, spec=None)


meter_budget = Step(
    _metered_view,
    lambda error, tenant, *, at, memory, **_: _set_aside(error, tenant.unmetered(at, memory)),
)


def _with_limits(
    view: BudgetView,
    charges: Mapping[LimitId, LimitCharges] | None,
    last: Sequence[LimitState],
) -> BudgetView:
    """Return the view with the state of its limits, and with what it does by them."""
    return _judged(view.budget.name, view, charges, last)


@reused_per_object
def _judged(
    _name: str,
    view: BudgetView,
    charges: Mapping[LimitId, LimitCharges] | None,
    last: Sequence[LimitState],
) -> BudgetView:
    if view.spec is None or view.state.closed is not None:
        return view
    acting = ActingBudget(
        name=view.budget.name,
        spec=view.spec,
        raises=view.raises,
        state=view.state,
        recorded=view.budget.status.limits,
        last=last,
    )
    limits = limit_states(acting, charges)
    view.state.actions = current_actions(limits, view.budget.name)
    return replace(view, limits=limits, has_gateway=charges is not None)


judge_limits = Step(_with_limits, lambda error, view, *_: _set_aside(error, view))


def _budget_state(
    view: BudgetView,
    spec: TenantBudgetSpec,
    meter: SpendMeter,
    limits: Sequence["_CostLimit"],
    at: datetime,
) -> BudgetState:
    current = [
        BudgetWindow(
            field_path=amount_path(place),
            period=period,
            limit=limit_at(spec, limit, view.raises, at)
            if view.override or meter.is_complete(period)
            # With an unknown spend only the allowed remainder of the limit is available.
            else min(to_nanos(limit.amount), _allowance(spec)),
            is_each=limit.for_ is not None and limit.for_.part[1] == EACH,
            spent=meter.spent(period) + (loan := meter.loan(period)).used,
            outside=loan.used,
            lent=loan.counted - loan.used,
        )
        for place, limit, period in limits
    ]
    zone = zone_of(spec.time_zone) or ZoneInfo("UTC")
    upcoming = [
        replace(
            budget_window,
            period=period,
            limit=limit_at(spec, each.limit, view.raises, period.start),
            spent=0,
            outside=0,
            lent=0,
        )
        for budget_window, each in zip(current, limits, strict=True)
        for period in (next_period(budget_window.period, zone),)
    ]
    return BudgetState(view.budget.name, spec.currency, at, current, upcoming, gpu_quota=spec.gpus)


class _CostLimit(NamedTuple):
    """A limit of basis Cost in the window of one of the services that it counts, or of all."""

    place: int
    """In the spec, from 0 on."""
    limit: Limit
    period: CalendarPeriod


def _cost_limits(
    spec: TenantBudgetSpec, meter: SpendMeter, services: Iterable[Ref], at: datetime, zone: ZoneInfo
) -> Sequence[_CostLimit]:
    """Return each limit of basis Cost; of one for each service a limit for each of them.

    A service that was deleted stays with what it spent, so that one of its name goes on from that.
    """
    running = (replica.tariff.service for replica in meter.running.values())
    spent = (service_of(key) for key, spend in meter.spend_by_window.items() if spend.nanos)
    every = sorted({ref for ref in (*services, *running, *spent) if ref is not None})
    limits = []
    for place, limit in spec.cost_limits:
        period = period_at(limit.window, at, zone, limit.tier)
        counted: Sequence[Ref | None] = (None,)
        if limit.for_ is not None:
            member = limit.for_.part[1]
            counted = every if member == EACH else (Ref.parse(member),)
        limits += [
            _CostLimit(place, limit, replace(period, service=service)) for service in counted
        ]
    return limits


def _latest_meter(
    at: datetime, tenant: MeteredTenant, spec: TenantBudgetSpec, last: SpendMeter | None
) -> tuple[SpendMeter, bool]:
    """Return the meter to go on from, and whether there was one that cannot be used."""
    if last is not None and is_current(last, at):
        return after_setback(last, at), False
    budget, specs = tenant.claim.budget, tenant.specs
    spend, record = budget.status.spend, tenant.record
    recorded = (
        SpendMeter()
        if spend is None
        else restore_meter(spend, budget.status.outside, specs, spec.currency)
    )
    outside = record.meter if record and record.currency == spec.currency else SpendMeter()
    meter = recorded_meter(recorded, outside, at)
    accepted = find_condition(budget.status.conditions, "Accepted")
    was_accepted = accepted is not None and accepted.status == "True"
    was_enforced = budget.status.accepted_spec is not None or was_accepted
    # A budget that was enforced had a record of its spend: without it the windows are incomplete.
    is_lost = budget.record_lost or was_enforced or record is not None or recorded.as_of is not None
    return after_setback(meter, at), meter.as_of is None and is_lost


def _allowance(spec: TenantBudgetSpec) -> int:
    return to_nanos(spec.on_spend_unknown.allow_up_to or Decimal(0))
