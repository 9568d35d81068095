"""Options of `tessera doctor`."""

from tessera.cli.options import (
    CLUSTER_OPTIONS,
    PROMETHEUS_OPTION,
    Command,
    namespace_option,
    output_options,
)

DOCTOR = Command(
    "doctor",
    "what is wrong in the cluster, and how to fix it",
    "Checks the cluster, the operator, the hardware, the metrics and the services. Checks "
    "without permission are skipped. Exits with 1 when a problem was found; warnings do "
    "not count.",
    *CLUSTER_OPTIONS,
    namespace_option("namespace for a dry run of the webhook; nothing is created"),
    PROMETHEUS_OPTION,
    *output_options(),
)
