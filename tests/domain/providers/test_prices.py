"""What models of outside providers cost by the table."""

import json
from datetime import date
from decimal import Decimal
from importlib import resources
from typing import Any

import pytest

from tessera.api.model_provider import ModelProviderSpec
from tessera.domain.price_files import PriceError
from tessera.domain.providers.prices import (
    PriceTable,
    compared_models,
    parse_price_table,
    shipped_prices,
)
from tessera.resources.manifest import wire_format
from tests.builders import a_provider_spec

DAY = date(2026, 11, 30)


def prices_of(provider: str, name: str, day: date = DAY) -> dict[str, Any]:
    model = shipped_prices().model(provider, name)
    assert model is not None
    return {key: value for key, value in wire_format(model.price_on(day)).items() if value}


def a_table(*rows: dict[str, Any], **fields: Any) -> PriceTable:
    model = {"provider": "acme", "model": "Big", "match": "^big$"}
    body = {"date": "2026-11-01", "rows": [model | row for row in rows], **fields}
    return parse_price_table(json.dumps(body))


@pytest.mark.parametrize(
    ("provider", "name", "prices"),
    [
        (
            "x-ai",
            "grok-4.5",
            {
                "input": "2",
                "cachedInput": "0.3",
                "output": "6",
                "steps": [
                    {
                        "aboveInputTokens": 199_999,
                        "input": "4",
                        "cachedInput": "0.6",
                        "output": "12",
                    }
                ],
                "perRequest": "0",
            },
        ),
        # By the hour 0.66 and 1.32: the dearest of both.
        (
            "deepseek",
            "deepseek-v4-pro",
            {
                "from": "2026-08-17",
                "hours": ["01:00-04:00", "06:00-10:00"],
                "input": "1.32",
                "cachedInput": "0.044",
                "output": "3.96",
                "perRequest": "0",
            },
        ),
        (
            "moonshotai",
            "kimi-k3",
            {
                "input": "3",
                "cachedInput": "0.3",
                "cacheWrite": "3",
                "longCacheWrite": "6",
                "output": "15",
                "perRequest": "0",
            },
        ),
        (
            "anthropic",
            "Claude-Sonnet-5-5-20261001",
            {
                "input": "2",
                "cachedInput": "0.1",
                "cacheWrite": "2.5",
                "longCacheWrite": "4",
                "output": "10",
                "search": "0.01",
                "perRequest": "0",
            },
        ),
        (
            "openai",
            "gpt-5.4-2026-03-05",
            {
                "input": "2.5",
                "cachedInput": "0.25",
                "output": "15",
                "search": "0.01",
                "steps": [
                    {
                        "aboveInputTokens": 272_000,
                        "input": "5",
                        "cachedInput": "0.5",
                        "output": "22.5",
                    }
                ],
                "perRequest": "0",
            },
        ),
    ],
)
def test_a_model_has_the_prices_of_its_provider(
    provider: str, name: str, prices: dict[str, Any]
) -> None:
    assert prices_of(provider, name) == prices


def test_the_table_is_small_and_carries_the_notice_of_its_license() -> None:
    path = resources.files("tessera.domain").joinpath("data", "provider-prices.json")
    table = shipped_prices()
    assert len(path.read_bytes()) <= 700_000
    assert (table.package, table.version, table.date) == (
        "genai-prices",
        "0.2.3",
        date(2026, 11, 10),
    )
    assert "Permission is hereby granted" in table.license


def test_a_provider_sells_models_of_others() -> None:
    model = shipped_prices().model("azure", "gpt-5.4")
    assert model is not None
    assert model.provider == "openai"


