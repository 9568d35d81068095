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
from tessera.domain.gateway.usage_record import CHARGE_COLUMNS

# Groups of what nodes cost; charges may be listed by several fields.
_OF_NODES = ("service", "tenant", "tenant,service", "pool")
_OF_CHARGES = [each for each in CHARGE_COLUMNS if each not in _OF_NODES]
COST_FIELDS = (*_OF_NODES, *_OF_CHARGES)

COST = Command(
    "cost",
    "what the fleet cost, and what its requests were charged",
    "Shows what the nodes of all pools cost, by what they were used for. The figures are "
    "differences of counters between two scrapes, so they are exact. With the address of a "
    "gateway it shows beside the cost what requests were charged, and the margin between them, and "
    "what outside providers bill.",
    option(
        "--by",
        "rows: service, tenant, tenant,service or pool; charges alone by any of "
        f"{', '.join(_OF_CHARGES)}",
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
