"""Options of `tessera budget`."""

from tessera.cli.options import CLUSTER_OPTIONS, Command, Group, argument, option, output_options

BUDGET_OVERRIDE = Command(
    "override",
    "let a tenant add replicas although the spend is unknown or not recorded",
    "A budget whose spend is unknown, or whose record the API server refuses, adds nothing. "
    "The override opens it until a time: the limits apply to the spend that is known. It "
    "stands in the status, in the message of WithinBudget, in explain and in the metrics.",
    argument("budget", "name of the TenantBudget", metavar="NAME"),
    option(
        "--until",
        "end, such as 2026-11-30T18:00:00Z; within the next 31 days",
        required=True,
        metavar="TIME",
    ),
    option("--reason", "why, for the record", required=True, metavar="TEXT"),
    *CLUSTER_OPTIONS,
    *output_options(),
    module="tessera.cli.budget.command",
)

BUDGET = Group(
    "budget",
    short_help="open a tenant's budget for some time",
    help="Commands of the platform team for TenantBudgets.",
    commands=[BUDGET_OVERRIDE],
)
