"""What of limits of basis Cost is lent for calls of outside providers: never beyond a limit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessera.api.budget_reasons import LimitAction, WithinBudget
from tessera.api.model_provider import ModelProviderSpec
from tessera.api.ref import Ref
from tessera.api.tenant_budget import BudgetRaise, TenantBudgetStatus, WindowName
from tessera.domain.budget.budgets import BudgetView, build_budget_views
from tessera.domain.budget.meter import SpendMeter, SpendRecord
from tessera.domain.budget.metering import metering_inputs
from tessera.domain.budget.outside import lend_to_gateways
from tessera.domain.budget.periods import period_at
from tessera.domain.charge.account import ChargeAccount, window_at
from tessera.domain.charge.exchange import ChargeAsk, LendingOutcome
from tessera.domain.charge.gateway_charges import (
    ChargeRefusal,
    ChargeReservation,
    ChargesNeeded,
    GatewayCharges,
)
from tessera.domain.charge.reports import reported_charges
from tessera.domain.charge.scopes import ChargeLimit, ChargeScope
from tessera.domain.explain.budget import explain_budget
from tessera.domain.gateway.outside import outside_limits
from tessera.domain.hardware.pools import discover
from tessera.domain.incremental import Incremental
from tessera.domain.money import NANO, from_nanos
from tessera.domain.observed.charges import OUTSIDE, AccountCharge, LimitCharges, LimitId
from tessera.domain.observed.providers import ObservedProvider
from tessera.domain.observed.snapshot import Budget
from tessera.domain.planning.plan import Plan, plan
from tessera.domain.status.budget import budget_status
from tessera.domain.status.events import event_notes
from tessera.resources.manifest import wire_format
from tessera.resources.spend_records import parse_spend_records, spend_records_manifest
from tests.builders import (
    DEFAULT_CONFIG,
    NO_MEMORY,
    NOW,
    a_budget,
    a_node,
    a_pod,
    a_pool,
    a_snapshot,
    plan_of,
)
from tests.domain.budget.test_budgets import CHAT, scaled
from tests.properties import examples

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
BEGUN = NOW.replace(minute=0, second=0, microsecond=0)
WITH_PROVIDERS = replace(DEFAULT_CONFIG, providers=True)
Charges = Mapping[LimitId, LimitCharges]


def a_provider(*tenants: str, currency: str = "USD") -> ObservedProvider:
    spec = {
        "baseUrl": "https://api.example.com/v1",
        "protocols": ["OpenAIChat"],
        "secret": {"name": "example"},
        "tenants": tenants or ("team-a",),
        "currency": currency,
        "models": [
            {
                "name": "large",
                "maxContextTokens": 8192,
                "maxOutputTokens": 1024,
                "cost": {"input": "3", "output": "15"},
            }
        ],
    }
    return ObservedProvider(
        ref=Ref("", "example"),
        uid="example",
        created=NOW,
        generation=1,
        spec=ModelProviderSpec.model_validate(spec),
    )


def reported(
    settled: float,
    lent: float = 0,
    need: float = 0,
    start: datetime | None = None,
    *,
    window: WindowName = "Hour",
    generation: int = 0,
) -> Charges:
    """Return what gateways report of the account of a window, in units."""
    start = start or period_at(window, NOW, ZoneInfo("UTC")).start
    nanos = [round(each * NANO) for each in (settled, lent, need)]
    account = AccountCharge(nanos[0], nanos[1], "", nanos[2], generation)
    charges = LimitCharges(start=int(start.timestamp()), accounts=(account,))
    return {LimitId("team-a", f"outside {window}"): charges}


def planned(
    budget: Budget,
    charges: Charges | None = None,
    at: datetime = NOW,
    *,
    providers: tuple[ObservedProvider, ...] = (a_provider(),),
    **fields: Any,
) -> BudgetView:
    """Return the budget after a cycle of an operator that knows its status alone."""
    snapshot = a_snapshot(at=at, budgets=(budget,), charges=charges, providers=providers, **fields)
    [view] = plan_of(snapshot, WITH_PROVIDERS).budgets
    return view


def asked(budget: Budget, at: datetime = NOW, **fields: Any) -> BudgetView:
    """Return the budget after the cycle that hears of the first request of an hour."""
    return planned(budget, reported(0, need=0.001), at, **fields)


def recorded(view: BudgetView, at: datetime = NOW) -> Budget:
    """Return the budget with the status that is written."""
    written = budget_status(view, at).model_dump_json(by_alias=True)
    return replace(view.budget, status=TenantBudgetStatus.model_validate_json(written))


def amounts(budget: Budget) -> dict[str, float]:
    return {each.window: float(each.amount) for each in budget.status.outside}


@pytest.mark.parametrize(
    ("fields", "providers", "config", "lent"),
    [
        ({}, (a_provider(),), WITH_PROVIDERS, {"Hour": 0.2}),
        ({}, (a_provider("team-b", "team-a"),), WITH_PROVIDERS, {"Hour": 0.2}),
        ({}, (a_provider("team-b"),), WITH_PROVIDERS, {}),
        ({}, (a_provider(currency="EUR"),), WITH_PROVIDERS, {}),
        ({}, (replace(a_provider(), spec=None),), WITH_PROVIDERS, {}),
        ({}, (), WITH_PROVIDERS, {}),
        ({}, (a_provider(),), DEFAULT_CONFIG, {}),
        ({"basis": "Charge"}, (a_provider(),), WITH_PROVIDERS, {}),
        (
            {"limits": [{"window": "Hour", "amount": "10", "tier": "OnDemand"}]},
            (a_provider(),),
            WITH_PROVIDERS,
            {},
        ),
        (
            {"limits": [{"window": "Hour", "amount": "10", "for": {"service": "*"}}]},
            (a_provider(),),
            WITH_PROVIDERS,
            {},
        ),
        (
            {"limits": [{"window": "Hour", "amount": "10"}, {"window": "Month", "amount": "500"}]},
            (a_provider(),),
            WITH_PROVIDERS,
            {"Hour": 0.2, "Month": 10},
        ),
        ({"amount": "0"}, (a_provider(),), WITH_PROVIDERS, {}),
    ],
)
def test_a_first_request_is_lent_a_step_of_each_limit_where_a_provider_lists_the_tenant(
    fields: dict[str, Any], providers: Any, config: Any, lent: dict[str, float]
) -> None:
    needs = {**reported(0, need=0.1), **reported(0, need=0.1, window="Month")}
    for charges, first in ((None, {}), ({}, {}), (needs, lent)):
        snapshot = a_snapshot(budgets=(a_budget(**fields),), providers=providers, charges=charges)
        [view] = plan_of(snapshot, config).budgets
        assert amounts(recorded(view)) == first


def test_the_next_step_is_lent_when_something_of_the_last_is_used() -> None:
    budget = recorded(asked(a_budget()))
    for charges, amount in (
        (None, 0.2),
        ({}, 0.2),
        (reported(0), 0.2),
        (reported(0.05, 0.01), 0.4),
        (reported(0.2), 0.4),
        (reported(0.2, 0.000000001), 0.6),
        # What was held is given back, and what is lent stays lent.
        (reported(0.1), 0.6),
        # Of a window that is over nothing is used.
        (reported(5, start=BEGUN - HOUR), 0.6),
        (None, 0.6),
    ):
        budget = recorded(planned(budget, charges))
        assert amounts(budget) == {"Hour": amount}


def test_a_request_that_needs_more_than_a_step_gets_as_many_as_it_needs_and_no_more() -> None:
    budget = recorded(asked(a_budget()))
    for need, amount in ((0.9, 1.0), (0.9, 1.0), (10.1, 1.0), (9.0, 9.0)):
        budget = recorded(planned(budget, reported(0, need=need)))
        assert amounts(budget) == {"Hour": amount}


def test_what_is_lent_is_said_apart_and_what_is_used_of_it_counts_as_spent() -> None:
    pods = tuple(replace(pod, bound=NOW - HOUR / 4) for pod in scaled(1).pods)
    limits = [{"window": "Day", "amount": "10"}]
    needed = reported(0, need=0.001, window="Day")
    first = planned(a_budget(limits=limits), needed, pods=pods)
    [before] = first.state.current_windows
    view = planned(recorded(first), reported(0.1, window="Day"), pods=pods)
    [window] = view.state.current_windows
    nodes = 66_964_286
    assert (before.lent, before.outside, before.spent) == (NANO // 5, 0, nodes)
    used = NANO // 10
    assert (window.lent, window.outside, window.spent) == (3 * used, used, used + nodes)
    assert window.forecast - window.spent == before.forecast - before.spent
    assert window.allocated - before.allocated == NANO // 5
    status = recorded(view).status
    assert status.spend is not None
    [spend], [limit] = status.spend.windows, status.limits
    assert (spend.spent, spend.outside) == (limit.spent, limit.outside)
    assert (spend.spent, spend.outside) == (from_nanos(window.spent), from_nanos(window.outside))
    assert limit.lent == from_nanos(window.lent)
    assert status.summary == "0.1670 (0.3000 lent) of 10.00 USD this day (2%)"
    assert (
        "spent 0.1670 USD (of which 0.1000 USD at outside providers), lent to gateways for these "
        "0.3000 USD, forecast" in view.within_budget.message
    )


def test_the_status_says_what_is_lent() -> None:
    status = recorded(planned(recorded(asked(a_budget())), reported(0.05, 0.1))).status
    assert wire_format(status)["outside"] == [
        {
            "window": "Hour",
            "start": "2026-11-20T12:00:00Z",
            "amount": "0.4",
            "used": "0.05",
            "generation": int(NOW.timestamp() * 1000) + 1,
        }
    ]


def test_nothing_is_lent_above_what_is_spent_and_committed() -> None:
    """A replica within the minimum takes 0.286 an hour, of which a quarter of an hour is over."""
    snapshot = replace(scaled(1), providers=(a_provider(),))
    lent = []
    for amount in ("0.40", "0.20"):
        budget = a_budget(amount=amount)
        for _ in range(60):
            charges = reported(sum(amounts(budget).values()), need=0.001)
            cycle = replace(snapshot, budgets=(budget,), charges=charges)
            [view] = plan_of(cycle, WITH_PROVIDERS).budgets
            budget = recorded(view)
            [window] = view.state.current_windows
        amount_lent = window.outside + window.lent
        room = window.limit - (window.allocated - amount_lent)
        assert room - window.limit * 2 // 100 < amount_lent <= max(0, room)
        lent.append(amount_lent)
    assert lent[0] > 0 == lent[1]


def test_replicas_find_less_left_by_what_is_lent() -> None:
    snapshot = replace(scaled(1), budgets=(a_budget(amount="0.60"),), providers=(a_provider(),))
    assert desired(plan_of(snapshot)) == desired(plan_of(snapshot, WITH_PROVIDERS)) == 6
    plan = plan_of(replace(snapshot, charges=reported(0.2)), WITH_PROVIDERS)
    budgets, charges = (recorded(plan.budgets[0]),), reported(0.2, need=0.001)
    lending = replace(snapshot, budgets=budgets, charges=charges)
    plan = plan_of(lending, WITH_PROVIDERS)
    assert desired(plan) == 3
    decision = explain_budget(lending, plan, plan.service_plans[CHAT])
    text = dict(decision.numbers)["hour"]
    assert "0.2000 USD at outside providers), lent to gateways for these 0.0120" in text
    assert "0.2000 USD at outside providers)" in (plan.budgets[0].state.shortage or "")


def desired(plan: Plan) -> int:
    return plan.service_plans[CHAT].desired_pods


def test_thresholds_of_actions_are_reached_by_what_is_used_of_what_is_lent() -> None:
    actions = [{"at": 10, "action": "CapScaleUp"}]
    view = asked(a_budget(actions=actions))
    assert view.limits[0].actions == ()
    view = planned(recorded(view), reported(0.85))
    assert (amounts(recorded(view)), view.limits[0].actions) == ({"Hour": 1.05}, ())
    # Also by what this cycle hears first.
    view = planned(recorded(view), reported(1.02))
    assert (view.limits[0].reached, view.limits[0].actions) == (10, (LimitAction.CAP_SCALE_UP,))
    [note] = [
        each
        for each in event_notes(TenantBudgetStatus(), recorded(view).status)
        if each.action == "Limit"
    ]
    assert "1.02 of it at outside providers: no replica beyond" in note.message


def test_a_raise_is_lent_from_and_its_end_takes_nothing_back() -> None:
    until = NOW + MINUTE
    fields = {"limit": "cost-hour", "by": "90", "until": until, "reason": "demo"}
    budget = replace(a_budget(), raises=(BudgetRaise.model_validate(fields),))
    budget = recorded(asked(budget))
    assert amounts(budget) == {"Hour": 2}
    budget = recorded(planned(budget, reported(9.5, need=2)))
    assert amounts(budget) == {"Hour": 11.5}
    for used in (9.5, 11.4, 11.5):
        view = planned(budget, reported(used), until)
        budget = recorded(view, until)
        assert amounts(budget) == {"Hour": 11.5}
        is_exhausted = view.within_budget.reason is WithinBudget.BUDGET_EXHAUSTED
        assert is_exhausted is (used > 10)
        assert f"spent {used:.2f} USD (of which {used:.2f} USD at" in view.within_budget.message


def test_nothing_is_lent_while_the_spend_is_unknown_and_what_accounts_have_counts() -> None:
    lost = replace(a_budget(onSpendUnknown={"allowUpTo": "5"}), record_lost=True)
    view = planned(lost)
    assert (view.within_budget.reason, amounts(recorded(view))) == (WithinBudget.SPEND_UNKNOWN, {})
    view = planned(lost, reported(0.3, 0.04, need=3))
    assert view.within_budget.reason is WithinBudget.SPEND_UNKNOWN
    assert amounts(recorded(view)) == {"Hour": 0.34}


def test_a_lost_status_goes_on_from_the_copy_of_the_spend() -> None:
    view = planned(recorded(asked(a_budget())), reported(0.3))
    record = SpendRecord(currency="USD", meter=view.meter)
    manifest = spend_records_manifest("tessera", {"team-a": record}, NOW)
    records = parse_spend_records(manifest.body["data"])
    lost = replace(a_budget(), record_lost=True)
    snapshot = a_snapshot(budgets=(lost,), providers=(a_provider(),))
    memory = replace(NO_MEMORY, spend_records=records)
    [after] = plan_of(snapshot, WITH_PROVIDERS, memory).budgets
    assert amounts(recorded(after)) == {"Hour": 0.5}
    assert after.meter.loans["Hour"].generation == view.meter.loans["Hour"].generation


def test_a_new_window_begins_at_the_first_step() -> None:
    budget = recorded(planned(recorded(asked(a_budget())), reported(3)))
    assert amounts(budget) == {"Hour": 3.2}
    view = planned(budget, reported(3), NOW + HOUR)
    assert amounts(recorded(view, NOW + HOUR)) == {}
    view = planned(budget, reported(0, need=0.001, start=BEGUN + HOUR), NOW + HOUR)
    budget = recorded(view, NOW + HOUR)
    assert amounts(budget) == {"Hour": 0.2}
    assert budget.status.outside[0].start == BEGUN + HOUR
    [window] = view.state.current_windows
    assert (window.spent, window.lent) == (0, 0.2 * NANO)


def test_gateways_may_spend_what_the_status_says_in_its_window_alone() -> None:
    budget = a_budget(timeZone="Asia/Kolkata")
    assert budget.spec is not None
    [limit] = outside_limits(budget, budget.spec)
    assert (limit.name, limit.amount_at(NOW.timestamp()), limit.raises) == ("outside Hour", 0, ())
    # Hours begin at half past there.
    written = recorded(planned(budget, reported(0, need=0.001, start=BEGUN - HOUR / 2)))
    assert written.spec is not None
    [limit] = outside_limits(written, written.spec)
    start, end = window_at(limit, NOW.timestamp())
    by_moment = [limit.amount_at(at) for at in (start - 0.001, start, end - 0.001, end)]
    assert by_moment == [0, 200_000_000, 200_000_000, 0]
    assert limit.generation == written.status.outside[0].generation > 0
    # Windows of another time zone begin elsewhere: the operator lends for them first.
    utc = written.spec.model_copy(update={"time_zone": "UTC"})
    [moved] = outside_limits(written, utc)
    assert (moved.raises, moved.amount) == ((), 0)


def test_limits_for_a_part_of_the_tenant_and_of_charges_hold_at_no_provider() -> None:
    limits = [
        {"window": "Hour", "amount": "1"},
        {"window": "Month", "amount": "9"},
        {"window": "Hour", "amount": "1", "tier": "OnDemand"},
        {"window": "Hour", "amount": "1", "for": {"service": "*"}},
        {"window": "Hour", "amount": "1", "basis": "Charge"},
    ]
    budget = a_budget(limits=limits)
    assert budget.spec is not None
    assert [each.name for each in outside_limits(budget, budget.spec)] == [
        "outside Hour",
        "outside Month",
    ]


@dataclass
class Fleet:
    """A budget, what its operator and a gateway know of it, and the accounts of its windows."""

    budget: Budget
    at: datetime = BEGUN
    meter: SpendMeter | None = None
    """In the memory of the operator; None after a restart."""
    committed: int = 0
    read: Budget = field(init=False)
    """As the gateway knows it."""
    accounts: dict[int, ChargeAccount] = field(default_factory=dict)
    number: int = 0
    need: int = 0
    pods: tuple[Any, ...] = (
        a_pod(uid="chat-0", node="a100-0", devices={"nvidia.com/gpu": 1}, bound=BEGUN),
    )

    def __post_init__(self) -> None:
        self.read = self.budget

    @property
    def limit(self) -> ChargeLimit:
        assert self.read.spec is not None
        [limit] = outside_limits(self.read, self.read.spec)
        return limit

    @property
    def start(self) -> int:
        return window_at(self.limit, self.at.timestamp())[0]

    @property
    def account(self) -> ChargeAccount:
        return self.accounts.setdefault(self.start, ChargeAccount())

    def call(self, nanos: int, ends: bool, *, fails: bool = False) -> None:
        """Reserve for a call, and settle it if it ends: one that fails costs nothing."""
        account = self.account
        balance = account.gateways.get("gateway-0")
        ceiling, used = (balance.ceiling, balance.used) if balance is not None else (0, 0)
        scope = ChargeScope(key=f"team-a/{OUTSIDE}Hour", limit=self.limit)

        def ask(*, ended: int = 0, need: int = 0) -> LendingOutcome:
            self.number += 1
            asked = ChargeAsk(
                scope=scope,
                start=self.start,
                number=self.number,
                ceiling=ceiling + ended,
                used=used + ended,
                reserved=0,
                need=need,
                want=need,
            )
            return account.exchange("gateway-0", asked, self.at.timestamp()).outcome

        outcome = ask(need=nanos)
        self.need = nanos if outcome is LendingOutcome.NOTHING else 0
        if outcome is LendingOutcome.GRANTED and ends:
            ask(ended=0 if fails else nanos)

    def cycle(self, *, reports: bool, is_written: bool = True) -> None:
        account = self.account
        charges: Charges | None = None
        if reports:
            state = account.settled, account.lent, "", self.need, account.generation
            row = AccountCharge(*state)
            limits = LimitCharges(start=self.start, accounts=(row,))
            charges = {LimitId("team-a", "outside Hour"): limits}
        nodes = (a_node(whole=1),)
        snapshot = a_snapshot(
            at=self.at,
            nodes=nodes,
            pods=self.pods,
            budgets=(self.budget,),
            providers=(a_provider(),),
            charges=charges,
        )
        inputs = metering_inputs(self.pods, discover((a_pool(),), nodes, self.at.date()))
        meters = {} if self.meter is None else {"team-a": self.meter}
        views = build_budget_views(snapshot, inputs, meters, {})
        before = views[0].meter.loan(views[0].state.current_windows[0].period)
        assert account.settled + account.lent <= before.counted
        views[0].state.current_windows[0].reserve(None, committed=self.committed)
        [view] = lend_to_gateways(views, snapshot, has_providers=True)
        [window] = view.state.current_windows
        loan = view.meter.loan(window.period)
        assert account.settled + account.lent <= loan.counted
        assert (window.outside, window.outside + window.lent) == (loan.used, loan.counted)
        if loan.amount != before.amount:
            assert loan.generation > before.generation
        if loan.counted > before.counted:
            spent = view.meter.spent(window.period)
            assert spent + self.committed + loan.counted <= window.limit
        self.meter = view.meter
        if is_written:
            self.budget = recorded(view, self.at)

    def restart(self) -> None:
        self.meter = None

    def read_status(self) -> None:
        """Let the gateway read the status, and tell the account of an amount that is lower."""
        self.read = self.budget
        if self.limit.is_lowered:
            self.call(0, ends=False)

    def pass_minutes(self, minutes: int) -> None:
        self.at += minutes * MINUTE
        self.need = 0

    def set_limit(self, amount: int) -> None:
        assert self.budget.spec is not None
        [limit] = self.budget.spec.limits
        limits = (limit.model_copy(update={"amount": from_nanos(amount)}),)
        spec = self.budget.spec.model_copy(update={"limits": limits})
        self.budget = replace(self.budget, spec=spec, generation=self.budget.generation + 1)

    def commit(self, nanos: int) -> None:
        self.committed = nanos


MONEY = st.integers(0, 5 * NANO)
CALL = st.one_of(st.integers(1, NANO // 5), MONEY)
ACTION = st.one_of(
    st.tuples(st.just(Fleet.call), CALL, st.booleans()),
    st.tuples(st.just(Fleet.call), CALL, st.booleans()),
    st.tuples(st.just(Fleet.restart)),
    st.tuples(st.just(Fleet.pass_minutes), st.integers(1, 45)),
    st.tuples(st.just(Fleet.set_limit), MONEY),
    st.tuples(st.just(Fleet.commit), MONEY),
)
# What follows it: a cycle with a report or without, whose status is written and read or is not.
FOLLOWING = st.tuples(*[st.sampled_from([True, True, True, False])] * 4)


@given(st.lists(st.tuples(ACTION, FOLLOWING), min_size=5, max_size=30), MONEY)
@settings(max_examples=examples(120), deadline=None, suppress_health_check=list(HealthCheck))
def test_nodes_and_what_is_lent_stay_within_the_limit_and_calls_within_what_is_lent(
    story: list[tuple[tuple[Any, ...], tuple[bool, ...]]], limit: int
) -> None:
    """Whatever calls, reports, limits, commitments, restarts and late readers there are."""
    fleet = Fleet(a_budget(amount=str(from_nanos(limit))))
    for (action, *arguments), (has_cycle, reports, is_written, is_read) in story:
        action(fleet, *arguments)
        if has_cycle:
            fleet.cycle(reports=reports, is_written=is_written)
        if is_read:
            fleet.read_status()
    fleet.cycle(reports=True)


def test_what_a_failed_call_left_is_given_back_and_lent_to_the_next_request() -> None:
    fleet = Fleet(a_budget())

    def after(*, minutes: int = 0, is_read: bool = True) -> tuple[Decimal, Decimal | None]:
        if minutes:
            fleet.pass_minutes(minutes)
        fleet.cycle(reports=True)
        if is_read:
            fleet.read_status()
        [row] = fleet.budget.status.outside
        return row.amount, row.previous_amount

    zero, step = Decimal(0), Decimal("0.2")
    for _ in range(3):
        fleet.call(NANO // 10, True, fails=True)
        assert after() == (step, None)
        fleet.call(NANO // 10, True, fails=True)
        assert (after(), after(minutes=4)) == ((step, None), (step, None))
        # It counts until the account has heard of it: a gateway may lend by what it read before.
        assert after(minutes=1, is_read=False) == (zero, step)
        assert "(0.2000 lent)" in fleet.budget.status.summary
        assert (after(minutes=1), after()) == ((zero, step), (zero, None))
        assert "lent" not in fleet.budget.status.summary
    assert fleet.account.settled == 0


def test_an_amount_that_is_read_late_lends_no_more_than_the_newest() -> None:
    fleet = Fleet(a_budget(amount="5"))
    fleet.call(NANO // 20, True)
    fleet.cycle(reports=True)
    fleet.read_status()
    fleet.call(NANO // 20, True)
    fleet.cycle(reports=True)
    assert amounts(fleet.budget) == {"Hour": 0.2}
    fleet.call(NANO // 10, True)
    assert fleet.account.settled == NANO // 20
    fleet.read_status()
    fleet.call(NANO // 10, True)
    assert fleet.account.settled == NANO // 20 + NANO // 10


@pytest.mark.parametrize(("reserved", "charged"), [(0.015, 0.01), (0.3, 0.02), (0.3, 0.3)])
def test_a_tenant_spends_its_limit_at_providers_however_large_a_call_may_be(
    reserved: float, charged: float
) -> None:
    """A gateway with some calls a second, which a cycle follows, spends 1 USD in the hour."""
    budget = recorded(asked(a_budget(amount="1")))
    account, gateway = ChargeAccount(), GatewayCharges(clock_offset=BEGUN.timestamp())
    nanos, charge = round(reserved * NANO), round(charged * NANO)
    for second in range(55):
        assert budget.spec is not None
        [limit] = outside_limits(budget, budget.spec)
        scope = ChargeScope(key="team-a/outside Hour", limit=limit)
        for place in range(5):
            now = second + place / 10
            answer = reserved_for(gateway, account, scope, nanos, now)
            if isinstance(answer, ChargeReservation):
                gateway.settle(answer, charge)
        exchange(gateway, account, gateway.renewal(second + 0.6), second + 0.6)
        at = BEGUN + timedelta(seconds=second + 0.7)
        charges = reported_charges(gateway.answered(), gateway.needs())
        before = amounts(budget)["Hour"]
        budget = recorded(planned(budget, charges, at), at)
        assert before <= amounts(budget)["Hour"] <= 1
        assert account.settled + account.lent <= amounts(budget)["Hour"] * NANO
    # Until the rest is less than a call may cost, or less than a step.
    assert account.settled > NANO - max(nanos, NANO // 50) - charge


def reserved_for(
    gateway: GatewayCharges, account: ChargeAccount, scope: ChargeScope, nanos: int, now: float
) -> ChargeReservation | ChargesNeeded | ChargeRefusal:
    for _ in range(3):
        answer = gateway.reserve((scope,), nanos, nanos, now)
        if not isinstance(answer, ChargesNeeded):
            break
        exchange(gateway, account, answer.asks, now)
    return answer


def exchange(
    gateway: GatewayCharges, account: ChargeAccount, asks: Sequence[ChargeAsk], now: float
) -> None:
    at = BEGUN.timestamp() + now
    gateway.receive([account.exchange("gateway-0", each, at) for each in asks], now)


def test_a_cycle_that_is_repeated_lends_once() -> None:
    """The view of a budget in which nothing runs is kept, and what is lent is not counted twice."""
    incremental = Incremental()
    before = a_snapshot(budgets=(a_budget(),), charges=reported(0, need=0.001))
    memory = NO_MEMORY.after(incremental.run(plan, WITH_PROVIDERS, before, NO_MEMORY))
    snapshot = replace(before, providers=(a_provider(),))
    lent = [
        incremental.run(plan, WITH_PROVIDERS, snapshot, memory).budgets[0].state for _ in range(3)
    ]
    assert [each.current_windows[0].lent for each in lent] == [NANO // 5] * 3
