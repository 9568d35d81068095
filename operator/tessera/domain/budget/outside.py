"""What of limits of basis Cost is lent to gateways, for calls of outside providers.

Such a limit is the operator's alone, and what nodes cost is known to it alone. So it lends a part
of what is left once a request needs it, and the accounts of gateways lend from that. What is lent
is available to nothing else: whatever gateways spend of it, the limit holds without them. What they
used of it alone counts as spent. The rest is given back in two steps once no request comes: the
status has a lower amount, and what it had before counts until an account has the lower one.
"""

from collections.abc import Mapping, Sequence, Set
from copy import deepcopy
from dataclasses import replace
from datetime import datetime, timedelta

from tessera.domain.budget.budgets import BudgetView, judge_limits
from tessera.domain.budget.meter import OutsideLoan
from tessera.domain.budget.state import BudgetWindow
from tessera.domain.observed.charges import OUTSIDE, AccountCharge, LimitCharges, LimitId
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.steps import Step

STEP_PERCENT = 2
# How long nothing of a loan is used before its rest is given back.
RETURN_AFTER = timedelta(minutes=5)


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

    While requests come it grows in steps of the limit, ahead of what is charged or held by one step
    or by what a request lately needed, as far as the limit has that beyond what is `allocated`, the
    loan with it. It is at least what the account has.
    """
    used = loan.used if account is None else account.settled
    balance = used if account is None else used + account.lent
    is_used = account is not None and bool(account.need or account.lent or used > loan.used)
    amount, previous_amount = max(loan.amount, balance), loan.previous_amount
    if grows and account and is_used and (step := limit * STEP_PERCENT // 100):
        fit = max(0, limit - allocated + loan.counted - amount) // step
        steps = [-((amount - balance - ahead) // step) for ahead in (max(step, account.need), step)]
        amount += step * next((each for each in steps if 0 <= each <= fit), 0)
    idle_since = None if is_used or amount == balance else loan.idle_since or at
    if idle_since is not None and at - idle_since >= RETURN_AFTER:
        amount, previous_amount, idle_since = balance, max(amount, previous_amount), None
    generation = max(loan.generation, account.generation if account else 0)
    if amount != loan.amount or generation != loan.generation or (amount and not generation):
        # It does not begin again after a status that is lost.
        generation = max(generation + 1, int(at.timestamp() * 1000))
    has_heard = account is not None and 0 < loan.generation <= account.generation
    if amount >= previous_amount or (has_heard and generation == loan.generation):
        previous_amount = 0
    return OutsideLoan(loan.start, amount, used, generation, previous_amount, idle_since)


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
        loan = view.meter.loan(window.period)
        # A missing report does not say whether anything is used.
        if charges is not None:
            loan = next_loan(
                loan,
                _account(view.budget.name, window, charges),
                limit=window.limit,
                allocated=window.allocated,
                at=view.state.at,
                grows=(view.budget.name, view.state.currency) in listed
                and (view.override is not None or view.meter.is_complete(window.period)),
            )
        # Accounts lend nothing by an older generation: one of which nothing is lent stays known.
        if loan.counted or loan.generation:
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
    budget: str, window: BudgetWindow, charges: Mapping[LimitId, LimitCharges]
) -> AccountCharge | None:
    reported = charges.get(LimitId(budget, OUTSIDE + window.period.name))
    if reported is None or reported.start != int(window.period.start.timestamp()):
        return None
    return next(iter(reported.accounts), None)
