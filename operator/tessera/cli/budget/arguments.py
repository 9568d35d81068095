"""Options of `tessera budget`."""

from tessera.cli.options import CLUSTER_OPTIONS, Command, Group, argument, option, output_options

_BUDGET = argument("budget", "name of the TenantBudget", metavar="NAME")
_OPTIONS = (
    option(
        "--until",
        "end, such as 2026-11-30T18:00:00Z; within the next 31 days",
        required=True,
        metavar="TIME",
    ),
    option("--reason", "why, for the record", required=True, metavar="TEXT"),
    *CLUSTER_OPTIONS,
    *output_options(),
)

BUDGET_OVERRIDE = Command(
    "override",
    "let a tenant add replicas although the spend is unknown or not recorded",
    "A budget whose spend is unknown, or whose record the API server refuses, adds nothing. "
    "The override opens it until a time: the limits apply to the spend that is known. It "
    "stands in the status, in the message of WithinBudget, in explain and in the metrics.",
    _BUDGET,
    *_OPTIONS,
    module="tessera.cli.budget.command",
)

BUDGET_RAISE = Command(
    "raise",
    "add to one limit of a tenant until a time",
    "The raise replaces an earlier one of the same limit and ends by itself; operator and gateways "
    "know it within 2 seconds. It stands in the status, in the message of WithinBudget and in "
    "explain.",
    _BUDGET,
    argument("limit", "name of the limit, such as charge-month", metavar="LIMIT"),
    option("--by", "amount in spec.currency, such as 50", required=True, metavar="AMOUNT"),
    *_OPTIONS,
    module="tessera.cli.budget.raise_limit",
)

BUDGET = Group(
    "budget",
    short_help="open or raise a tenant's budget for some time",
    help="Commands of the platform team for TenantBudgets.",
    commands=[BUDGET_OVERRIDE, BUDGET_RAISE],
)
