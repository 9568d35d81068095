"""Options of `tessera mix`."""

import click

from tessera.cli.options import FILE, INTEGER, Command, argument, option, output_options
from tessera_lab.fleet.prices import PRICE_SETS

OUTPUT_FORMATS = ("table", "json")

mix = Command(
    "mix",
    "how many replicas to reserve for a load",
    "Compares numbers of reserved replicas for a load, without a cluster: how far they are used, "
    "how many more the load needs for 95 % of the time, and what a month costs with these on "
    "demand or on spot nodes.",
    argument(
        "load",
        "CSV with t_s,replicas or t_s,rate_rps, or a trace (CSV or Mooncake's JSON lines), or .gz",
        **FILE,
    ),
    option(
        "--replica-rate",
        "requests per second that one replica carries; unless the load is in replicas",
        metavar="R",
        type=float,
    ),
    option(
        "--window",
        "count the requests of a trace in windows of SECONDS",
        metavar="SECONDS",
        type=float,
        default=300.0,
    ),
    option("--prices", "prices of a set", type=click.Choice(tuple(PRICE_SETS))),
    option("--gpu", "the GPU, if the set has several", metavar="PRODUCT"),
    option("--gpus", "GPUs of a replica", **INTEGER, default=1),
    option("--on-demand", "USD per hour of one GPU", metavar="AMOUNT", type=float),
    option(
        "--reserved",
        "the same, reserved (default: of the set, or 0.60 of the price on demand)",
        metavar="AMOUNT",
        type=float,
    ),
    option(
        "--spot",
        "the same, on spot nodes (default: of the set, or 0.30 of the price on demand)",
        metavar="AMOUNT",
        type=float,
    ),
    option(
        "--wasted",
        "share of the work on spot nodes that interruptions waste",
        metavar="SHARE",
        type=float,
        default=0.1,
    ),
    *output_options(OUTPUT_FORMATS),
    module="tessera_lab.cli.mix.command",
)
