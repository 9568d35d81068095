"""Options of `tessera claims`."""

from tessera.cli.options import Command, argument, option, output_options

OUTPUT_FORMATS = ("table", "json")

claims = Command(
    "claims",
    "what is promised about the cost of inference, and what of it holds",
    "Shows fifty claims with our figure, the claimed one and a verdict that is computed from both: "
    "Met, MetOnlyUnder a condition, NotMet, Literature, or NotRun. With an id it computes that "
    "claim now, in seconds, without a cluster or a GPU, and shows all conditions.",
    argument("id", "a claim, such as H06; computes it now", required=False),
    option(
        "--run",
        "compute all claims now, in about a minute, instead of the recorded figures",
        is_flag=True,
    ),
    *output_options(OUTPUT_FORMATS),
    module="tessera_lab.cli.claims.command",
)
