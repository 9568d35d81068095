"""The table of prices that a command uses."""

from tessera.cli.errors import CommandError
from tessera.cli.files import read_text
from tessera.domain.price_files import PriceError
from tessera.domain.providers.prices import (
    ListedModel,
    PriceTable,
    parse_price_table,
    shipped_prices,
)


def read_table(file: str | None) -> PriceTable:
    """Return the table of a file, or the shipped one; CommandError for a file that is none."""
    if file is None:
        return shipped_prices()
    try:
        return parse_price_table(read_text("--table", file))
    except PriceError as error:
        raise CommandError(f"--table {file}: {error}") from None


def models_of(table: PriceTable, provider: str) -> list[ListedModel]:
    """Return the models of a provider; CommandError with all providers for an unknown one."""
    models = table.models_of(provider)
    if not models:
        raise CommandError(
            f"the table has no prices of {provider}; choose of {', '.join(table.names)}, or give "
            "--table FILE"
        )
    return models


def find_model(table: PriceTable, provider: str, name: str) -> ListedModel:
    """Return a model of a provider; CommandError with the next names for an unknown one."""
    models = models_of(table, provider)
    model = table.model(provider, name)
    if model is None:
        raise CommandError(
            f"the table has no model {name} of {provider}; tessera provider prices {provider} "
            f"lists {len(models)}, and --table FILE adds others"
        )
    return model


def described(table: PriceTable) -> str:
    """Return which table it is, and of which day."""
    name = f"{table.package} {table.version}".strip() or "the given table"
    return f"{name} of {table.date}"
