"""Which price a request has."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tessera.api.price_list import PriceListSpec, PriceListStatus
from tessera.api.ref import Ref
from tessera.domain.charge.price_book import SEEN_SECONDS, PriceListBook, revised_book
from tessera.domain.charge.prices import RequestPrice
from tessera.domain.gateway.directory import Directory, TenantLimits
from tessera.domain.limits.charges import price_for
from tessera.domain.observed.price_lists import ObservedPriceList
from tests.gateway.harness import a_model

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC).timestamp()
CHAT = a_model(names=("Chat", "gpt-4"), adapters=("sql",))


def an_entry(price: str, *models: str, **fields: Any) -> dict[str, Any]:
    return {
        "from": "2026-01-01",
        "models": models or ("*",),
        "input": price,
        "output": "0",
    } | fields


def a_list(*entries: dict[str, Any], name: str = "standard", **fields: Any) -> ObservedPriceList:
    return ObservedPriceList(
        ref=Ref("", name), spec=PriceListSpec.model_validate({"entries": entries, **fields})
    )


def a_book(*entries: dict[str, Any], **fields: Any) -> PriceListBook:
    return revised_book(PriceListBook(), [a_list(*entries, **fields)], NOW)


def find(
    book: PriceListBook,
    name: str = "Chat",
    at: float = NOW,
    tenant: str = "team-a",
    currency: str = "USD",
) -> RequestPrice | None:
    payer = TenantLimits(name=tenant, namespaces=(tenant,), currency=currency)
    return price_for(Directory(tenants={tenant: payer}, prices=book), tenant, CHAT, name, at)


def input_price(*arguments: Any, **fields: Any) -> int | None:
    price = find(*arguments, **fields)
    return None if price is None else price.input


def test_a_price_has_each_kind_of_token_in_nano_units_and_what_is_omitted() -> None:
    book = a_book(an_entry("1.5", "chat", output="6", perRequest="0.001", perBatchRow="0.0005"))
    price = find(book)
    assert price is not None
    assert price.price_list.startswith("standard@")
    assert (price.input, price.cached_input) == (1_500_000_000, 1_500_000_000)
    assert (price.output, price.reasoning) == (6_000_000_000, 6_000_000_000)
    assert (price.per_request, price.per_batch_row, price.per_cached_answer) == (10**6, 500_000, 0)


def test_cached_and_reasoning_tokens_may_have_prices_of_their_own() -> None:
    price = find(a_book(an_entry("2", cachedInput="0.2", reasoning="0.00", perCachedAnswer="0.01")))
    assert price is not None
    assert (price.cached_input, price.reasoning) == (200_000_000, 0)
    assert price.per_cached_answer == 10_000_000


def test_the_latest_entry_that_has_started_applies_from_midnight_in_utc() -> None:
    later = {"from": "2026-03-11"}
    book = a_book(an_entry("1"), an_entry("2", **later), an_entry("9", **{"from": "2026-03-12"}))
    midnight = datetime(2026, 3, 11, tzinfo=UTC).timestamp()
    assert [input_price(book, at=at) for at in (NOW, midnight - 1, midnight)] == [
        10**9,
        10**9,
        2 * 10**9,
    ]


def test_before_the_first_day_there_is_no_price() -> None:
    assert find(a_book(an_entry("1", **{"from": "2026-03-11"}))) is None


def test_the_adapter_comes_before_the_model_and_the_model_before_all() -> None:
    every, of_model, of_adapter = an_entry("1"), an_entry("2", "chat"), an_entry("3", "sql")
    assert [input_price(a_book(every, of_model, of_adapter), name) for name in ("Chat", "sql")] == [
        2 * 10**9,
        3 * 10**9,
    ]
    assert input_price(a_book(every, of_model), "sql") == 2 * 10**9
    assert input_price(a_book(every), "sql") == 10**9


def test_an_alias_costs_what_the_served_name_costs() -> None:
    assert input_price(a_book(an_entry("1", "chat"), an_entry("9", "gpt-4")), "gpt-4") == 10**9


def test_prices_of_a_tenant_come_before_those_of_all() -> None:
    book = a_book(an_entry("2", "chat"), an_entry("1", "chat", tenants=["team-a"]))
    assert input_price(book, tenant="team-a") == 10**9
    assert input_price(book, tenant="team-b") == 2 * 10**9
    assert find(a_book(an_entry("1", tenants=["team-a"])), tenant="team-b") is None


def test_a_currency_without_a_price_is_no_price() -> None:
    assert find(a_book(an_entry("1"), currency="EUR")) is None
    assert input_price(a_book(an_entry("1"), currency="EUR"), currency="EUR") == 10**9


def test_an_unknown_tenant_has_no_price() -> None:
    assert price_for(Directory(prices=a_book(an_entry("1"))), "team-z", CHAT, "Chat", NOW) is None


def test_of_two_entries_for_one_day_the_first_applies_and_of_two_lists_the_first_name() -> None:
    assert input_price(a_book(an_entry("1", "chat", "sql"), an_entry("2", "chat"))) == 10**9
    lists = [a_list(an_entry("2"), name="b"), a_list(an_entry("1"), name="a")]
    assert input_price(revised_book(PriceListBook(), lists, NOW)) == 10**9


def test_what_a_gateway_sees_at_its_start_counts_at_once() -> None:
    assert find(a_book(an_entry("1")), at=NOW) is not None


@pytest.mark.parametrize(
    ("change", "then"),
    [([a_list(an_entry("2"))], 2 * 10**9), ([], None)],
    ids=["edited", "removed"],
)
def test_a_change_counts_a_minute_after_it_was_seen(
    change: list[ObservedPriceList], then: int | None
) -> None:
    book = revised_book(a_book(an_entry("1")), change, NOW)
    assert [input_price(book, at=NOW + seconds) for seconds in (0, 59, 60)] == [10**9, 10**9, then]


def test_a_first_list_counts_a_minute_after_it_was_seen_by_a_gateway_that_runs() -> None:
    book = revised_book(revised_book(PriceListBook(), [], NOW), [a_list(an_entry("1"))], NOW + 5)
    assert [input_price(book, at=NOW + seconds) for seconds in (64, 65)] == [None, 10**9]


def test_changes_of_a_minute_count_one_after_the_other() -> None:
    book = a_book(an_entry("1"))
    for seconds, price in ((0, "2"), (10, "3")):
        book = revised_book(book, [a_list(an_entry(price))], NOW + seconds)
    assert [input_price(book, at=NOW + seconds) for seconds in (59, 60, 70)] == [
        10**9,
        2 * 10**9,
        3 * 10**9,
    ]


def test_a_book_forgets_what_no_longer_counts_and_else_stays_the_same() -> None:
    book = revised_book(a_book(an_entry("1")), [a_list(an_entry("2"))], NOW)
    assert revised_book(book, [a_list(an_entry("2"))], NOW + 30) is book
    assert len(revised_book(book, [a_list(an_entry("2"))], NOW + 60).versions) == 1


def test_a_clock_that_was_set_back_loses_no_change() -> None:
    book = revised_book(a_book(an_entry("1")), [a_list(an_entry("2"))], NOW)
    book = revised_book(book, [a_list(an_entry("3"))], NOW - 3600)
    assert input_price(book, at=NOW + 60) == 3 * 10**9


def test_an_entry_has_the_same_name_in_all_gateways_and_another_after_an_edit() -> None:
    first, again, edited = (find(a_book(an_entry(price))) for price in ("1", "1", "2"))
    assert first == again
    assert first is not None
    assert edited is not None
    assert first.price_list != edited.price_list


def test_a_list_that_cannot_be_read_has_no_prices() -> None:
    unreadable = ObservedPriceList(
        ref=Ref("", "broken"), spec=None, problem="spec.entries: missing"
    )
    book = revised_book(PriceListBook(), [unreadable, a_list(an_entry("1"))], NOW)
    assert input_price(book) == 10**9


def by_cost(*days: tuple[str, str], start: str = "2026-01-01", **terms: str) -> ObservedPriceList:
    """A list with an entry for all models whose status has prices from some days on."""
    entry = {"from": start, "models": ["*"], "fromCost": {"factor": "1", "atLeast": "0", **terms}}
    prices = [
        {"day": day, "perMillionTokens": price, "cost": "1", "measuredOn": "2026-01-01"}
        for day, price in days
    ]
    status = {"entries": [{"from": start, "models": ["*"], "prices": prices}]} if days else {}
    return ObservedPriceList(
        ref=Ref("", "by-cost"),
        spec=PriceListSpec.model_validate({"entries": [entry]}),
        status=PriceListStatus.model_validate(status),
    )


def test_a_price_by_cost_is_that_of_its_day_for_all_tokens() -> None:
    lists = [by_cost(("2026-03-09", "1"), ("2026-03-10", "2"), ("2026-03-11", "3"))]
    book = revised_book(PriceListBook(), lists, NOW)
    midnight = datetime(2026, 3, 11, tzinfo=UTC).timestamp()
    assert [input_price(book, at=at) for at in (NOW, midnight - 1, midnight, midnight + 9e6)] == [
        2 * 10**9,
        2 * 10**9,
        3 * 10**9,
        3 * 10**9,
    ]
    price = find(book)
    assert price is not None
    assert {price.input, price.cached_input, price.output, price.reasoning} == {2 * 10**9}
    later = find(book, at=midnight)
    assert later is not None
    assert later.price_list != price.price_list, "a statement tells its days apart"


def test_before_the_first_price_by_cost_the_least_applies() -> None:
    lists = [by_cost(atLeast="0.5"), a_list(an_entry("9", **{"from": "2025-01-01"}))]
    assert input_price(revised_book(PriceListBook(), lists, NOW)) == 5 * 10**8


def test_the_next_price_is_that_of_a_change_that_was_seen_or_of_a_later_day() -> None:
    def coming(book: PriceListBook, at: float = NOW) -> tuple[int, float] | None:
        start = book.next_price("USD", "team-a", ["chat"], at)
        return None if start is None else (start[0].input, start[1])

    tomorrow = datetime(2026, 3, 11, tzinfo=UTC).timestamp()
    later = a_list(an_entry("2", **{"from": "2026-03-11"}))
    empty = revised_book(PriceListBook(), [], NOW)
    assert coming(empty) is None
    assert coming(revised_book(empty, [later], NOW)) == (2 * 10**9, tomorrow)
    seen = revised_book(empty, [a_list(an_entry("1"))], NOW)
    assert find(seen) is None
    assert coming(seen) == (10**9, NOW + SEEN_SECONDS)
    assert coming(seen, NOW + SEEN_SECONDS) is None
    other = a_list(an_entry("1", "other"))
    assert coming(revised_book(empty, [other], NOW)) is None


def test_prices_by_cost_end_where_a_later_entry_begins() -> None:
    later = a_list(an_entry("9", **{"from": "2026-03-10"}))
    lists = [by_cost(("2026-03-09", "1"), ("2026-03-11", "3")), later]
    book = revised_book(PriceListBook(), lists, NOW)
    assert [input_price(book, at=NOW + hours * 3600) for hours in (-24, 0, 24)] == [
        10**9,
        9 * 10**9,
        9 * 10**9,
    ]


def test_a_price_by_cost_that_is_written_late_counts_a_minute_after_it_was_seen() -> None:
    book = revised_book(PriceListBook(), [by_cost(atLeast="1")], NOW)
    book = revised_book(book, [by_cost(("2026-03-10", "2"), atLeast="1")], NOW)
    assert [input_price(book, at=NOW + seconds) for seconds in (59, 60)] == [10**9, 2 * 10**9]


def test_a_list_that_is_created_again_makes_no_version() -> None:
    price_list = a_list(an_entry("1"))
    book = revised_book(PriceListBook(), [price_list], NOW)
    again = replace(price_list, uid="another", generation=9)
    assert revised_book(book, [again], NOW + 1) is book
