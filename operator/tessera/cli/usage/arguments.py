"""Options of `tessera usage`."""

import click

from tessera.cli.options import (
    CLUSTER_OPTIONS,
    COST_FORMATS,
    GATEWAY_OPTION,
    SINCE,
    Command,
    argument,
    option,
    output_options,
)
from tessera.domain.gateway.usage_record import USAGE_COLUMNS

USAGE_ACTIONS = ("sum", "import")

USAGE = Command(
    "usage",
    "requests and tokens by tenant, key and model",
    "Sums the usage records of the gateway: every request with the tokens that the engine counted. "
    "Requests of which the gateway counted the tokens itself are estimated. Needs the right to "
    "create tokens of the ServiceAccount tessera-usage-reader in the gateway's namespace. "
    "`tessera usage import` prints a Job that adds the records of a SQLite file to the database "
    "that replaced it, for kubectl apply -f -.",
    argument("action", "what to do", type=click.Choice(USAGE_ACTIONS), default=USAGE_ACTIONS[0]),
    option(
        "--by",
        f"rows: a list of {', '.join(USAGE_COLUMNS)}; by target also its share of requests",
        default="tenant",
        metavar="FIELD,...",
    ),
    SINCE,
    option("--tenant", "only this tenant", metavar="NAME"),
    option(
        "--claim",
        "of import: the PersistentVolumeClaim with the SQLite file",
        default="tessera-gateway",
        metavar="NAME",
    ),
    GATEWAY_OPTION,
    *CLUSTER_OPTIONS,
    *output_options(COST_FORMATS),
)
