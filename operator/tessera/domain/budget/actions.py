"""What a budget does from a spent share of a limit on, and what takes it back.

Every limit is judged by what is spent in its window and by its amount with its raises. So a raise,
a correction and the next window end an action without a rule of their own. While no gateway tells
what a limit of basis Charge was charged, the figure of the last cycle stands, and that of the
status after a restart.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from zoneinfo import ZoneInfo

from tessera.api.budget_reasons import LimitAction
from tessera.api.tenant_budget import (
    EACH,
    BudgetAction,
    BudgetBasis,
    BudgetRaise,
    Limit,
    LimitStatus,
    TenantBudgetSpec,
)
from tessera.domain.budget.periods import CalendarPeriod, period_at, zone_of
from tessera.domain.budget.raises import limit_at
from tessera.domain.budget.state import BudgetState, amount_path, format_amount
from tessera.domain.money import to_nanos
from tessera.domain.observed.charges import AccountCharge, LimitCharges, LimitId, nearest

DEFAULT_ACTIONS = tuple(
    BudgetAction(at=percent, action=LimitAction.NOTIFY) for percent in (50, 80, 100)
)
# Those that change something.
_BY_BASIS: Mapping[BudgetBasis, frozenset[LimitAction]] = {
    "Cost": frozenset(
        {
            LimitAction.BATCHES_ON_SPOT,
            LimitAction.HOLD_BATCHES,
            LimitAction.CAP_SCALE_UP,
            LimitAction.NO_NEW_SERVICES,
            LimitAction.CHEAPER_TARGETS,
        }
    ),
    "Charge": frozenset(
        {LimitAction.HOLD_BATCHES, LimitAction.THROTTLE, LimitAction.CHEAPER_TARGETS}
    ),
}
# What limits for a part of the requests or for a service do.
_OF_PARTS = frozenset({LimitAction.THROTTLE, LimitAction.REFUSE})
_AT_GATEWAYS = _OF_PARTS | {LimitAction.CHEAPER_TARGETS}
_CONSEQUENCES: Mapping[LimitAction, str] = {
    LimitAction.BATCHES_ON_SPOT: "batches run on spot capacity alone",
    LimitAction.HOLD_BATCHES: "batches are held",
    LimitAction.CAP_SCALE_UP: "no replica beyond minReplicas is added",
    LimitAction.NO_NEW_SERVICES: "no new InferenceService is admitted",
    LimitAction.THROTTLE: "gateways spread the rest over the window",
    LimitAction.CHEAPER_TARGETS: "requests for routes get the cheapest target that can take them",
    LimitAction.REFUSE: "gateways refuse requests that it counts",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitState:
    """One limit in its current window; amounts are nano-units."""

    name: str
    basis: BudgetBasis
    period: CalendarPeriod
    limit: int
    """With its raises."""
    spent: int
    """Where each member has the amount for itself, of the one nearest to it."""
    lent: int = 0
    """What gateways hold above it."""
    outside: int = 0
    """What of `spent` gateways used for calls of outside providers."""
    need: int = 0
    """The least that a request needs of the account of `spent`; 0 if not known."""
    is_partial: bool = False
    """Whether it counts a part of the tenant, by `for`."""
    members: int | None = None
    """Those that are known; None where the limit has one account."""
    accounts: tuple[AccountCharge, ...] = ()
    """Those of the members nearest to the limit."""
    reached: int = 0
    """The highest threshold of an action that the spent share has reached, in percent."""
    actions: tuple[LimitAction, ...] = ()
    """Those in effect beside notices, in the order of their thresholds."""

    @property
    def share(self) -> float:
        """Return the spent share; 1 of a limit of 0."""
        return self.spent / self.limit if self.limit else 1.0

    @property
    def refuses_all(self) -> bool:
        """Say whether a limit of charges has less left than a request needs."""
        return self.basis == "Charge" and self.spent + max(self.need - 1, 0) >= self.limit

    def text(self, currency: str) -> str:
        """Return in words what is spent of what until when."""
        member = f" of {self.accounts[0].member}" if self.members and self.accounts else ""
        return (
            f"{self.name}{member}: {format_amount(self.spent)} of {format_amount(self.limit)} "
            f"{currency} ({self.share:.0%}) spent until {self.period.end:%Y-%m-%dT%H:%MZ}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ActingBudget:
    """What the states of a budget's limits are made of."""

    name: str
    spec: TenantBudgetSpec
    raises: Sequence[BudgetRaise]
    state: BudgetState
    """Has the windows of limits of basis Cost."""
    recorded: Sequence[LimitStatus]
    """From the status of the budget."""
    last: Sequence[LimitState] = ()
    """From the last cycle, which the status may not have yet."""


