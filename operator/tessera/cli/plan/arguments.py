"""Options of `tessera plan`."""

from tessera.cli.options import (
    CLUSTER_OPTIONS,
    FILE,
    POOL_ARGUMENT,
    Command,
    option,
    output_options,
)

PLAN = Command(
    "plan",
    "MIG layouts of the pools, or for a demand, on the fewest GPUs",
    "Shows the planned MIG layouts of every pool with spec.mig: the GPUs that change and their "
    "order, the replicas that move, the cost before and after, the optimality gap, and the "
    "reasons. With --demand it plans slices and layouts for the services of a CSV file "
    "instead, without a cluster. Exits with 3 if a service does not fit; the others are "
    "planned nevertheless.",
    POOL_ARGUMENT,
    *CLUSTER_OPTIONS,
    option("--demand", "CSV: service,demand[,minReplicas]", **FILE),
    option(
        "--throughput",
        "CSV: service,profile,throughput of one replica in the unit of demand; without a row "
        "the service does not fit; the profile whole is the whole GPU",
        **FILE,
    ),
    option("--gpu", "GPU model, such as A100-80GB or NVIDIA-H100-PCIe", metavar="NAME"),
    option(
        "--current",
        "JSON: the current layouts, as this command prints them; as few replicas as possible move",
        **FILE,
    ),
    option(
        "--moves-per-gpu",
        "with --current: give up a GPU only if that moves at most N replicas (default: any number)",
        metavar="N",
        type=float,
    ),
    option("--svg", "also draw the layouts to this file", **FILE),
    *output_options(),
)
