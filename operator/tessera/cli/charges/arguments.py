"""Options of `tessera charges`."""

from tessera.cli.options import (
    CLUSTER_OPTIONS,
    GATEWAY_OPTION,
    Command,
    Group,
    argument,
    option,
    output_options,
)

CHARGES_CORRECT = Command(
    "correct",
    "add to what a request was charged, or take off it",
    "Writes a row of the open month, flagged Correction; no other row changes. The same correction "
    "counts once, however often it is sent.",
    argument("record", "recordId of the request, from the access log", metavar="ID"),
    option(
        "--amount",
        "in the currency of the request; below 0 it is taken off, such as -0.25",
        required=True,
        metavar="AMOUNT",
    ),
    option("--reason", "why, for the record", required=True, metavar="TEXT"),
    GATEWAY_OPTION,
    *CLUSTER_OPTIONS,
    *output_options(),
    module="tessera.cli.charges.command",
)

CHARGES = Group(
    "charges",
    short_help="correct what a request was charged",
    help="Commands of the platform team for charges of requests; tessera cost shows them.",
    commands=[CHARGES_CORRECT],
)