def limit_states(
    budget: ActingBudget, charges: Mapping[LimitId, LimitCharges] | None
) -> tuple[LimitState, ...]:
    """Return the state of every limit in the order of the spec; `charges` is None if unknown."""
    spec, at = budget.spec, budget.state.at
    zone = zone_of(spec.time_zone) or ZoneInfo("UTC")
    recorded = {each.name: _recorded_charges(each) for each in budget.recorded}
    last = {each.name: _last_charges(each) for each in budget.last}
    spent = defaultdict[str, list[AccountCharge]](list)
    for window in budget.state.current_windows:
        member = str(window.period.service or "")
        spent[window.field_path].append(AccountCharge(window.spent, window.lent, member))
    outside = {window.field_path: window.outside for window in budget.state.current_windows}
    states = []
    for index, limit in enumerate(spec.limits):
        name = spec.name_of(limit)
        period = period_at(limit.window, at, zone, limit.tier)
        if spec.basis_of(limit) == "Cost":
            accounts = spent[amount_path(index)]
            known = LimitCharges(start=0, members=len(accounts), accounts=nearest(accounts))
        else:
            reported = (charges or {}).get(LimitId(budget.name, name))
            known = _latest(period, (recorded.get(name), last.get(name), reported))
        judged = _judged(budget, limit, period, known)
        states.append(replace(judged, outside=outside.get(amount_path(index), 0)))
    return tuple(states)


def current_actions(states: Iterable[LimitState], name: str) -> Mapping[LimitAction, str]:
    """Return the actions in effect, each with the sentence that tells of it.

    It has no amount that rises with time, as statuses of services and batches have it.
    """
    sentences: dict[LimitAction, str] = {}
    for state in states:
        for action in state.actions:
            # Gateways would refuse the rows of its batches as well: no node starts for them.
            is_spent = state.spent >= state.limit and not state.is_partial
            holds = action is LimitAction.REFUSE and is_spent
            if holds or action not in _AT_GATEWAYS:
                sentences.setdefault(
                    LimitAction.HOLD_BATCHES if holds else action,
                    f"TenantBudget/{name}: {state.reached} % of {state.name} are spent, so "
                    f"{_CONSEQUENCES[action]}. Wait for the next {state.period.name.lower()}, or "
                    f"raise it: kubectl tessera budget raise {name} {state.name}.",
                )
    return sentences


def consequences(actions: Iterable[str]) -> Iterator[str]:
    """Yield in words what actions do, by their names."""
    for action in actions:
        yield _CONSEQUENCES.get(LimitAction(action), action)


def _judged(
    budget: ActingBudget, limit: Limit, period: CalendarPeriod, known: LimitCharges
) -> LimitState:
    spec = budget.spec
    basis, amount = spec.basis_of(limit), limit_at(spec, limit, budget.raises, budget.state.at)
    first = known.accounts[0] if known.accounts else AccountCharge(0)
    actions = sorted(spec.actions or DEFAULT_ACTIONS, key=lambda each: each.at)
    reached = [each for each in actions if 100 * first.settled >= each.at * amount]
    acting = _BY_BASIS[basis] if limit.for_ is None else _OF_PARTS
    current = dict.fromkeys(
        action for each in reached if (action := LimitAction(each.action)) in acting
    )
    is_each = limit.for_ is not None and limit.for_.part[1] == EACH
    state = LimitState(
        name=spec.name_of(limit),
        basis=basis,
        period=period,
        limit=amount,
        spent=first.settled,
        lent=first.lent,
        need=first.need,
        is_partial=limit.for_ is not None,
        members=known.members if is_each else None,
        accounts=known.accounts if is_each else (),
        reached=max((each.at for each in reached), default=0),
        actions=tuple(current),
    )
    if not state.refuses_all:
        return state
    return replace(state, actions=(*state.actions, LimitAction.REFUSE))


def _recorded_charges(recorded: LimitStatus) -> LimitCharges:
    accounts = [AccountCharge(to_nanos(each.spent), 0, each.member) for each in recorded.nearest]
    if recorded.members is None:
        accounts = [AccountCharge(to_nanos(recorded.spent))]
    if accounts and LimitAction.REFUSE in recorded.actions:
        # What was left was less than a request needed; a raise may be enough for it.
        left = to_nanos(recorded.limit) - accounts[0].settled
        accounts[0] = accounts[0]._replace(need=max(0, left + 1))
    return LimitCharges(
        start=int(recorded.start.timestamp()),
        members=recorded.members or 0,
        accounts=tuple(accounts),
    )


def _last_charges(state: LimitState) -> LimitCharges:
    accounts = (
        state.accounts
        if state.members is not None
        else (AccountCharge(state.spent, need=state.need),)
    )
    return LimitCharges(
        start=int(state.period.start.timestamp()),
        members=state.members or 0,
        # Gateways hold nothing of an account that they do not report.
        accounts=tuple(each._replace(lent=0) for each in accounts),
    )


def _latest(period: CalendarPeriod, known: Iterable[LimitCharges | None]) -> LimitCharges:
    """Return what is known of a window; of each account what comes last."""
    start = int(period.start.timestamp())
    current = [each for each in known if each is not None and each.start == start]
    accounts = {each.member: each for charges in current for each in charges.accounts}
    members = max((each.members for each in current), default=0)
    return LimitCharges(start=start, members=members, accounts=nearest(accounts.values()))
