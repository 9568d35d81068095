"""Options of `tessera cost`."""

from tessera.cli.options import (
    CLUSTER_OPTIONS,
    COST_FORMATS,
    GATEWAY_OPTION,
    PROMETHEUS_OPTION,
    SINCE,
    Command,
    option,
    output_options,
)

# Fields that stand alone; those of charges may be joined by commas.
COST_FIELDS = (
    *("service", "tenant", "tenant,service", "pool", "team", "key", "user", "model", "tag"),
    *("class", "priceList", "owner", "flag", "route", "target", "provider"),
)

COST = Command(
    "cost",
    "what the fleet cost, and what its requests were charged",
    "Shows what the nodes of all pools cost, by what they were used for. The figures are "
    "differences of counters between two scrapes, so they are exact. With the address of a "
    "gateway it shows beside the cost what requests were charged, and the margin between them, and "
    "what outside providers bill.",
    option(
        "--by",
        "rows: service, tenant, tenant,service or pool; charges alone by any of team, key, user, "
        "model, tag, class, priceList, owner, flag, route, target, provider",
        default="service",
        metavar="FIELD,...",
        shell_complete=lambda _context, _option, begun: [
            field for field in COST_FIELDS if field.startswith(begun)
        ],
    ),
    SINCE,
    option("--month", "a month in UTC such as 2026-11, instead of --since", metavar="MONTH"),
    option("--energy", "also kWh, their electricity, and kg of CO2e", is_flag=True),
    PROMETHEUS_OPTION,
    GATEWAY_OPTION,
    *CLUSTER_OPTIONS,
    *output_options(COST_FORMATS),
    option("--csv output", "short for -o csv", flag_value="csv"),
)
