"""Options of `tessera snapshot`."""

from tessera.cli.options import (
    CLUSTER_OPTIONS,
    FILE,
    PROMETHEUS_OPTION,
    Command,
    Group,
    argument,
    option,
    output_options,
)

SNAPSHOT_SAVE = Command(
    "save",
    "write a snapshot file",
    "Writes everything that the plan reads into one JSON file. Values of environment "
    "variables, arguments of containers and passwords in URLs are left out.",
    argument("file", "compressed when it ends in .gz; - is stdout", **FILE),
    *CLUSTER_OPTIONS,
    PROMETHEUS_OPTION,
    module="tessera.cli.snapshot.save",
)

SNAPSHOT_PLAN = Command(
    "plan",
    "compute the plan of a snapshot file",
    "Prints what this version decides from a snapshot file, without any cluster.",
    argument("file", "written by tessera snapshot save", **FILE),
    option("--service", "explain this service", metavar="NAMESPACE/NAME"),
    *output_options(),
    module="tessera.cli.snapshot.plan",
)

SNAPSHOT = Group(
    "snapshot",
    short_help="save the input of the plan, and compute the plan elsewhere",
    help="A snapshot file holds everything that the plan reads, without secrets. "
    "Computing its plan needs no cluster: attach the file to a bug report.",
    commands=[SNAPSHOT_SAVE, SNAPSHOT_PLAN],
)
