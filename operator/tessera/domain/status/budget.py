"""Plan -> the status of a budget, which is also the record that a successor goes on from."""

from collections import Counter
from datetime import datetime, timedelta
from decimal import Decimal

from tessera.api.tenant_budget import (
    MAX_SERVICE_WINDOWS,
    AccountStatus,
    LimitStatus,
    OutsideStatus,
    RunningGroupStatus,
    RunningStatus,
    ServiceSpendStatus,
    SpendStatus,
    TenantBudgetStatus,
    WindowName,
    WindowStatus,
)
from tessera.domain.budget.actions import LimitState
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.budget.meter import WEIGHT_QUANTUM, MeteredReplica, OutsideLoan, SpendMeter
from tessera.domain.budget.state import BudgetState, BudgetWindow
from tessera.domain.budget.verdicts import summary
from tessera.domain.money import from_nanos
from tessera.domain.status.conditions import conditions

RECORD_INTERVAL = timedelta(minutes=1)
_COST_QUANTUM = Decimal("1e-4")
# Replicas that a record names: with names of any length it stays below 256 KiB.
MAX_NAMED_REPLICAS = 400


def budget_status(
    view: BudgetView, at: datetime, *, must_record: bool = False
) -> TenantBudgetStatus:
    """Return the status of one budget.

    The spend is recorded each minute while there is any, before each grant, and when a reason, a
    window, a price or the set of replicas changes; in between the last record stands, so that a
    reconcile in which nothing happens writes nothing.
    """
    budget, previous, state = view.budget, view.budget.status, view.state
    verdicts = {
        "Accepted": view.accepted,
        "Enforcing": view.enforcing,
        "WithinBudget": view.within_budget,
    }
    new_conditions = conditions(verdicts, budget, at)
    before, after = (
        [(each.type, each.reason, each.observed_generation) for each in listed]
        for listed in (previous.conditions, new_conditions)
    )
    same_spec = view.spec in (None, previous.accepted_spec)
    changed = must_record or (view.override, view.raises) != (previous.override, previous.raises)
    limits = tuple(_limit_status(each) for each in view.limits)
    acts = [
        [(each.name, each.reached, each.actions) for each in listed]
        for listed in (previous.limits, limits)
    ]
    outside = tuple(
        _outside_status(window.period.name, view.meter.loan(window.period))
        for window in state.current_windows
        if window.outside or window.lent or view.meter.loan(window.period).generation
    )
    lent = [
        [(each.start, each.amount, each.previous_amount) for each in listed]
        for listed in (previous.outside, outside)
    ]
    changed = changed or acts[0] != acts[1] or lent[0] != lent[1]
    is_due = changed or _is_record_due(view, limits, state)
    if before == after and same_spec and not is_due:
        return previous
    return TenantBudgetStatus(
        observed_generation=budget.generation,
        conditions=new_conditions,
        accepted_spec=view.spec or previous.accepted_spec,
        spend=_spend_status(view.meter, state) if state.closed is None else previous.spend,
        override=view.override,
        raises=view.raises,
        limits=limits if state.closed is None else previous.limits,
        outside=outside if state.closed is None else previous.outside,
        summary=summary(state, view.limits),
        per_hour=from_nanos(view.hourly_cost).quantize(_COST_QUANTUM)
        if state.closed is None
        else None,
        services=view.services,
        batches=view.batches,
    )


def _is_record_due(view: BudgetView, limits: tuple[LimitStatus, ...], state: BudgetState) -> bool:
    if state.closed is not None:
        return False
    previous = view.budget.status
    record, recorded_counts = previous.spend, (previous.services, previous.batches)
    if record is None or state.has_new_grants or recorded_counts != (view.services, view.batches):
        return True
    starts = [window.start for window in record.windows]
    window_changed = starts != [window.period.start for window in _shared_windows(state)]
    recorded = {replica.uid: replica.per_gpu_hour for replica in record.running}
    day = state.at.date()
    named, groups = _recorded_replicas(view.meter, state)
    rates = {uid: replica.tariff.per_gpu_hour(day) for uid, replica in named}
    return (
        window_changed
        or recorded != rates
        or record.running_groups != groups
        or (abs(state.at - record.as_of) >= RECORD_INTERVAL and _says_more(view, limits, record))
    )


def _says_more(view: BudgetView, limits: tuple[LimitStatus, ...], record: SpendStatus) -> bool:
    """Return whether a record of now says more than that nothing was spent since the last one."""
    spend = _spend_status(view.meter, view.state)
    return limits != view.budget.status.limits or record != spend.model_copy(
        update={"as_of": record.as_of}
    )


