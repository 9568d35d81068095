"""What the tenant may still spend, and what would pay for more."""

from collections.abc import Iterator

from tessera.domain.budget.budgets import BudgetView
from tessera.domain.budget.purse import HOLD, Purse, Till, amount
from tessera.domain.explain.decision import Decision, Numbers
from tessera.domain.money import Tariff
from tessera.domain.plan import Allotment, Plan
from tessera.domain.reasons import Funded
from tessera.domain.snapshot import Snapshot


def explain_budget(snapshot: Snapshot, plan: Plan, allotment: Allotment) -> Decision:
    """How the tenant of a service stands."""
    namespace = allotment.service.ref.namespace
    view = plan.tenants.get(namespace)
    if view is None or view.purse is None:
        return Decision(
            topic="budget",
            reason=Funded.NO_BUDGET,
            message=f"no TenantBudget names the namespace {namespace}, so nothing limits its spend",
            would_change=(f"a TenantBudget with {namespace} in spec.tenant.namespaces",),
        )
    tariff = allotment.choice.offer.tariff if allotment.choice is not None else None
    return Decision(
        topic="budget",
        reason=view.funded.reason,
        message=view.funded.message,
        numbers=_numbers(view, view.purse),
        would_change=tuple(_would_change(snapshot, view, view.purse, tariff)),
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
    snapshot: Snapshot, view: BudgetView, purse: Purse, tariff: Tariff | None
) -> Iterator[str]:
    """What one more replica lacks; without a lack, how far it is to the limit."""
    if tariff is None:
        return
    lacking = list(_lacking(snapshot, purse, tariff))
    for till, missing in lacking:
        # Rounded up, or the limit told would still be too small.
        needed = amount(till.limit + missing + 10**7)
        yield (
            f"{till.field} of {needed}, {amount(missing)} more, would pay the next "
            f"{int(HOLD.total_seconds() // 60)} minutes of 1 more replica; so would the next "
            f"{till.window.name}, from {till.window.end:%Y-%m-%d %H:%M} UTC, within its own limit"
        )
    if not lacking and view.funded.reason is not Funded.SPEND_UNKNOWN:
        yield "the limits can pay at least 1 more replica now"


def _lacking(snapshot: Snapshot, purse: Purse, tariff: Tariff) -> Iterator[tuple[Till, int]]:
    for till in purse.now:
        cost = till.cost(tariff, snapshot.at, snapshot.at + HOLD)
        missing = till.taken + cost - till.limit
        if cost and missing > 0:
            yield till, missing
