"""The arguments of `plan` and `mosaic`, the commands about MIG layouts."""

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
        "Shows the planned MIG layouts of every pool with spec.mig: the GPUs that change and their "
        "order, the replicas that move, the cost before and after, the optimality gap, and the "
        "reasons. With --demand it plans slices and layouts for the services of a CSV file "
        "instead, without a cluster. Exits with 3 if a service does not fit; the others are "
        "planned nevertheless.",
    )
    parser.add_argument("pool", metavar="POOL", nargs="?", help="only this AcceleratorPool")
    add_cluster_options(parser)
    _add_demand_options(parser.add_argument_group("without a cluster"))
    add_output_options(parser)


def _add_demand_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--demand", metavar="FILE", help="CSV: service,demand[,minReplicas]")
    group.add_argument(
        "--throughput",
        metavar="FILE",
        help="CSV: service,profile,throughput of one replica in the unit of demand; without a row "
        "the service does not fit; the profile whole is the whole GPU",
    )
    group.add_argument(
        "--gpu", metavar="NAME", help="GPU model, such as A100-80GB or NVIDIA-H100-PCIe"
    )
    group.add_argument(
        "--current",
        metavar="FILE",
        help="JSON: the current layouts, as this command prints them; as few replicas as possible "
        "move",
    )
    group.add_argument(
        "--moves-per-gpu",
        metavar="N",
        type=float,
        help="with --current: give up a GPU only if that moves at most N replicas (default: any "
        "number)",
    )
    group.add_argument("--svg", metavar="FILE", help="also draw the layouts to this file")


def mosaic(commands: Commands) -> None:
    parser = add_command(
        commands,
        "mosaic",
        "every GPU as a strip of tiles, one for each slice",
        "Draws the GPUs in MIG mode: the service, start, GPU activity and price per hour of every "
        "slice, and what no slice covers. With a plan that is proposed or carried out it draws "
        "them before and after. GPU activity needs Prometheus.",
    )
    parser.add_argument("pool", metavar="POOL", nargs="?", help="only this AcceleratorPool")
    add_cluster_options(parser)
    add_prometheus_option(parser)
    parser.add_argument("--svg", metavar="FILE", help="also draw the GPUs to this file")
    add_output_options(parser)