def _recorded_replicas(
    meter: SpendMeter, state: BudgetState
) -> tuple[list[tuple[str, MeteredReplica]], tuple[RunningGroupStatus, ...]]:
    """Return the replicas that a record names, by uid, and the others as groups.

    Those that ended by a clock ahead of this one, and those bound last, are named first: only of
    these a successor could not tell until when they are charged.
    """
    running = sorted(meter.running.items())
    if len(running) <= MAX_NAMED_REPLICAS:
        return running, ()
    running.sort(key=lambda item: (item[1].charged_until, item[1].bound), reverse=True)
    day, has_tier = state.at.date(), _records_tiers(state)
    groups = Counter(
        (
            replica.pool,
            replica.tariff.tier if has_tier else None,
            replica.tariff.weight.quantize(WEIGHT_QUANTUM),
            replica.tariff.per_gpu_hour(day),
        )
        for _, replica in running[MAX_NAMED_REPLICAS:]
    )
    return sorted(running[:MAX_NAMED_REPLICAS]), tuple(
        RunningGroupStatus(
            pool=pool, tier=tier, weight=weight, per_gpu_hour=price, replicas=replicas
        )
        for (pool, tier, weight, price), replicas in sorted(
            groups.items(), key=lambda item: (item[0][0], *item[0][2:])
        )
    )


def _shared_windows(state: BudgetState) -> list[BudgetWindow]:
    """Return the windows that count all services."""
    return [window for window in state.current_windows if window.period.service is None]


def _service_spends(meter: SpendMeter, state: BudgetState) -> tuple[ServiceSpendStatus, ...]:
    """Return what the other windows have spent, as far as a successor needs to know it."""
    periods = {
        period.key: period
        for window in state.current_windows
        if (period := window.period).service is not None
        and (meter.spent(period) or not meter.is_complete(period))
    }
    largest = sorted(periods.values(), key=lambda each: (-meter.spent(each), each.key))
    return tuple(
        ServiceSpendStatus(
            window=period.name,
            tier=period.tier,
            service=str(period.service),
            start=period.start,
            spent=from_nanos(meter.spent(period)),
            incomplete=not meter.is_complete(period),
        )
        for period in largest[:MAX_SERVICE_WINDOWS]
    )


def _records_tiers(state: BudgetState) -> bool:
    """Return whether a limit needs the tiers of replicas once their pools are deleted."""
    return any(window.period.tier is not None for window in state.current_windows)


def _spend_status(meter: SpendMeter, state: BudgetState) -> SpendStatus:
    shared, services = _shared_windows(state), _service_spends(meter, state)
    named, groups = _recorded_replicas(meter, state)
    has_tier, has_service = _records_tiers(state), len(shared) < len(state.current_windows)
    return SpendStatus(
        as_of=state.at,
        windows=tuple(
            _window_status(window, meter.spend_by_window[window.period.key].since)
            for window in shared
        ),
        services=services or None,
        running=tuple(
            RunningStatus(
                uid=uid,
                pod=replica.pod,
                pool=replica.pool,
                weight=replica.tariff.weight.quantize(WEIGHT_QUANTUM),
                per_gpu_hour=replica.tariff.per_gpu_hour(state.at.date()),
                charged_until=replica.charged_until,
                tier=replica.tariff.tier if has_tier else None,
                service=str(replica.tariff.service)
                if has_service and replica.tariff.service
                else None,
            )
            for uid, replica in named
        ),
        running_groups=groups,
        incomplete_windows=tuple(
            window.period.key for window in shared if not meter.is_complete(window.period)
        ),
    )


def _limit_status(state: LimitState) -> LimitStatus:
    return LimitStatus(
        name=state.name,
        basis=state.basis,
        start=state.period.start,
        end=state.period.end,
        limit=from_nanos(state.limit),
        spent=from_nanos(state.spent),
        lent=from_nanos(state.lent) if state.lent else None,
        outside=from_nanos(state.outside) if state.outside else None,
        members=state.members,
        nearest=tuple(
            AccountStatus(member=each.member, spent=from_nanos(each.settled))
            for each in state.accounts
        ),
        reached=state.reached,
        actions=state.actions,
    )


def _outside_status(window: WindowName, loan: OutsideLoan) -> OutsideStatus:
    return OutsideStatus(
        window=window,
        start=loan.start,
        amount=from_nanos(loan.amount),
        used=from_nanos(loan.used),
        generation=loan.generation,
        previous_amount=from_nanos(loan.previous_amount) if loan.previous_amount else None,
    )


def _window_status(window: BudgetWindow, since: datetime) -> WindowStatus:
    return WindowStatus(
        window=window.period.name,
        tier=window.period.tier,
        start=window.period.start,
        end=window.period.end,
        limit=from_nanos(window.limit),
        counted_from=since if since > window.period.start else None,
        spent=from_nanos(window.spent),
        outside=from_nanos(window.outside) if window.outside else None,
        committed=from_nanos(window.min_replicas_cost + window.granted),
        forecast=from_nanos(window.forecast),
        max_overspend=from_nanos(max(0, window.allocated - window.limit)),
    )
