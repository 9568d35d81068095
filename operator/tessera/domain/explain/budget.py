"""Explanation of the budget: the remaining amounts, and what would pay for more replicas."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from tessera.api.budget_reasons import WithinBudget
from tessera.api.text import counted
from tessera.domain.budget.budgets import BudgetView, tenant_of
from tessera.domain.budget.state import CENT, RESERVED_DURATION, BudgetState, BudgetWindow
from tessera.domain.explain.alternatives import ServiceInFleet
from tessera.domain.explain.variants import next_choice
from tessera.domain.money import Tariff
from tessera.domain.observed.snapshot import Ref, Snapshot
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.reporting.decision import Decision, Numbers
from tessera.domain.service.proposal import guaranteed_replicas


def explain_budget(snapshot: Snapshot, plan: Plan, service_plan: ServicePlan) -> Decision:
    """Return the decision about the budget of a service's tenant."""
    namespace = service_plan.service.ref.namespace
    view = plan.budgets_by_namespace.get(namespace)
    if view is None:
        return Decision(
            topic="budget",
            reason=WithinBudget.NO_BUDGET,
            message=f"no TenantBudget has the namespace {namespace}, so its spend is not limited",
            numbers=_share(plan, namespace),
            would_change=(f"a TenantBudget with {namespace} in spec.tenant.namespaces",),
        )
    return Decision(
        topic="budget",
        reason=view.within_budget.reason,
        message=view.within_budget.message,
        numbers=(*_numbers(view, service_plan.service.ref), *_share(plan, namespace)),
        would_change=tuple(_would_change(snapshot, plan, view.state, service_plan)),
    )


def _share(plan: Plan, namespace: str) -> Numbers:
    """Return the tenant's share of devices that are too few for all tenants with services."""
    budgets = plan.budgets_by_namespace
    weights = dict(tenant_of(ref.namespace, budgets) for ref in plan.service_plans)
    (_, weight), total = tenant_of(namespace, budgets), sum(weights.values())
    return (("share", f"{weight / total:.0%} of scarce devices, weight {weight:g} of {total:g}"),)


def _numbers(view: BudgetView, service: Ref) -> Iterator[tuple[str, str]]:
    amount = view.state.amount
    if view.spec is not None:
        yield "budget", f"{view.budget.name}, owner {view.spec.owner}"
    if (override := view.override) is not None:
        yield "override", f"until {override.until:%Y-%m-%d %H:%M} UTC: {override.reason}"
    for each in view.raises:
        yield (
            "raise",
            f"{each.limit} by {each.by:f} until {each.until:%Y-%m-%d %H:%M} UTC: {each.reason}",
        )
    for window in view.state.current_windows:
        if window.period.service not in (None, service):
            continue
        yield (
            window.period.text,
            f"limit {amount(window.limit)} until {window.period.end:%Y-%m-%d %H:%M} UTC, "
            f"{view.state.spent_text(window)}, committed to minReplicas "
            f"{amount(window.min_replicas_cost)}, reserved {amount(window.granted)}, forecast "
            f"{amount(window.forecast)}",
        )


def _would_change(
    snapshot: Snapshot, plan: Plan, state: BudgetState, service_plan: ServicePlan
) -> Iterator[str]:
    """Yield what one more replica lacks in the current windows, and whether the next pay it."""
    choice, spec = service_plan.choice, service_plan.service.spec
    if choice is None or spec is None:
        return
    on_variant = ""
    if len(service_plan.placement.choices) > 1:
        placed = ServiceInFleet(snapshot=snapshot, plan=plan, service_plan=service_plan, spec=spec)
        choice = next_choice(placed) or choice
        on_variant = f" on {choice.variant}"
    tariff = choice.offer.tariff.paid_for(service_plan.service.ref)
    if state.closed is not None:
        yield f"a valid TenantBudget with {service_plan.service.ref.namespace} in its spec"
        return
    if tariff.currency != state.currency:
        yield f"pools priced in {state.currency} in spec.placement.pools"
        return
    always = service_plan.desired_pods < guaranteed_replicas(spec)
    shortfalls = {
        window.field_path: (window, shortfall)
        for window in state.current_windows
        if (shortfall := _shortfall(window, tariff, snapshot.at, always=always)) > 0
    }
    minutes = counted(RESERVED_DURATION // timedelta(minutes=1), "minute")
    addition = "of minReplicas" if always else f"for {minutes}"
    addition = f"1 more replica{on_variant} {addition}"
    if not shortfalls:
        end = snapshot.at + RESERVED_DURATION
        for window in state.next_windows:
            cost = window.cost(tariff, snapshot.at, window.period.end if always else end)
            if cost and (lack := window.allocated + cost - window.limit) > 0:
                amount = state.amount(window.limit + lack + CENT)
                yield (
                    f"{window.field_path} of {amount} would cover {addition} from "
                    f"{window.period.start:%Y-%m-%d %H:%M} UTC on too; until then the limits cover "
                    "it"
                )
                return
        yield f"the limits already cover {addition}"
        return
    limits = " and ".join(
        # Rounded up by a cent, since the printed amount may be rounded down.
        f"{window.field_path} of {state.amount(window.limit + shortfall + CENT)}"
        for window, shortfall in shortfalls.values()
    )
    yield f"{limits} would cover {addition}"
    begin = max(window.period.end for window, _ in shortfalls.values())
    next_windows = [window for window in state.next_windows if window.field_path in shortfalls]
    if all(_shortfall(window, tariff, begin, always=always) <= 0 for window in next_windows):
        yield f"from {begin:%Y-%m-%d %H:%M} UTC on the current limits cover it"
    else:
        yield "the next windows do not cover it either while everything else keeps running"


def _shortfall(window: BudgetWindow, tariff: Tariff, at: datetime, *, always: bool) -> int:
    """Return the nano-units that a window lacks for one more replica; 0 or less if none."""
    start = max(at, window.period.start)
    cost = window.cost(tariff, start, window.period.end if always else start + RESERVED_DURATION)
    return window.allocated + cost - window.limit if cost else 0
