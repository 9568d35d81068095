"""Options of `tessera mosaic`."""

from tessera.cli.options import (
    CLUSTER_OPTIONS,
    FILE,
    POOL_ARGUMENT,
    PROMETHEUS_OPTION,
    Command,
    option,
    output_options,
)

MOSAIC = Command(
    "mosaic",
    "every GPU as a strip of tiles, one for each slice",
    "Draws the GPUs in MIG mode: the service, start, GPU activity and price per hour of every "
    "slice, and what no slice covers. With a plan that is proposed or carried out it draws "
    "them before and after. GPU activity needs Prometheus.",
    POOL_ARGUMENT,
    *CLUSTER_OPTIONS,
    PROMETHEUS_OPTION,
    option("--svg", "also draw the GPUs to this file", **FILE),
    *output_options(),
)
