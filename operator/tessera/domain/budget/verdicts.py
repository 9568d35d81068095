"""Whether a budget covers what its tenant requests, in a condition and in one line."""

from collections.abc import Sequence

from tessera.api.budget_reasons import WithinBudget
from tessera.api.reasons import StatusVerdict
from tessera.domain.budget.actions import LimitState
from tessera.domain.budget.meter import SpendMeter
from tessera.domain.budget.state import BudgetState, BudgetWindow, format_amount
from tessera.domain.money import from_nanos

# Spent share of a limit from which on the condition warns.
_NEAR_LIMIT_SHARE = 0.8


def within_budget(
    state: BudgetState, meter: SpendMeter, limits: Sequence[LimitState], *, is_overridden: bool
) -> StatusVerdict[WithinBudget]:
    """Return the condition WithinBudget of a budget whose plan has granted all requests."""
    refusing = _refusal(state, meter, is_overridden=is_overridden)
    if refusing is not None:
        return refusing
    if (charged := _charge_verdict(state, limits)) is not None:
        return charged
    # Where each service has an amount for itself, one near to it says nothing of the budget.
    current_windows = [window for window in state.current_windows if not window.is_each]
    if not current_windows:
        nearest = max(limits, key=lambda each: each.share)
        return StatusVerdict(WithinBudget.WITHIN_LIMITS, nearest.text(state.currency))
    tightest = max(current_windows, key=_spent_share)
    message = (
        f"{tightest.field_path}: {tightest.period.name.lower()} limit{tightest.period.part} "
        f"{state.amount(tightest.limit)}, {state.spent_text(tightest)}, forecast "
        f"{state.amount(tightest.forecast)}"
    )
    if _spent_share(tightest) >= _NEAR_LIMIT_SHARE:
        return StatusVerdict(WithinBudget.NEAR_LIMIT, message)
    exceeded = next((window for window in current_windows if window.forecast > window.limit), None)
    if exceeded is None:
        return StatusVerdict(WithinBudget.WITHIN_LIMITS, message)
    return StatusVerdict(
        WithinBudget.FORECAST_ABOVE_LIMIT,
        f"{exceeded.field_path}: forecast {state.amount(exceeded.forecast)} at the end of the "
        f"{exceeded.period.name.lower()} exceeds the limit of {state.amount(exceeded.limit)}",
    )


def _refusal(
    state: BudgetState, meter: SpendMeter, *, is_overridden: bool
) -> StatusVerdict[WithinBudget] | None:
    """Return why the budget refuses replicas, now or in the next windows; None when it does not."""
    for window in state.current_windows:
        if not is_overridden and not meter.is_complete(window.period):
            return StatusVerdict(
                WithinBudget.SPEND_UNKNOWN,
                f"the spend of this {window.period.name.lower()} is unknown, so at most "
                f"{state.amount(window.limit)} is available until "
                f"{window.period.end:%Y-%m-%dT%H:%MZ}; raise spec.onSpendUnknown.allowUpTo, or run "
                f"kubectl tessera budget override {state.name} --until TIME --reason TEXT",
            )
    if state.currency_mismatch is not None:
        return StatusVerdict(WithinBudget.CURRENCY_MISMATCH, state.currency_mismatch)
    if state.min_replicas_shortage is not None:
        return StatusVerdict(WithinBudget.MIN_REPLICAS_EXCEED_BUDGET, state.min_replicas_shortage)
    for reason, shortage in (
        (WithinBudget.BUDGET_EXHAUSTED, state.shortage),
        (WithinBudget.GPU_QUOTA_EXCEEDED, state.quota_shortage),
    ):
        if shortage is not None:
            return StatusVerdict(reason, shortage)
    for window in state.current_windows:
        if window.spent > window.limit:
            return StatusVerdict(
                WithinBudget.BUDGET_EXHAUSTED,
                f"{window.field_path}: {window.period.name.lower()} limit{window.period.part} "
                f"{state.amount(window.limit)}, {state.spent_text(window)}, forecast "
                f"{state.amount(window.forecast)} until {window.period.end:%Y-%m-%dT%H:%MZ}; "
                "delete what runs in the tenant's namespaces, or raise the limit",
            )
    return _min_replicas_refusal(state)


def _charge_verdict(
    state: BudgetState, limits: Sequence[LimitState]
) -> StatusVerdict[WithinBudget] | None:
    """Return a warning of the limit of charges that is nearest to its end; None below 80 %."""
    charges = [each for each in limits if each.basis == "Charge" and each.members is None]
    nearest = max(charges, key=lambda each: (each.refuses_all, each.share), default=None)
    if nearest is None or not (nearest.refuses_all or nearest.share >= _NEAR_LIMIT_SHARE):
        return None
    text = nearest.text(state.currency)
    if not nearest.refuses_all:
        return StatusVerdict(WithinBudget.NEAR_LIMIT, text)
    if nearest.spent < nearest.limit:
        least = f"{from_nanos(nearest.need):f} {state.currency}"
        text = f"{text}, and no request needs less than {least}"
    return StatusVerdict(WithinBudget.BUDGET_EXHAUSTED, text)


def _min_replicas_refusal(state: BudgetState) -> StatusVerdict[WithinBudget] | None:
    """Return a warning when running replicas alone exceed a limit in a whole window."""
    for window in state.next_windows:
        if window.min_replicas_cost > window.limit:
            return StatusVerdict(
                WithinBudget.MIN_REPLICAS_EXCEED_BUDGET,
                f"{window.field_path}: minReplicas cost {state.amount(window.min_replicas_cost)} "
                f"in a whole {window.period.name.lower()}, above the limit of "
                f"{state.amount(window.limit)}; lower spec.scaling.minReplicas of the tenant's "
                "services, or raise the limit",
            )
    return None


def _spent_share(window: BudgetWindow) -> float:
    return window.spent / window.limit if window.limit else 1.0


def summary(state: BudgetState, limits: Sequence[LimitState]) -> str:
    """Return the limit with the largest spent share in one line; empty without limits."""
    charges = [each for each in limits if each.basis == "Charge"]
    nearest = max(charges, key=lambda each: each.share, default=None)
    windows = [window for window in state.current_windows if not window.is_each]
    costs = max(map(_spent_share, windows), default=-1.0)
    if nearest is not None and nearest.share > costs:
        return (
            f"{format_amount(nearest.spent)} of {format_amount(nearest.limit)} {state.currency} "
            f"{nearest.name} ({nearest.share:.0%})"
        )
    if not windows:
        return ""
    window = max(windows, key=_spent_share)
    lent = f" ({format_amount(window.lent)} lent)" if window.lent else ""
    return (
        f"{format_amount(window.spent)}{lent} of {state.amount(window.limit)} this "
        f"{window.period.text} ({_spent_share(window):.0%})"
    )
