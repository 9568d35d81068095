"""Prices of APIs: what is shipped, what a file may say, and what tokens cost."""

import json
from datetime import date
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import pytest

from tessera.domain.economics.api_prices import (
    TokenPrices,
    TokenUse,
    api_price_on,
    list_api_prices,
    parse_api_prices,
)
from tessera.domain.money import money
from tessera.domain.price_files import PriceError
from tessera.domain.providers.prices import shipped_prices

DAY = date(2026, 11, 26)
ENTRY: dict[str, Any] = {
    "name": "model",
    "from": "2026-10-01",
    "inputPerMillion": "2",
    "outputPerMillion": "6",
}


def prices(output: str, of_input: str | None = None, cached: str | None = None) -> TokenPrices:
    usd = [money(Decimal(price or output), "USD") for price in (output, of_input, cached)]
    return TokenPrices(output=usd[0], input=usd[1], cached_input=usd[2])


def parse(*entries: dict[str, Any]) -> Any:
    return parse_api_prices(json.dumps({"prices": entries}))


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [(1, "0.096"), (1_000, "96"), (1e6, "96000"), (30e6, "2880000")],
)
def test_four_calls_of_800_tokens_at_3_cents_a_thousand_cost(
    sessions: float, expected: str
) -> None:
    session = TokenUse(input_tokens=800, output_tokens=0).times(4)
    assert prices("30").cost(session.times(sessions)).rounded(9) == Decimal(expected)


def test_input_cached_and_output_tokens_have_their_own_prices() -> None:
    use = TokenUse(input_tokens=1_000_000, cached_tokens=400_000, output_tokens=100_000)
    assert prices("10", "2", "0.5").cost(use).rounded(4) == Decimal("2.4")


def test_a_price_falls_by_a_share_of_itself_each_year() -> None:
    falling = prices("5")
    assert falling.after(1, 0.8).output.rounded(9) == 1
    assert falling.after(2, 0.8).output.rounded(9) == Decimal("0.2")
    assert falling.after(0.5, 0.75).output.rounded(9) == Decimal("2.5")


def test_the_cut_of_gpt_4o_halved_input_and_took_a_third_of_output() -> None:
    before, after = (
        api_price_on(list_api_prices(), "gpt-4o", day).token_prices
        for day in (date(2024, 6, 1), date(2024, 12, 1))
    )
    three_to_one = TokenUse(input_tokens=3, output_tokens=1)
    cuts = [
        after.input.nanos / before.input.nanos - 1,
        after.output.nanos / before.output.nanos - 1,
        after.blended(three_to_one).nanos / before.blended(three_to_one).nanos - 1,
    ]
    assert cuts == pytest.approx([-0.5, -1 / 3, -0.41667], rel=1e-4)
    assert (before.blended(three_to_one).rounded(3), after.blended(three_to_one).rounded(3)) == (
        Decimal("7.5"),
        Decimal("4.375"),
    )


def test_every_shipped_price_has_a_past_day_and_an_address() -> None:
    for entry in list_api_prices():
        assert entry.from_ <= DAY
        assert entry.source.startswith("https://")
        assert entry.currency == "USD"


def test_the_latest_price_that_applies_on_a_day_is_chosen_whatever_their_order() -> None:
    entries = parse({**ENTRY, "from": "2026-11-01", "outputPerMillion": 5}, ENTRY)
    for order in (entries, entries[::-1]):
        assert api_price_on(order, "model", date(2026, 10, 31)).output_per_million == 6
        assert api_price_on(order, "model", date(2026, 11, 1)).output_per_million == 5


def test_without_a_price_of_cached_input_it_costs_what_other_input_does() -> None:
    (entry,) = parse(ENTRY)
    assert entry.token_prices.cached_input == entry.token_prices.input


