"""`tessera provider diff`: the ModelProviders of the cluster compared with the table."""

from collections.abc import Iterator, Sequence
from datetime import date
from functools import partial
from types import SimpleNamespace
from typing import Any

from tessera.adapters.clock import now
from tessera.adapters.kube.object_parsing import parse_own
from tessera.api.text import counted
from tessera.cli.cluster import Json, Reader, cluster_command
from tessera.cli.output import Output
from tessera.cli.provider.table import described, read_table
from tessera.cli.text import cell, table
from tessera.domain.kinds.kinds import MODEL_PROVIDERS
from tessera.domain.providers.prices import ComparedModel, PriceTable, compared_models

_COLUMNS = ("provider", "model", "field", "cluster", "table")


@cluster_command
async def run(reader: Reader, arguments: SimpleNamespace) -> Output:
    """Print the differences; the exit code is 1 when there are any."""
    bodies = await reader.list_objects(MODEL_PROVIDERS)
    return differences(read_table(arguments.table), bodies, now().date(), arguments.output)


def differences(prices: PriceTable, bodies: Sequence[Json], day: date, form: str) -> Output:
    """Return each price that is not the table's, and the models that the table lacks."""
    models = list(cluster_models(prices, bodies, day))
    return Output.of(
        form,
        _lines(prices, models),
        partial(_body, prices, models),
        lambda: (_COLUMNS, _rows(models)),
        exit_code=int(any(model.differences for model in models)),
    )


def cluster_models(
    prices: PriceTable, bodies: Sequence[Json], day: date
) -> Iterator[ComparedModel]:
    """Yield the models of all ModelProviders whose spec is valid, in the order of their names."""
    for body in sorted(bodies, key=lambda each: str(each["metadata"]["name"])):
        provider = parse_own(MODEL_PROVIDERS, body)
        if provider.spec is not None:
            yield from compared_models(prices, provider.name, provider.spec, day)


def _lines(prices: PriceTable, models: Sequence[ComparedModel]) -> Iterator[str]:
    rows = list(_rows(models))
    if rows:
        heads = [column.upper() for column in _COLUMNS]
        yield from table(heads, [[cell(row[name]) for name in _COLUMNS] for row in rows], names=5)
        yield ""
    compared = [model for model in models if model.is_listed]
    yield f"{counted(len(compared), 'model')} compared with {described(prices)}"
    for model in models:
        if not model.is_listed:
            yield f"{model.provider}/{model.name} has no prices in the table in {model.currency}"


def _rows(models: Sequence[ComparedModel]) -> Iterator[dict[str, str | None]]:
    for model in models:
        for each in model.differences:
            amounts = [
                None if amount is None else f"{amount:f}" for amount in (each.observed, each.listed)
            ]
            values = (model.provider, model.name, each.field, *amounts)
            yield dict(zip(_COLUMNS, values, strict=True))


def _body(prices: PriceTable, models: Sequence[ComparedModel]) -> dict[str, Any]:
    return {
        "table": {"package": prices.package, "version": prices.version, "date": str(prices.date)},
        "differences": list(_rows(models)),
        "compared": sum(model.is_listed for model in models),
        "notListed": [f"{model.provider}/{model.name}" for model in models if not model.is_listed],
    }
