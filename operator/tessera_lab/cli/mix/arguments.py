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
    "demand or on spot nodes. The load is a file, or what the engines of a service have counted.",
    argument(
        "load",
        "CSV with t_s,replicas or t_s,rate_rps, or a trace (CSV or Mooncake's JSON lines), or .gz",
        required=False,
        **FILE,
    ),
    option(
        "--from-prometheus",
        "instead of a file, read the requests of --service (without URL: $TESSERA_PROMETHEUS_URL)",
        metavar="[URL]",
        is_flag=False,
        flag_value="",
    ),
    option("--service", "the InferenceService whose load is read", metavar="[NAMESPACE/]NAME"),
    option(
        "--since",
        "read its load since then: a span of a day or more, or a day",
        metavar="WHEN",
        default="7d",
    ),
    option(
        "--fleet",
        "manifests (a file or a folder), or a file of tessera snapshot save: what a replica of the "
        "service carries, and the prices of its pools",
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
        "count requests in windows of SECONDS",
        metavar="SECONDS",
        type=float,
        default=300.0,
    ),
    option(
        "--prices",
        "prices of a set, instead of those of --fleet",
        type=click.Choice(tuple(PRICE_SETS)),
    ),
    option("--gpu", "the GPU, if the set has several", metavar="PRODUCT"),
    option("--gpus", "GPUs of a replica (default: as in --fleet, or 1)", **INTEGER),
    option(
        "--on-demand",
        "price of one GPU and hour, in USD or the currency of --fleet",
        metavar="AMOUNT",
        type=float,
    ),
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
