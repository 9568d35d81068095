"""`tessera provider add`: a ModelProvider with the prices of the table."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date
from types import SimpleNamespace
from typing import Any

import yaml
from pydantic import ValidationError

from tessera.adapters.clock import now
from tessera.api.meta import API_VERSION
from tessera.api.model_provider import ModelProvider
from tessera.cli.errors import CommandError
from tessera.cli.output import Output
from tessera.cli.provider.table import described, find_model, read_table
from tessera.domain.providers.dialects import PLAIN, Dialect, dialects
from tessera.domain.providers.prices import ListedModel, ListedPrice, ListedProvider, PriceTable
from tessera.resources.manifest import wire_format

# The tenants of a ModelProvider that was added without any: no TenantBudget should have this name.
NOBODY = "nobody"
# Counts of searches on the path of chats say that a model searches unasked.
_SEARCHES = "searches"


def run(arguments: SimpleNamespace) -> Output:
    """Print the ModelProvider as YAML."""
    return Output.of_lines(provider_lines(arguments, now().date()))


def provider_lines(arguments: SimpleNamespace, day: date) -> Iterator[str]:
    """Return the lines of the YAML; CommandError with the options that are missing."""
    table = read_table(arguments.table)
    name = arguments.name
    dialect = dialects().get(name, PLAIN)
    listed = [(model, find_model(table, name, model)) for model in arguments.models]
    _refuse_missing(arguments, dialect, listed, _page(table, name))
    models = [
        (_model(arguments, dialect, table, model, row, day), _notes(arguments, model, row, day))
        for model, row in listed
    ]
    _check(arguments, dialect, [body for body, _ in models])
    return _lines(arguments, dialect, table, models)


def _page(table: PriceTable, name: str) -> str:
    return table.providers.get(name, ListedProvider()).page or "the page of the provider"


def _refuse_missing(
    arguments: SimpleNamespace,
    dialect: Dialect,
    listed: Sequence[tuple[str, ListedModel]],
    page: str,
) -> None:
    missing = []
    if not (arguments.base_url or dialect.base_url):
        missing.append(f"no base URL of {arguments.name}: give --base-url URL")
    if not (arguments.protocols or dialect.protocols or dialect.counts):
        missing.append(f"not what {arguments.name} speaks: give --protocol OpenAIChat or another")
    if arguments.max_output_tokens is None:
        missing.append("no limits of answers: give --max-output-tokens N")
    contexts = [model for model, row in listed if row.context is None]
    if contexts and arguments.max_context_tokens is None:
        missing.append(f"no context of {', '.join(contexts)}: give --max-context-tokens N")
    if missing:
        raise CommandError(f"the table has {'; '.join(missing)}. See {page}")


def _model(
    arguments: SimpleNamespace,
    dialect: Dialect,
    table: PriceTable,
    name: str,
    row: ListedModel,
    day: date,
) -> dict[str, Any]:
    # One of them is known: `_refuse_missing` has asked for it.
    context = int(arguments.max_context_tokens or row.context or 0)
    if arguments.max_output_tokens > context:
        raise CommandError(
            f"--max-output-tokens {arguments.max_output_tokens} is above the context of {name}, "
            f"which is {context}"
        )
    return {
        "name": name,
        "maxContextTokens": context,
        "maxOutputTokens": arguments.max_output_tokens,
        **(
            {"outputLimitField": dialect.output_limit_field}
            if dialect.output_limit_field != "max_tokens"
            else {}
        ),
        **({"tools": False} if arguments.no_tools else {}),
        **({"media": True} if arguments.media else {}),
        **({"reasoning": True} if arguments.reasoning else {}),
        "cost": {
            **_cost(row.price_on(day), context, arguments.max_searches),
            "observedAt": table.date.isoformat(),
        },
    }


def _cost(price: ListedPrice, context: int, max_searches: int | None) -> Mapping[str, Any]:
    """Return the prices as a ModelProvider has them, with the steps that a prompt can reach."""
    cost = wire_format(price)
    others = ("from", "hours", "others", "search")
    cost = {key: value for key, value in cost.items() if key not in others}
    cost["steps"] = [step for step in cost.get("steps", ()) if step["aboveInputTokens"] < context]
    if price.search is not None and max_searches is not None:
        cost |= {"search": f"{price.search:f}", "maxSearches": max_searches}
    # Prices of 0 that are omitted are those of all tokens, but for a request's own.
    omitted: Collection[tuple[str, Any]] = (("steps", []), ("perRequest", "0"))
    return {key: value for key, value in cost.items() if (key, value) not in omitted}


def _notes(arguments: SimpleNamespace, name: str, row: ListedModel, day: date) -> Iterator[str]:
    """Yield what a reader of the YAML has to know about the prices of a model."""
    price = row.price_on(day)
    if row.provider != arguments.name:
        yield f"{name} has the prices of {row.provider}, which {arguments.name} sells."
    if price.hours:
        yield (
            f"{name} has other prices from {' and '.join(price.hours)} UTC than in other hours: "
            "these are the dearest of both."
        )
    later = next((each for each in row.prices if each.from_ is not None and each.from_ > day), None)
    if later is not None:
        yield f"The table has other prices of {name} from {later.from_} on."
    if price.search is not None and arguments.max_searches is None:
        yield (
            f"A search of the web costs {price.search:f}: where requests have some, add it with "
            "--max-searches N."
        )
    if price.others:
        yield f"The bill also has prices of {', '.join(price.others)}, which are not recorded."


def _tenants(arguments: SimpleNamespace) -> list[str]:
    return [name for name in (arguments.tenants or NOBODY).split(",") if name]


def _head(arguments: SimpleNamespace, dialect: Dialect) -> dict[str, Any]:
    name = arguments.name_of_object or arguments.name
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelProvider",
        "metadata": {"name": name},
        "spec": {
            "baseUrl": (arguments.base_url or dialect.base_url).rstrip("/"),
            "protocols": list(arguments.protocols or dialect.protocols or sorted(dialect.counts)),
            **({"keyHeader": dialect.key_header} if dialect.key_header != "Authorization" else {}),
            "secret": {"name": arguments.secret or name},
            **({"region": arguments.region} if arguments.region else {}),
            "tenants": _tenants(arguments),
        },
    }


def _check(
    arguments: SimpleNamespace, dialect: Dialect, models: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse what the API server would refuse; CommandError with the field."""
    spec = _head(arguments, dialect)["spec"] | {"models": models}
    try:
        ModelProvider.model_validate({"spec": spec})
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise CommandError(f"{path}: {first['msg']}") from None


def _lines(
    arguments: SimpleNamespace,
    dialect: Dialect,
    table: PriceTable,
    models: Sequence[tuple[Mapping[str, Any], Iterator[str]]],
) -> Iterator[str]:
    head = _head(arguments, dialect)
    yield f"# Prices of {described(table)}: compare them with {_page(table, arguments.name)}"
    yield (
        f"# Its key: kubectl -n tessera-system-providers create secret generic "
        f"{head['spec']['secret']['name']} --from-file=key=FILE"
    )
    if not arguments.tenants:
        yield f"# Tenants: {NOBODY} may use it until you name TenantBudgets, or give --tenants."
    yield from _yaml(head)
    yield "  models:"
    for body, notes in models:
        yield from (f"  # {note}" for note in notes)
        yield from (f"  {line}" for line in _yaml([body]))


def _yaml(body: object) -> list[str]:
    text = yaml.safe_dump(body, sort_keys=False, default_flow_style=None, width=1000)
    return text.splitlines()
