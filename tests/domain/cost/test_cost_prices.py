"""The prices of a day are its platform's cost of the last closed day, and never change."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from tessera.api.price_list import MAX_MEASURED_PRICES, PriceListSpec, PriceListStatus
from tessera.api.ref import Ref
from tessera.domain.budget.budgets import grants_in_force, namespace_claims
from tessera.domain.cost.cost_prices import (
    DAY,
    ServiceDay,
    day_begin,
    lacks_price,
    next_status,
    service_days,
)
from tessera.domain.cost.device_use import CostLine, CostState
from tessera.domain.cost.statement import CostStatement, Statement
from tessera.domain.gateway.name_rights import NameRights, name_rights
from tessera.domain.observed.price_lists import ObservedPriceList
from tests.builders import a_budget, a_service, a_spec

TODAY = date(2026, 3, 10)
YESTERDAY, TOMORROW = TODAY - DAY, TODAY + DAY
UNIT = 10**9


def rights_of(**grants: Any) -> NameRights:
    """Return the rights by the grants of budgets; `team_a` are those of team-a."""
    budgets = [
        a_budget(name.replace("_", "-"), publishing=publishing)
        for name, publishing in grants.items()
    ]
    return name_rights(grants_in_force(namespace_claims(budgets)))


RIGHTS = rights_of(team_a=[{"names": ["chat", "sql", "other"], "public": True}])


def an_entry(
    *models: str,
    factor: str = "1",
    start: str = "2026-01-01",
    tenants: Sequence[str] = (),
    **terms: str,
) -> Any:
    return {
        "from": start,
        "models": models or ("*",),
        "tenants": tenants,
        "fromCost": {"factor": factor, "atLeast": "0", **terms},
    }


def a_list(*entries: Any, status: PriceListStatus | None = None) -> ObservedPriceList:
    spec = PriceListSpec.model_validate({"entries": entries})
    return ObservedPriceList(ref=Ref("", "standard"), spec=spec, status=status or PriceListStatus())


def a_day(
    cost: int, tokens: int, *models: str, currency: str = "USD", namespace: str = "team-a"
) -> ServiceDay:
    return ServiceDay(
        namespace=namespace,
        models=frozenset(models or ("chat",)),
        costs={currency: cost},
        tokens=tokens,
    )


def after(
    price_list: ObservedPriceList,
    days: Iterable[ServiceDay],
    today: date = TODAY,
    rights: NameRights = RIGHTS,
) -> ObservedPriceList:
    status = next_status(price_list, today, days, rights)
    return ObservedPriceList(ref=Ref("", price_list.name), spec=price_list.spec, status=status)


def prices(price_list: ObservedPriceList) -> list[tuple[date, str, str, date]]:
    return [
        (each.day, f"{each.per_million_tokens:f}", f"{each.cost:f}", each.measured_on)
        for entry in price_list.status.entries
        for each in entry.prices
    ]


@pytest.mark.parametrize(
    ("terms", "cost", "tokens", "price", "measured"),
    [
        ({"factor": "1.2"}, 7 * UNIT, 10 * 10**6, "0.84", "0.7"),
        ({"factor": "1"}, 1, 2 * 10**6, "0", "0"),
        ({"factor": "1"}, 3, 2 * 10**6, "0.000000002", "0.000000002"),
        ({"factor": "0.5"}, 3, 10**6, "0.000000002", "0.000000003"),
        ({"factor": "0.5"}, 5, 10**6, "0.000000002", "0.000000005"),
        ({"factor": "1"}, 10 * UNIT, 3 * 10**6, "3.333333333", "3.333333333"),
        ({"factor": "1", "atLeast": "0.8"}, 7 * UNIT, 10 * 10**6, "0.8", "0.7"),
        ({"factor": "2", "atMost": "1.3"}, 7 * UNIT, 10 * 10**6, "1.3", "0.7"),
        ({"factor": "2", "atLeast": "1", "atMost": "2"}, 7 * UNIT, 10 * 10**6, "1.4", "0.7"),
    ],
    ids=[
        *("factor", "half to even down", "half to even up", "half of 3", "half of 5", "third"),
        *("at least", "at most", "between"),
    ],
)
def test_a_price_is_the_cost_of_a_million_tokens_times_the_factor_within_the_bounds(
    terms: dict[str, str], cost: int, tokens: int, price: str, measured: str
) -> None:
    assert prices(after(a_list(an_entry(**terms)), [a_day(cost, tokens)])) == [
        (TOMORROW, price, measured, YESTERDAY)
    ]


def test_the_price_of_a_day_is_written_once_whatever_is_known_later() -> None:
    listed = a_list(an_entry())
    assert lacks_price(listed, TODAY)
    listed = after(listed, [a_day(UNIT, 10**6)])
    assert not lacks_price(listed, TODAY)
    assert not lacks_price(listed, YESTERDAY), "a clock that was set back"
    edited = a_list(an_entry(factor="9"), status=listed.status)
    assert after(edited, [a_day(5 * UNIT, 10**6)]).status == listed.status
    assert prices(after(edited, [a_day(5 * UNIT, 10**6)], TOMORROW)) == [
        (TOMORROW, "1", "1", YESTERDAY),
        (TOMORROW + DAY, "18", "2", TODAY),
    ]


def test_below_a_million_tokens_the_last_figure_stays_under_the_present_terms() -> None:
    listed = after(a_list(an_entry()), [a_day(UNIT, 10**6)])
    edited = a_list(an_entry(factor="2", atMost="1.5"), status=listed.status)
    assert prices(after(edited, [a_day(9 * UNIT, 10**6 - 1)], TOMORROW)) == [
        (TOMORROW, "1", "1", YESTERDAY),
        (TOMORROW + DAY, "1.5", "1", YESTERDAY),
    ]


def test_without_any_figure_there_is_no_price() -> None:
    listed = a_list(an_entry(atLeast="0.5"))
    assert after(listed, [a_day(UNIT, 10**6 - 1)]).status == PriceListStatus()
    assert after(listed, ()).status == PriceListStatus()


def test_an_entry_has_the_cost_of_the_services_that_offer_its_models_in_its_currency() -> None:
    days = [
        a_day(2 * UNIT, 10**6, "chat"),
        a_day(4 * UNIT, 10**6, "chat", "sql"),
        a_day(8 * UNIT, 10**6, "other", "big"),
        a_day(90 * UNIT, 10**6, "chat", currency="EUR"),
        replace(a_day(0, 10**6), costs={"USD": 70 * UNIT, "EUR": UNIT}),
    ]
    entries = [an_entry("chat"), an_entry("sql", "absent"), an_entry(), an_entry("absent")]
    assert [price for _, price, *_ in prices(after(a_list(*entries), days))] == [
        "3",
        "4",
        "4.666666667",
    ]


def test_a_service_without_a_token_costs_those_that_have_some() -> None:
    assert prices(after(a_list(an_entry()), [a_day(UNIT, 10**6), a_day(UNIT, 0)]))[0][1] == "2"


@pytest.mark.parametrize("entry", [an_entry("chat"), an_entry(), an_entry("*", "chat")])
@pytest.mark.parametrize(
    "own",
    [
        a_day(2 * UNIT, 10**12, namespace="team-b"),
        a_day(48 * UNIT, 0, namespace="team-b"),
        a_day(48 * UNIT, 0, "chat", "own", namespace="team-b"),
        a_day(48 * UNIT, 0, "own"),
        a_day(48 * UNIT, 10**6, namespace="alone"),
    ],
    ids=["many tokens", "no token", "two names", "another name", "no tenant"],
)
def test_a_service_without_a_grant_of_its_name_changes_no_price(
    entry: Any, own: ServiceDay
) -> None:
    rights = rights_of(
        team_a=[{"names": ["chat"], "public": True}], team_b=[{"names": ["mail"], "public": True}]
    )
    published = [a_day(3 * UNIT, 2 * 10**6)]
    alone = after(a_list(entry), published, rights=rights)
    assert [price for _, price, *_ in prices(alone)] == ["1.5"]
    assert after(a_list(entry), [*published, own], rights=rights) == alone
    assert prices(after(a_list(entry), [own], rights=rights)) == []


@pytest.mark.parametrize(
    ("tenants", "cost"),
    [((), "4"), (("team-b",), "1"), (("team-c",), "7"), (("team-b", "team-c"), "4")],
    ids=["all", "one", "another", "both"],
)
def test_those_who_pay_by_an_entry_pay_for_services_that_have_the_name_for_them(
    tenants: Sequence[str], cost: str
) -> None:
    rights = rights_of(
        team_a=[{"names": ["chat"], "tenants": ["team-b"]}],
        team_c=[{"names": ["chat"]}],
    )
    days = [a_day(UNIT, 10**6), a_day(7 * UNIT, 10**6, namespace="team-c")]
    listed = after(a_list(an_entry("chat", tenants=tenants)), days, rights=rights)
    assert [price for _, price, *_ in prices(listed)] == [cost]


@pytest.mark.parametrize(
    ("measured", "moved"),
    [
        ([UNIT, 100 * UNIT, 100 * UNIT], ["1", "2", "4"]),
        ([UNIT, 1, 1], ["1", "0.5", "0.25"]),
        ([0, 9 * UNIT, 10 * UNIT], ["0", "9", "10"]),
        ([3, 0, 0], ["0.000000003", "0.000000002", "0.000000001"]),
    ],
    ids=["up", "down", "from nothing", "to nothing"],
)
def test_a_cost_at_most_doubles_or_halves_in_a_day(measured: list[int], moved: list[str]) -> None:
    listed = a_list(an_entry())
    for number, cost in enumerate(measured):
        listed = after(listed, [a_day(cost, 10**6)], TODAY + number * DAY)
    assert [(price, cost) for _, price, cost, _ in prices(listed)] == [
        (each, each) for each in moved
    ]


def test_a_price_rises_from_the_lowest_one_no_faster_than_later() -> None:
    """A service that has the name, and nearly no tokens, makes the first price no other."""
    listed = a_list(an_entry(atLeast="0.1", factor="0.5"))
    for number in range(3):
        listed = after(listed, [a_day(4800 * UNIT, 10**6)], TODAY + number * DAY)
    assert [price for _, price, *_ in prices(listed)] == ["0.2", "0.4", "0.8"]
    # What costs less than the lowest price rises from that, too.
    cheap = after(a_list(an_entry(atLeast="1")), [a_day(UNIT // 10, 10**6)])
    dear = after(cheap, [a_day(4800 * UNIT, 10**6)], TOMORROW)
    assert [price for _, price, *_ in prices(dear)] == ["1", "2"]


def test_who_has_a_name_for_itself_alone_moves_no_price_of_all() -> None:
    rights = rights_of(team_a=[{"names": ["chat"], "public": True}], team_b=[{"names": ["chat"]}])
    published = [a_day(3 * UNIT, 2 * 10**6)]
    own = a_day(480 * UNIT, 0, namespace="team-b")
    for entry in (an_entry("chat"), an_entry()):
        both = after(a_list(entry), [*published, own], rights=rights)
        assert [price for _, price, *_ in prices(both)] == ["1.5"]


def test_a_price_by_cost_needs_a_lowest_price() -> None:
    with pytest.raises(ValidationError, match="atLeast"):
        a_list({"from": "2026-01-01", "models": ["chat"], "fromCost": {"factor": "1"}})


def test_an_entry_has_prices_from_its_first_day_on() -> None:
    listed = a_list(an_entry(start="2026-03-12"))
    assert not lacks_price(listed, TODAY)
    assert prices(after(listed, [a_day(UNIT, 10**6)])) == []
    assert [day for day, *_ in prices(after(listed, [a_day(UNIT, 10**6)], TOMORROW))] == [
        date(2026, 3, 12)
    ]


def test_an_entry_that_is_gone_or_has_prices_of_its_own_has_none_in_the_status() -> None:
    status = after(a_list(an_entry("chat"), an_entry("sql")), [a_day(UNIT, 10**6, "chat", "sql")])
    own = {"from": "2026-01-01", "models": ["chat"], "input": "1", "output": "1"}
    edited = a_list(own, an_entry("sql"), status=status.status)
    assert [entry.models for entry in after(edited, (), TOMORROW).status.entries] == [("sql",)]
    assert not lacks_price(a_list(own), TODAY)


def test_the_status_has_the_last_prices_alone() -> None:
    listed = a_list(an_entry())
    for number in range(20):
        listed = after(listed, [a_day(UNIT, 10**6)], TODAY + number * DAY)
    assert [day for day, *_ in prices(listed)] == [
        TOMORROW + number * DAY for number in range(20 - MAX_MEASURED_PRICES, 20)
    ]


def test_a_list_that_cannot_be_read_stays_as_it_is() -> None:
    unreadable = ObservedPriceList(
        ref=Ref("", "broken"), spec=None, problem="spec.entries: missing"
    )
    assert not lacks_price(unreadable, TODAY)
    assert next_status(unreadable, TODAY, (), RIGHTS) == PriceListStatus()


CHATS = {Ref("team-a", "chat"): 10**6, Ref("team-b", "chat"): 10**9}


def a_statement(
    begin: datetime, end: datetime, *gaps: tuple[datetime, datetime], **costs: int
) -> CostStatement:
    lines = {
        CostLine("USD", "a100", "whole", state, "team-a" if state.allocated else "", service): nanos
        for service, nanos in costs.items()
        for state in (CostState.SERVING, CostState.WARM_IDLE)
    }
    idle = CostLine("USD", "a100", "whole", CostState.COLD_IDLE)
    amounts = {("team-a", line): nanos for line, nanos in lines.items()} | {("", idle): 10**12}
    return Statement(begin=begin, end=end, gaps=gaps, amounts=amounts)


def test_a_day_has_all_states_of_each_service_and_the_names_that_requests_are_charged_by() -> None:
    begin = day_begin(YESTERDAY)
    statement = a_statement(begin, begin + DAY, chat=UNIT, gone=2 * UNIT)
    adapters = [{"name": "sql", "uri": "hf://a/b"}]
    chat = a_service(spec=a_spec(model={"servedName": "Llama-3", "adapters": adapters}))
    assert service_days(YESTERDAY, statement, CHATS, [chat, a_service("idle")]) == (
        a_day(2 * UNIT, 10**6, "llama-3", "sql"),
        replace(a_day(4 * UNIT, 0), models=frozenset()),
    )


@pytest.mark.parametrize(
    ("late", "gap", "early", "is_known"),
    [(0, 0, 0, True), (300, 300, 300, True), (301, 300, 300, False), (-300, 0, 901, False)],
    ids=["whole", "a quarter of an hour", "more", "no end"],
)
def test_a_day_without_a_bill_of_a_part_says_nothing(
    late: int, gap: int, early: int, is_known: bool
) -> None:
    begin, noon = day_begin(YESTERDAY), day_begin(YESTERDAY) + DAY / 2
    statement = a_statement(
        begin + timedelta(seconds=late),
        begin + DAY - timedelta(seconds=early),
        (noon, noon + timedelta(seconds=gap)),
        chat=UNIT,
    )
    assert bool(service_days(YESTERDAY, statement, CHATS, ())) is is_known


def test_a_day_without_a_statement_or_without_samples_says_nothing() -> None:
    begin = day_begin(YESTERDAY)
    assert service_days(YESTERDAY, None, {}, ()) == ()
    assert service_days(YESTERDAY, a_statement(begin, begin + DAY, chat=1), None, ()) == ()


def test_a_price_is_exact_whatever_the_amounts() -> None:
    cost, tokens = 123_456_789_012_345_678, 987_654_321_987
    ((_, price, measured, _),) = prices(
        after(a_list(an_entry(factor="1.000000001")), [a_day(cost, tokens)])
    )
    # 124999998748.520... nano-units
    assert measured == "124.999998749"
    # 124999998749 x 1.000000001 = 124999998873.999998749
    assert price == "124.999998874"
