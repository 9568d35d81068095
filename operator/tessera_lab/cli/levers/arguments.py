"""Options of `tessera levers`."""

from tessera.cli.options import FILE, INTEGER, Command, option, output_options
from tessera_lab.cli.simulate.arguments import FLEET_OPTIONS, PART_OPTIONS, TRACE_OPTION
from tessera_lab.levers.assumptions import LeverAssumptions

OUTPUT_FORMATS = ("table", "json")
_ASSUMED = LeverAssumptions()

levers = Command(
    "levers",
    "what each lever is worth on a fleet, in dollars a month",
    "Computes for a trace and a fleet, without a cluster, what a month costs with each lever alone "
    "and with all in order, beside what the product of their factors promises. Says which levers "
    "it cannot compute and why, and in which order to take those that the fleet does not use.",
    TRACE_OPTION,
    *FLEET_OPTIONS,
    *PART_OPTIONS,
    option(
        "--draft", "draft model of speculation, its name on the Hugging Face Hub", metavar="NAME"
    ),
    option("--small", "model to which simple requests could be routed", metavar="NAME"),
    option(
        "--hit-share",
        "requests that a response cache would answer (course L9)",
        metavar="SHARE",
        type=float,
        default=_ASSUMED.hit_share,
    ),
    option(
        "--small-share",
        "requests that the small model would answer (engineering L560)",
        metavar="SHARE",
        type=float,
        default=_ASSUMED.small_share,
    ),
    option(
        "--batch-share",
        "requests without a latency objective, which batches answer (a guess)",
        metavar="SHARE",
        type=float,
        default=_ASSUMED.batch_share,
    ),
    option(
        "--wasted",
        "share of the work on spot nodes that interruptions waste (a guess)",
        metavar="SHARE",
        type=float,
        default=_ASSUMED.wasted,
    ),
    option(
        "--temperature",
        "of sampling, by which drafted tokens are accepted",
        metavar="T",
        type=float,
        default=_ASSUMED.temperature,
    ),
    option(
        "--engineer-hour",
        "price of an hour in which a component is operated (a guess)",
        metavar="AMOUNT",
        type=float,
        default=_ASSUMED.engineer_hour,
    ),
    option("--seed", "seed of what is random", **INTEGER, default=1),
    option("--svg", "also write the ladder as a picture", **FILE),
    *output_options(OUTPUT_FORMATS),
    module="tessera_lab.cli.levers.command",
)
