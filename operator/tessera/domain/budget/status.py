"""Plan -> the status of a budget, which is also the record that a successor goes on from."""

from datetime import datetime, timedelta
from decimal import Decimal

from tessera.api.tenant_budget import (
    RunningStatus,
    SpendStatus,
    TenantBudgetStatus,
    WindowStatus,
)
from tessera.domain.budget.budgets import BudgetView, summary
from tessera.domain.budget.meter import Meter
from tessera.domain.budget.purse import Purse, Till
from tessera.domain.money import units
from tessera.domain.reasons import StatusReason, StatusVerdict
from tessera.domain.status import conditions

RECORD_EVERY = timedelta(minutes=1)
_CENTS_OF_CENTS = Decimal("1e-4")
_DIGITS = Decimal("1e-9")
"""A weight is a share like 15/112; its ninth digit is a nano-unit in an hour."""


def budget_status(view: BudgetView, at: datetime) -> TenantBudgetStatus:
    """The status of one budget.

    The spend is recorded each minute, before each grant, and when a reason, a window, a price or
    the set of replicas changes; in between the last record stands, so that a turn in which nothing
    happens writes nothing.
    """
    budget, old, purse = view.budget, view.budget.status, view.purse
    verdicts: dict[str, StatusVerdict[StatusReason]] = {
        "Accepted": view.accepted,
        "Funded": view.funded,
    }
    told = conditions(verdicts, old.conditions, budget.generation, at)
    reasons = [(one.type, one.reason, one.observed_generation) for one in told]
    same = reasons == [(one.type, one.reason, one.observed_generation) for one in old.conditions]
    if same and not _due(view, old.spend, purse):
        return old
    return TenantBudgetStatus(
        observed_generation=budget.generation,
        conditions=told,
        spend=_record(view.meter, purse) if purse is not None else old.spend,
        summary=summary(view),
        per_hour=units(view.hourly).quantize(_CENTS_OF_CENTS) if purse is not None else None,
        services=view.services,
        batches=view.batches,
    )


def _due(view: BudgetView, record: SpendStatus | None, purse: Purse | None) -> bool:
    if purse is None:
        return False
    known = (view.budget.status.services, view.budget.status.batches)
    if record is None or purse.added or known != (view.services, view.batches):
        return True
    starts = [window.start for window in record.windows]
    rolled = starts != [till.window.start for till in purse.now]
    recorded = {one.uid: one.per_gpu_hour for one in record.running}
    day = purse.at.date()
    rates = {uid: one.tariff.per_gpu_hour(day) for uid, one in view.meter.running.items()}
    return rolled or recorded != rates or purse.at - record.as_of >= RECORD_EVERY


def _record(meter: Meter, purse: Purse) -> SpendStatus:
    return SpendStatus(
        as_of=purse.at,
        windows=tuple(_window(till, meter.settled[till.window.name].since) for till in purse.now),
        running=tuple(
            RunningStatus(
                uid=uid,
                pod=one.pod,
                pool=one.pool,
                weight=one.tariff.weight.quantize(_DIGITS),
                per_gpu_hour=one.tariff.per_gpu_hour(purse.at.date()),
                through=one.through,
            )
            for uid, one in sorted(meter.running.items())
        ),
        lost=tuple(till.window.name for till in purse.now if not meter.knows(till.window)),
    )


def _window(till: Till, since: datetime) -> WindowStatus:
    return WindowStatus(
        window=till.window.name,
        start=till.window.start,
        end=till.window.end,
        limit=units(till.limit),
        counted_from=since if since > till.window.start else None,
        settled=units(till.spent),
        reserved=units(till.floors + till.granted),
        forecast=units(till.forecast),
        overspend_bound=units(max(0, till.taken - till.limit)),
    )
