"""What of limits of basis Cost is lent to gateways, for calls of outside providers.

Such a limit is the operator's alone, and what nodes cost is known to it alone. So it lends a part
of what is left, and the accounts of gateways lend from that. What is lent is available to nothing
else for the rest of the window: whatever gateways spend of it, the limit holds without them. What
they used of it alone counts as spent.
"""

from collections.abc import Mapping, Sequence, Set
from copy import deepcopy
from dataclasses import replace
from datetime import datetime

from tessera.domain.budget.budgets import BudgetView, judge_limits
from tessera.domain.budget.meter import OutsideLoan
from tessera.domain.budget.state import BudgetWindow
from tessera.domain.observed.charges import OUTSIDE, AccountCharge, LimitCharges, LimitId
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.steps import Step

STEP_PERCENT = 2


def next_loan(
    loan: OutsideLoan,
    account: AccountCharge | None,
    *,
    limit: int,
    allocated: int,
    at: datetime,
    grows: bool,
) -> OutsideLoan:
    """Return what is lent from now on, by what gateways report of their account.

    It grows in steps of the limit, ahead of what is charged or held by one step or by what a
    request lately needed, as far as the limit has that beyond what is `allocated`, the loan with
    it. It is at least what the account has, and never less than before.
    """
    used = loan.used if account is None else account.settled
    balance = used if account is None else used + account.lent
    amount = max(loan.amount, balance)
    if grows and (step := limit * STEP_PERCENT // 100):
        fit = max(0, limit - allocated - (amount - loan.amount)) // step
        steps = [
            -((amount - balance - ahead) // step)
            for ahead in (max(step, account.need if account else 0), step)
        ]
        amount += step * next((each for each in steps if 0 <= each <= fit), 0)
    generation = loan.generation
    if amount and (amount != loan.amount or not generation):
        # It does not begin again after a status that is lost.
        generation = max(generation + 1, int(at.timestamp() * 1000))
    return OutsideLoan(loan.start, amount, used, generation)


def lend_to_gateways(
    budgets: Sequence[BudgetView], snapshot: Snapshot, *, has_providers: bool
) -> tuple[BudgetView, ...]:
    """Return the budgets after their grants, with what they lend; their windows count that."""
    specs = [each.spec for each in snapshot.providers if has_providers]
    listed = {(name, spec.currency) for spec in specs if spec is not None for name in spec.tenants}
    return tuple(lend_outside(view, snapshot.charges, listed) for view in budgets)


def _lent(
    view: BudgetView,
    charges: Mapping[LimitId, LimitCharges] | None,
    listed: Set[tuple[str, str]],
) -> BudgetView:
    if view.state.closed is not None:
        return view
    loans = dict[str, OutsideLoan]()
    for window in view.state.current_windows:
        if window.period.key != window.period.name:
            continue
        loan = next_loan(
            view.meter.loan(window.period),
            _account(view.budget.name, window, charges),
            limit=window.limit,
            allocated=window.allocated,
            at=view.state.at,
            grows=(view.budget.name, view.state.currency) in listed
            and (view.override is not None or view.meter.is_complete(window.period)),
        )
        if loan.amount:
            loans[window.period.name] = loan
    if loans == view.meter.loans:
        return view
    # The view may be kept for the next cycle, which lends by its own.
    state = deepcopy(view.state)
    for window in state.current_windows:
        if current := loans.get(window.period.key):
            window.lend(current)
    meter = replace(view.meter, loans=loans)
    return judge_limits(replace(view, state=state, meter=meter), charges, view.limits)


lend_outside = Step(_lent, lambda _error, view, *_: view)


def _account(
    budget: str, window: BudgetWindow, charges: Mapping[LimitId, LimitCharges] | None
) -> AccountCharge | None:
    reported = (charges or {}).get(LimitId(budget, OUTSIDE + window.period.name))
    if reported is None or reported.start != int(window.period.start.timestamp()):
        return None
    return next(iter(reported.accounts), None)
