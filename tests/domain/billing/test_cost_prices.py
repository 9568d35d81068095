"""The prices of a day are its platform's cost of the last closed day, and never change."""

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from typing import Any

import pytest

from tessera.api.price_list import MAX_MEASURED_PRICES, PriceListSpec, PriceListStatus
from tessera.domain.billing.cost_prices import (
    DAY,
    ServiceDay,
    day_begin,
    lacks_price,
    next_status,
    service_days,
)
from tessera.domain.billing.device_use import CostLine, CostState
from tessera.domain.billing.statement import CostStatement, Statement
from tessera.domain.observed.price_lists import ObservedPriceList
from tessera.domain.usage.report import UsageRow
from tests.builders import a_service, a_spec

TODAY = date(2026, 3, 10)
YESTERDAY, TOMORROW = TODAY - DAY, TODAY + DAY
UNIT = 10**9


def an_entry(*models: str, factor: str = "1", start: str = "2026-01-01", **terms: str) -> Any:
    return {
        "from": start,
        "models": models or ("*",),
        "fromCost": {"factor": factor, **terms},
    }


def a_list(*entries: Any, status: PriceListStatus | None = None) -> ObservedPriceList:
    spec = PriceListSpec.model_validate({"entries": entries})
    return ObservedPriceList(name="standard", spec=spec, status=status or PriceListStatus())


def a_day(cost: int, tokens: int, *models: str, currency: str = "USD") -> ServiceDay:
    return ServiceDay(models=frozenset(models), costs={currency: cost}, tokens=tokens)


def after(
    price_list: ObservedPriceList, days: Iterable[ServiceDay], today: date = TODAY
) -> ObservedPriceList:
    status = next_status(price_list, today, days)
    return ObservedPriceList(name=price_list.name, spec=price_list.spec, status=status)


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
        (TOMORROW + DAY, "45", "5", TODAY),
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
        a_day(8 * UNIT, 10**6),
        a_day(90 * UNIT, 10**6, "chat", currency="EUR"),
        ServiceDay(models=frozenset({"chat"}), costs={"USD": 70 * UNIT, "EUR": UNIT}, tokens=10**6),
    ]
    entries = [an_entry("chat"), an_entry("sql", "other"), an_entry(), an_entry("other")]
    assert [price for _, price, *_ in prices(after(a_list(*entries), days))] == [
        "3",
        "4",
        "4.666666667",
    ]


def test_a_service_without_a_token_costs_those_that_have_some() -> None:
    assert prices(after(a_list(an_entry()), [a_day(UNIT, 10**6), a_day(UNIT, 0)]))[0][1] == "2"


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
    unreadable = ObservedPriceList(name="broken", spec=None, problem="spec.entries: missing")
    assert not lacks_price(unreadable, TODAY)
    assert next_status(unreadable, TODAY, ()) == PriceListStatus()


def a_usage(service: str, tokens: int) -> UsageRow:
    counts = dict.fromkeys(("requests", "failed", "aborted", "estimated", "cached_tokens"), 0)
    return UsageRow(
        group=(service,),
        input_tokens=tokens // 4,
        output_tokens=tokens - tokens // 4,
        reasoning_tokens=0,
        **counts,
    )


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
    usage = [a_usage("team-a/chat", 10**6), a_usage("team-b/chat", 10**9)]
    assert service_days(YESTERDAY, statement, usage, [chat, a_service("idle")]) == (
        ServiceDay(models=frozenset({"llama-3", "sql"}), costs={"USD": 2 * UNIT}, tokens=10**6),
        ServiceDay(models=frozenset(), costs={"USD": 4 * UNIT}, tokens=0),
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
    usage = [a_usage("team-a/chat", 10**6)]
    assert bool(service_days(YESTERDAY, statement, usage, ())) is is_known


def test_a_day_without_a_statement_or_without_samples_says_nothing() -> None:
    begin = day_begin(YESTERDAY)
    assert service_days(YESTERDAY, None, (), ()) == ()
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
