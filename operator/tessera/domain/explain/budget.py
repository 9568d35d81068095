"""What the tenant may still spend, and what would pay for more."""

from collections.abc import Iterator
from datetime import datetime

from tessera.domain.allotment import ServicePlan
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.budget.purse import HOLD, Purse, Till, amount
from tessera.domain.draft import scaling_of
from tessera.domain.explain.decision import Decision, Numbers
from tessera.domain.money import Tariff
from tessera.domain.plan import Plan
from tessera.domain.reasons import WithinBudget
from tessera.domain.snapshot import Snapshot

_MINUTES = int(HOLD.total_seconds() // 60)
_CENT = 10**7
"""In nano-units."""


def explain_budget(snapshot: Snapshot, plan: Plan, allotment: ServicePlan) -> Decision:
    """How the tenant of a service stands."""
    namespace = allotment.service.ref.namespace
    view = plan.budgets_by_namespace.get(namespace)
    if view is None or view.purse is None:
        return Decision(
            topic="budget",
            reason=WithinBudget.NO_BUDGET,
            message=f"no TenantBudget names the namespace {namespace}, so nothing limits its spend",
            would_change=(f"a TenantBudget with {namespace} in spec.tenant.namespaces",),
        )
    return Decision(
        topic="budget",
        reason=view.funded.reason,
        message=view.funded.message,
        numbers=_numbers(view, view.purse),
        would_change=tuple(_would_change(snapshot, view, view.purse, allotment)),
    )


def _numbers(view: BudgetView, purse: Purse) -> Numbers:
    spec = view.budget.spec
    currency = spec.currency if spec is not None else ""
    owner = spec.owner if spec is not None else ""
    return (
        ("budget", f"{view.budget.name}, owner {owner}"),
        *(
            (
                till.window.name,
                f"{amount(till.spent)} spent, {amount(till.floors)} for the floors, "
                f"{amount(till.granted)} granted, of {amount(till.limit)} {currency} until "
                f"{till.window.end:%Y-%m-%d %H:%M} UTC; {amount(till.forecast)} expected",
            )
            for till in purse.now
        ),
    )


def _would_change(
    snapshot: Snapshot, view: BudgetView, purse: Purse, allotment: ServicePlan
) -> Iterator[str]:
    """What one more replica lacks in the present windows, and whether the next ones have it."""
    choice, spec = allotment.choice, allotment.service.spec
    if choice is None or spec is None:
        return
    tariff = choice.offer.tariff
    if view.budget.spec is not None and tariff.currency != view.budget.spec.currency:
        yield f"pools priced in {view.budget.spec.currency} in spec.placement.pools"
        return
    least = 1 if spec.replicas is not None else scaling_of(spec).min_replicas
    always = allotment.scale.replicas < least
    lacking = {
        till.field: (till, missing)
        for till in purse.now
        if (missing := _missing(till, tariff, snapshot.at, always=always)) > 0
    }
    what = "1 more that always runs" if always else f"{_MINUTES} minutes of 1 more replica"
    if not lacking:
        yield f"the limits can pay {what} now"
        return
    limits = " and ".join(
        # Rounded up, or the limit told would still be too small.
        f"{till.field} of {amount(till.limit + missing + _CENT)}"
        for till, missing in lacking.values()
    )
    yield f"{limits} would pay {what}"
    begin = max(till.window.end for till, _ in lacking.values())
    later = [till for till in purse.ahead if till.field in lacking]
    if all(_missing(till, tariff, begin, always=always) <= 0 for till in later):
        yield f"from {begin:%Y-%m-%d %H:%M} UTC on the limits pay it as they are"
    else:
        yield "the limits of the next windows do not pay it either, as long as all else goes on"


def _missing(till: Till, tariff: Tariff, at: datetime, *, always: bool) -> int:
    """Nano-units that the window lacks for one more replica; not above 0 when it has enough."""
    start = max(at, till.window.start)
    cost = till.cost(tariff, start, till.window.end if always else start + HOLD)
    return till.taken + cost - till.limit if cost else 0
