"""What the tenant may still spend, and what would pay for more."""

from collections.abc import Iterator
from datetime import datetime

from tessera.api.reasons import WithinBudget
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.budget.state import RESERVED_DURATION, BudgetState, BudgetWindow, format_amount
from tessera.domain.explain.decision import Decision, Numbers
from tessera.domain.money import Tariff
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.plan import Plan
from tessera.domain.service.proposal import scaling_of
from tessera.domain.service_plan import ServicePlan

_MINUTES = int(RESERVED_DURATION.total_seconds() // 60)
# In nano-units.
_CENT = 10**7


def explain_budget(snapshot: Snapshot, plan: Plan, allotment: ServicePlan) -> Decision:
    """How the tenant of a service stands."""
    namespace = allotment.service.ref.namespace
    view = plan.budgets_by_namespace.get(namespace)
    if view is None or view.state is None:
        return Decision(
            topic="budget",
            reason=WithinBudget.NO_BUDGET,
            message=f"no TenantBudget names the namespace {namespace}, so nothing limits its spend",
            would_change=(f"a TenantBudget with {namespace} in spec.tenant.namespaces",),
        )
    return Decision(
        topic="budget",
        reason=view.within_budget.reason,
        message=view.within_budget.message,
        numbers=_numbers(view, view.state),
        would_change=tuple(_would_change(snapshot, view, view.state, allotment)),
    )


def _numbers(view: BudgetView, budget_state: BudgetState) -> Numbers:
    spec = view.budget.spec
    currency = spec.currency if spec is not None else ""
    owner = spec.owner if spec is not None else ""
    return (
        ("budget", f"{view.budget.name}, owner {owner}"),
        *(
            (
                budget_window.period.name,
                f"{format_amount(budget_window.spent)} spent, "
                f"{format_amount(budget_window.min_replicas_cost)} for the floors, "
                f"{format_amount(budget_window.granted)} granted, of "
                f"{format_amount(budget_window.limit)} {currency} until "
                f"{budget_window.period.end:%Y-%m-%d %H:%M} UTC; "
                f"{format_amount(budget_window.forecast)} expected",
            )
            for budget_window in budget_state.current_windows
        ),
    )


def _would_change(
    snapshot: Snapshot, view: BudgetView, budget_state: BudgetState, allotment: ServicePlan
) -> Iterator[str]:
    """What one more replica lacks in the present windows, and whether the next ones have it."""
    choice, spec = allotment.choice, allotment.service.spec
    if choice is None or spec is None:
        return
    tariff = choice.offer.tariff
    if view.budget.spec is not None and tariff.currency != view.budget.spec.currency:
        yield f"pools priced in {view.budget.spec.currency} in spec.placement.pools"
        return
    min_replicas = 1 if spec.replicas is not None else scaling_of(spec).min_replicas
    always = allotment.scale.replicas < min_replicas
    shortfalls = {
        budget_window.field_path: (budget_window, missing_nanos)
        for budget_window in budget_state.current_windows
        if (missing_nanos := _shortfall(budget_window, tariff, snapshot.at, always=always)) > 0
    }
    purpose = "1 more that always runs" if always else f"{_MINUTES} minutes of 1 more replica"
    if not shortfalls:
        yield f"the limits can pay {purpose} now"
        return
    limits = " and ".join(
        # Rounded up, or the limit told would still be too small.
        f"{budget_window.field_path} of {format_amount(budget_window.limit + shortfall + _CENT)}"
        for budget_window, shortfall in shortfalls.values()
    )
    yield f"{limits} would pay {purpose}"
    begin = max(budget_window.period.end for budget_window, _ in shortfalls.values())
    next_windows = [
        budget_window
        for budget_window in budget_state.next_windows
        if budget_window.field_path in shortfalls
    ]
    if all(
        _shortfall(budget_window, tariff, begin, always=always) <= 0
        for budget_window in next_windows
    ):
        yield f"from {begin:%Y-%m-%d %H:%M} UTC on the limits pay it as they are"
    else:
        yield "the limits of the next windows do not pay it either, as long as all else goes on"


def _shortfall(budget_window: BudgetWindow, tariff: Tariff, at: datetime, *, always: bool) -> int:
    """Nano-units that the window lacks for one more replica; not above 0 when it has enough."""
    start = max(at, budget_window.period.start)
    cost = budget_window.cost(
        tariff, start, budget_window.period.end if always else start + RESERVED_DURATION
    )
    return budget_window.allocated + cost - budget_window.limit if cost else 0
