"""`tessera provider prices`: what the models of a provider cost by the table."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from types import SimpleNamespace
from typing import Any

from tessera.adapters.clock import now
from tessera.cli.output import Output
from tessera.cli.provider.table import described, find_model, models_of, read_table
from tessera.cli.text import cell, column_head, table
from tessera.domain.providers.prices import ListedModel, ListedProvider, PriceTable
from tessera.resources.manifest import wire_format

_PRICES = (
    "input",
    "cachedInput",
    "cacheWrite",
    "longCacheWrite",
    "output",
    "reasoning",
    "search",
    "perRequest",
)
_COLUMNS = ("model", "context", "from", "above", *_PRICES)


def run(arguments: SimpleNamespace) -> Output:
    """Print the prices in the requested format."""
    return listing(arguments, now().date())


def listing(arguments: SimpleNamespace, day: date) -> Output:
    """Return the prices of a day and later ones."""
    prices = read_table(arguments.table)
    name, model = arguments.name, arguments.model
    rows = [find_model(prices, name, model)] if model else models_of(prices, name)
    return Output.of(
        arguments.output,
        _lines(prices, name, rows, day),
        partial(_body, prices, rows, day),
        lambda: (_COLUMNS, _rows(rows, day)),
    )


def _lines(
    prices: PriceTable, name: str, models: Sequence[ListedModel], day: date
) -> Iterator[str]:
    """Yield a table without columns in which no model has a value."""
    rows = list(_rows(models, day))
    columns = [column for column in _COLUMNS if any(row.get(column) is not None for row in rows)]
    body = [[cell(row.get(column)) for column in columns] for row in rows]
    yield from table([*map(column_head, columns)], body, str.rjust)
    page = prices.providers.get(name, ListedProvider()).page
    yield from ("", f"USD a million tokens, by {described(prices)}{f': {page}' if page else ''}")
    for model in models:
        if hours := model.price_on(day).hours:
            yield (
                f"{model.model} has other prices from {' and '.join(hours)} UTC than in other "
                "hours: these are the dearest of both"
            )


def _rows(models: Sequence[ListedModel], day: date) -> Iterator[Mapping[str, Any]]:
    for model in models:
        for price in model.prices_from(day):
            shown = wire_format(price)
            steps = shown.pop("steps", [])
            if not price.per_request:
                shown.pop("perRequest", None)
            row = {"model": model.model, "context": model.context}
            row["from"] = shown.get("from")
            yield row | {name: shown.get(name) for name in _PRICES} | {"above": None}
            for step in steps:
                yield (
                    row
                    | {name: step.get(name) for name in _PRICES}
                    | {"above": step["aboveInputTokens"]}
                )


def _body(prices: PriceTable, models: Sequence[ListedModel], day: date) -> dict[str, Any]:
    return {
        "table": {"package": prices.package, "version": prices.version, "date": str(prices.date)},
        "models": [
            {
                "provider": model.provider,
                "model": model.model,
                "context": model.context,
                "prices": [wire_format(price) for price in model.prices_from(day)],
            }
            for model in models
        ],
    }
