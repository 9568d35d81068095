"""Options of `tessera simulate`."""

import click

from tessera.cli.options import FILE, INTEGER, Command, option, output_options
from tessera_lab.fleet.prices import PRICE_SETS

OUTPUT_FORMATS = ("table", "json", "csv")

TRACE_OPTION = option("--trace", "recorded requests, CSV or Mooncake's JSON lines, or .gz", **FILE)
FLEET_OPTIONS = (
    option(
        "--fleet",
        "manifests (a file or a folder), or a file of tessera snapshot save",
        required=True,
        **FILE,
    ),
    option("--service", "the InferenceService, if there are several", metavar="[NAMESPACE/]NAME"),
    option(
        "--prices", "prices of a set instead of the pools'", type=click.Choice(tuple(PRICE_SETS))
    ),
)
PART_OPTIONS = (
    option("--from", "begin of the part to simulate", metavar="HOURS", type=float, default=0.0),
    option("--hours", "length of that part", metavar="HOURS", type=float),
    option("--copies", "put the trace on itself, each copy shifted", **INTEGER, default=1),
    option(
        "--spread", "spread arrivals recorded in steps of SECONDS", metavar="SECONDS", type=float
    ),
)

simulate = Command(
    "simulate",
    "what a load would have cost under a scaling policy",
    "Plays a trace through a fleet of simulated engines, without a cluster: what it would have "
    "cost, and how well the SLO would have been kept. Several policies are set side by side. "
    "Ctrl-C ends it with what was simulated so far.",
    TRACE_OPTION,
    option(
        "--from-prometheus",
        "instead of a trace, draw requests at the rates and with the lengths that the engines of "
        "the service have counted",
        metavar="URL",
    ),
    option("--window", "the last time to draw from", metavar="SPAN", default="1d"),
    option(
        "--selector",
        "label matchers of the engines' series (default: those of the service)",
        metavar="MATCHERS",
    ),
    option("--save-trace", "write the drawn trace to this file", **FILE),
    *FLEET_OPTIONS,
    option(
        "--policy",
        "tessera or another policy, such as static:replicas=4; may be repeated (default: tessera)",
        metavar="NAME[:KNOB=VALUE,...]",
        multiple=True,
    ),
    option("--compare", "policies to set side by side", metavar="NAME,..."),
    option("--reserved", "replicas whose nodes are reserved, and paid all the time", **INTEGER),
    option(
        "--spot",
        "run replicas beyond the reserved ones on spot nodes, of which each is lost RATE times per "
        "hour on average",
        metavar="RATE",
        type=float,
    ),
    option(
        "--start-up",
        "mean time until a replica is ready",
        metavar="SECONDS",
        type=float,
        default=110.0,
    ),
    *PART_OPTIONS,
    option("--seed", "seed of what is random", **INTEGER, default=1),
    option("--svg", "also write plots of demand, replicas, cost and misses", **FILE),
    *output_options(OUTPUT_FORMATS),
    module="tessera_lab.cli.simulate.command",
)
