"""Options of `tessera cost`."""

import click

from tessera.cli.options import (
    COST_FORMATS,
    PROMETHEUS_OPTION,
    SINCE,
    Command,
    option,
    output_options,
)

COST_GROUPINGS = ("service", "tenant", "pool")

COST = Command(
    "cost",
    "what the fleet cost",
    "Shows what the nodes of all pools cost, by what they were used for. The figures are "
    "differences of counters between two scrapes, so they are exact.",
    option("--by", "rows", type=click.Choice(COST_GROUPINGS), default="service"),
    SINCE,
    option("--month", "a month in UTC such as 2026-11, instead of --since", metavar="MONTH"),
    option("--energy", "also kWh, their electricity, and kg of CO2e", is_flag=True),
    PROMETHEUS_OPTION,
    *output_options(COST_FORMATS),
)