def test_a_price_is_old_after_180_days() -> None:
    (entry,) = parse({**ENTRY, "from": "2026-05-30"})
    assert not entry.is_old(DAY)
    assert entry.is_old(date(2026, 11, 27))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"from": None}, r"prices\[0\]\.from: Input should be a valid date; the format is"),
        ({"name": ""}, r"prices\[0\]\.name: "),
        ({"outputPerMillion": 0}, r"prices\[0\]\.outputPerMillion: .*greater than 0"),
        ({"inputPerMillion": "-1"}, r"prices\[0\]\.inputPerMillion: .*greater than or equal"),
        ({"inputPerMillion": "nan"}, r"prices\[0\]\.inputPerMillion: .*finite"),
        ({"outputPerMillion": "1e300"}, r"prices\[0\]\.outputPerMillion: .*less than or equal"),
        ({"currency": "dollars"}, r"prices\[0\]\.currency: "),
        ({"asOf": "2026-01-01"}, r"prices\[0\]\.asOf: Extra inputs"),
        ({"cachedInputPerMillion": 3}, "cachedInputPerMillion 3 is above inputPerMillion 2"),
    ],
)
def test_an_entry_that_is_wrong_is_named_with_its_field(
    change: dict[str, Any], problem: str
) -> None:
    with pytest.raises(PriceError, match=problem):
        parse({**ENTRY, **change})


def test_an_entry_without_a_date_is_refused() -> None:
    undated = {key: value for key, value in ENTRY.items() if key != "from"}
    with pytest.raises(PriceError, match=r"prices\[0\]\.from: Field required; the format is"):
        parse(undated)


def test_two_different_prices_from_one_day_on_contradict_each_other() -> None:
    with pytest.raises(
        PriceError, match=r"prices\[0\] and prices\[1\] are different prices of mod"
    ):
        parse(ENTRY, {**ENTRY, "outputPerMillion": 7})
    assert len(parse(ENTRY, ENTRY)) == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prices", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("{}", "it has no list prices"),
        ("[]", "it has no list prices"),
        ('{"prices": 1}', r"prices: Input should be a valid tuple"),
    ],
)
def test_a_file_that_is_no_price_list_is_refused_with_the_format(text: str, problem: str) -> None:
    with pytest.raises(PriceError, match=f"{problem}.*the format is"):
        parse_api_prices(text)


def test_a_model_without_a_price_and_one_with_a_later_price_say_what_there_is() -> None:
    entries = parse(ENTRY)
    with pytest.raises(PriceError, match="no price of other; choose of model"):
        api_price_on(entries, "other", DAY)
    with pytest.raises(PriceError, match="no price of model before 2026-10-01; add one with from"):
        api_price_on(entries, "model", date(2026, 9, 30))


# The provider of each source in the table, and the names of models there.
_PROVIDERS = {
    "www.together.ai": "together",
    "groq.com": "groq",
    "console.groq.com": "groq",
    "openai.com": "openai",
    "community.openai.com": "openai",
    "www.anthropic.com": "anthropic",
    "platform.claude.com": "anthropic",
}
_LISTED_NAMES = {
    "llama-2-70b": "meta-llama/Llama-2-70b-chat-hf",
    "llama-3.1-8b": "llama-3.1-8b-instant",
    "llama-3.3-70b": "llama-3.3-70b-versatile",
    "gpt-oss-120b": "openai/gpt-oss-120b",
}


def test_the_latest_shipped_prices_are_those_of_the_table_of_providers() -> None:
    table = shipped_prices()
    latest = {entry.name: entry for entry in list_api_prices()}
    for entry in latest.values():
        provider = _PROVIDERS[urlsplit(entry.source).netloc]
        model = table.model(provider, _LISTED_NAMES.get(entry.name, entry.name))
        assert model is not None, entry.name
        price = model.price_on(table.date)
        prices = (entry.input_per_million, entry.output_per_million)
        assert prices == (price.input, price.output), entry.name
        assert entry.cached_input_per_million in (None, price.cached_input), entry.name
