"""Options of `tessera provider`."""

from tessera.cli.options import (
    CLUSTER_OPTIONS,
    COST_FORMATS,
    FILE,
    INTEGER,
    Command,
    Group,
    argument,
    option,
    output_options,
)

_NAME = argument("name", "the provider, as the table calls it, such as x-ai", metavar="NAME")
_TABLE = option(
    "--table",
    "a newer or an own table (default: the shipped one), in the form of provider-prices.json",
    **FILE,
)

PROVIDER_ADD = Command(
    "add",
    "print a ModelProvider with the prices of the table",
    "Prints YAML for kubectl apply, which you complete and check: prices of the table are those of "
    "its day, without discounts of your own. What the table does not know has an option. Of prices "
    "by the hour the dearest is written, so that no request costs more than it reserved.",
    _NAME,
    argument("models", "its models, as it calls them", nargs=-1, required=True, metavar="MODEL..."),
    option("--as name_of_object", "name of the ModelProvider (default: NAME)", metavar="NAME"),
    option("--base-url", "base URL with the version (default: the documented one)", metavar="URL"),
    option(
        "--protocol protocols",
        "what it speaks there, such as OpenAIChat; may be repeated (default: what is documented)",
        multiple=True,
        metavar="NAME",
    ),
    option("--max-output-tokens", "most tokens of an answer of these models", **INTEGER),
    option(
        "--max-context-tokens",
        "most tokens of a prompt and its answer (default: the table's)",
        **INTEGER,
    ),
    option(
        "--max-searches",
        "most searches of the web that they make for a request (default: none are paid)",
        **INTEGER,
    ),
    option("--tenants", "TenantBudgets whose tenants may use it", metavar="NAME,..."),
    option("--secret", "Secret with its key (default: the name of the object)", metavar="NAME"),
    option("--region", "where it works on requests, for spec.dataResidency", metavar="NAME"),
    option("--reasoning", "the models take an effort of reasoning", is_flag=True),
    option("--media", "the models take images and clips", is_flag=True),
    option("--no-tools", "the models call no tools", is_flag=True),
    _TABLE,
    module="tessera.cli.provider.add",
)

PROVIDER_PRICES = Command(
    "prices",
    "prices of a provider's models in the table",
    "Prices a million tokens, a search or a request, in USD. They are the table's on this day and "
    "those that it announces; rows with ABOVE hold for all tokens of longer prompts.",
    _NAME,
    argument("model", "only this model", required=False, metavar="MODEL"),
    _TABLE,
    *output_options(COST_FORMATS),
    module="tessera.cli.provider.prices",
)

PROVIDER_DIFF = Command(
    "diff",
    "compare the ModelProviders of the cluster with the table",
    "Names each price that is not the table's, and exits with 1 if there is any. A price of your "
    "own contract differs too.",
    _TABLE,
    *CLUSTER_OPTIONS,
    *output_options(COST_FORMATS),
    module="tessera.cli.provider.diff",
)

PROVIDER = Group(
    "provider",
    short_help="ModelProviders with the prices of a table",
    help="Commands for outside providers and what their models cost.",
    commands=[PROVIDER_ADD, PROVIDER_PRICES, PROVIDER_DIFF],
)