def test_prices_hold_from_their_day_on() -> None:
    prices = [{"input": "1", "output": "2"}, {"from": "2027-01-01", "input": "3", "output": "4"}]
    [model] = a_table({"prices": prices}).rows
    assert model.price_on(DAY).input == 1
    assert model.price_on(date(2027, 1, 1)).input == 3
    assert [each.input for each in model.prices_from(DAY)] == [1, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no JSON", "Invalid JSON"),
        ('{"rows": []}', "date: Field required"),
        ('{"date": "2026-11-01", "rows": [], "rates": 1}', "rates: Extra inputs"),
        (
            '{"date": "2026-11-01", "rows": [{"provider": "a", "model": "m", "match": "(", '
            '"prices": [{"input": "1", "output": "1"}]}]}',
            r"rows\[0\].match: Value error, is no regular expression",
        ),
        (
            '{"date": "2026-11-01", "rows": [{"provider": "a", "model": "m", "match": "m", '
            '"prices": [{"input": "-1", "output": "1"}]}]}',
            r"rows\[0\].prices\[0\].input: ",
        ),
        (
            '{"date": "2026-11-01", "rows": [{"provider": "a", "model": "m", "match": "m", '
            '"prices": []}]}',
            r"rows\[0\].prices: ",
        ),
    ],
)
def test_a_table_with_an_error_is_refused_with_its_place_and_the_format(
    text: str, message: str
) -> None:
    with pytest.raises(PriceError, match=message) as refused:
        parse_price_table(text)
    assert "the format is" in str(refused.value)


def a_spec(cost: dict[str, Any], **fields: Any) -> ModelProviderSpec:
    model = {"name": "Big", "maxContextTokens": 400_000, "maxOutputTokens": 1000, "cost": cost}
    return ModelProviderSpec.model_validate(
        a_provider_spec("acme", models=[model | fields.pop("model", {})], **fields)
    )


def differences(cost: dict[str, Any], price: dict[str, Any], **fields: Any) -> list[str]:
    [model] = compared_models(a_table({"prices": [price]}), "acme", a_spec(cost, **fields), DAY)
    return [f"{each.field} {each.observed} {each.listed}" for each in model.differences]


PLAIN = {"input": "2", "output": "6"}
STEP = {"aboveInputTokens": 200_000, "input": "4", "output": "12"}


@pytest.mark.parametrize(
    ("cost", "price", "expected"),
    [
        (PLAIN, PLAIN, []),
        (PLAIN, PLAIN | {"cachedInput": "2", "reasoning": "6.0"}, []),
        (PLAIN, PLAIN | {"cachedInput": "0.2"}, ["cachedInput 2 0.2"]),
        (PLAIN, PLAIN | {"search": "0.01"}, []),
        (
            PLAIN | {"search": "0.02", "maxSearches": 3},
            PLAIN | {"search": "0.01"},
            ["search 0.02 0.01"],
        ),
        (
            PLAIN,
            PLAIN | {"steps": [STEP]},
            [
                "steps[200000].input 2 4",
                "steps[200000].cachedInput 2 4",
                "steps[200000].cacheWrite 2 4",
                "steps[200000].longCacheWrite 2 4",
                "steps[200000].output 6 12",
                "steps[200000].reasoning 6 12",
            ],
        ),
        (PLAIN | {"steps": [STEP]}, PLAIN | {"steps": [STEP]}, []),
        (PLAIN, PLAIN | {"steps": [STEP | {"aboveInputTokens": 400_000}]}, []),
        (PLAIN, PLAIN | {"perRequest": "0.001"}, ["perRequest 0 0.001"]),
    ],
)
def test_prices_that_are_not_the_tables_are_named(
    cost: dict[str, Any], price: dict[str, Any], expected: list[str]
) -> None:
    assert differences(cost, price) == expected


def test_prices_in_another_currency_are_not_compared() -> None:
    table = a_table({"prices": [PLAIN]})
    [model] = compared_models(table, "acme", a_spec({**PLAIN, "input": "9"}, currency="EUR"), DAY)
    assert not model.is_listed
    assert model.differences == ()


def test_the_row_of_a_host_holds_whatever_the_object_is_called() -> None:
    spec = a_spec(
        {"input": "2", "output": "7"}, baseUrl="https://api.x.ai/v1", model={"name": "grok-4.7"}
    )
    [model] = compared_models(shipped_prices(), "mine", spec, DAY)
    assert [each.field for each in model.differences][:2] == ["cachedInput", "output"]
    assert model.differences[1].listed == Decimal(6)
