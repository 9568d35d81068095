"""`plan` and `mosaic`: commands about how GPUs are cut."""

import argparse

from tessera.cli.options import (
    Commands,
    add_cluster_options,
    add_command,
    add_output_options,
    add_prometheus_option,
)


def plan(commands: Commands) -> None:
    parser = add_command(
        commands,
        "plan",
        "MIG layouts of the pools, or for a demand, on the fewest GPUs",
        "Tells of every pool with spec.mig how its GPUs shall be cut: what changes, in which "
        "order, who moves, what it costs before and after, how far that may be from the best, and "
        "why. With --demand it chooses slices and layouts for the services of a CSV file instead, "
        "without a cluster. Exits with 3 when a service fits nowhere; the others are planned all "
        "the same.",
    )
    parser.add_argument("pool", metavar="POOL", nargs="?", help="only this AcceleratorPool")
    add_cluster_options(parser)
    _add_demand_options(parser.add_argument_group("without a cluster"))
    add_output_options(parser)


def _add_demand_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--demand", metavar="FILE", help="CSV: service,demand[,floor of instances]")
    group.add_argument(
        "--throughput",
        metavar="FILE",
        help="CSV: service,profile,throughput of one instance in the unit of demand; no row: it "
        "does not fit; the profile full is the unpartitioned GPU",
    )
    group.add_argument("--gpu", metavar="NAME", help="such as A100-80GB or NVIDIA-H100-PCIe")
    group.add_argument(
        "--current",
        metavar="FILE",
        help="JSON: the layouts that there are, as this command prints them; as few instances as "
        "possible move",
    )
    group.add_argument(
        "--moves-per-gpu",
        metavar="N",
        type=float,
        help="with --current: a GPU is given up only if that moves at most so many instances "
        "(default: any number)",
    )
    group.add_argument("--svg", metavar="FILE", help="draw the layouts there, too")


def mosaic(commands: Commands) -> None:
    parser = add_command(
        commands,
        "mosaic",
        "every GPU as a strip of tiles, one for each slice",
        "Draws the GPUs that are cut: of every slice its service, start, load and price an hour, "
        "and what no slice covers. With a plan that is proposed or carried out it draws them "
        "before and after. Loads need Prometheus.",
    )
    parser.add_argument("pool", metavar="POOL", nargs="?", help="only this AcceleratorPool")
    add_cluster_options(parser)
    add_prometheus_option(parser)
    parser.add_argument("--svg", metavar="FILE", help="draw them there, too")
    add_output_options(parser)
