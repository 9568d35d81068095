"""All commands and their options.

Nothing heavy is imported, so that help and completion are quick: each command names the module
whose `run` takes the parsed arguments and returns an `Output`.
"""

import argparse
from importlib.metadata import entry_points

from tessera.cli.options import (
    Commands,
    add_cluster_options,
    add_command,
    add_namespace_option,
    add_output_options,
    add_prometheus_option,
)
from tessera.cli.plan.arguments import mosaic, plan
from tessera.cli.size.arguments import size

COST_GROUPINGS = ("service", "tenant", "pool")
COST_FORMATS = ("table", "json", "csv")
SHELLS = ("bash", "zsh", "fish")

# Each entry point of this group is a function that adds one command, as those below do.
COMMANDS_GROUP = "tessera.commands"


def build_parser(program: str = "tessera") -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    root_parser = argparse.ArgumentParser(
        prog=program, description="Inspect the inference fleets of a cluster."
    )
    commands = root_parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    cluster_commands = (
        _add_doctor,
        _add_explain,
        _add_top,
        _add_update,
        _add_budget,
        _add_cost,
        plan,
        mosaic,
    )
    for add in (*cluster_commands, size):
        add(commands)
    _add_installed_commands(commands)
    for add in (_add_snapshot, _add_completion):
        add(commands)
    return root_parser


def _add_installed_commands(commands: Commands) -> None:
    """Add the commands of other distributions, and a stand-in for bench where it is missing."""
    # Where a distribution is found twice, as installed and in a checkout, so are its commands.
    installed = {entry.name: entry for entry in entry_points(group=COMMANDS_GROUP)}
    for name in sorted(installed):
        installed[name].load()(commands)
    if "bench" not in installed:
        _missing_bench(commands)


def _missing_bench(commands: Commands) -> None:
    subparser = commands.add_parser(
        "bench",
        help="a load test of an OpenAI-compatible server (in the package tessera-lab)",
        description="Not installed: pip install tessera-lab.",
        add_help=False,
        # No word is an option, so that every call reaches the sentence that says what to install.
        prefix_chars="\0",
    )
    subparser.add_argument("arguments", nargs="*")
    subparser.set_defaults(module="tessera.cli.missing_lab")


def _add_doctor(commands: Commands) -> None:
    subparser = add_command(
        commands,
        "doctor",
        "what is wrong in the cluster, and how to fix it",
        "Checks the cluster, the operator, the hardware, the metrics and the services. Checks "
        "without permission are skipped. Exits with 1 when a problem was found; warnings do "
        "not count.",
    )
    add_cluster_options(subparser)
    add_namespace_option(subparser, "namespace for a dry run of the webhook; nothing is created")
    add_prometheus_option(subparser)
    add_output_options(subparser)


def _add_explain(commands: Commands) -> None:
    subparser = add_command(
        commands,
        "explain",
        "every decision about a service, and what would change it",
        "Explains why a service is as it is: hardware with its price and the alternatives, sizing, "
        "scaling, budget, drain, rollout, readiness. Reads the status and computes the plan as the "
        "operator does, without writing anything.",
    )
    subparser.add_argument("service", metavar="SERVICE", help="name of the InferenceService")
    add_cluster_options(subparser)
    add_namespace_option(subparser, "namespace of the service")
    add_prometheus_option(subparser)
    add_output_options(subparser)


def _add_top(commands: Commands) -> None:
    subparser = add_command(
        commands,
        "top",
        "services by cost, pools by free devices",
        "Shows the services, the most expensive first, and the pools with their free devices. "
        "Queue, activity and measured tokens need Prometheus; predicted tokens are marked with ~.",
    )
    add_cluster_options(subparser)
    add_namespace_option(subparser, "namespace of the services (default: all)")
    subparser.add_argument(
        "-A", "--all-namespaces", action="store_true", help="all namespaces (the default)"
    )
    add_prometheus_option(subparser)
    add_output_options(subparser)


def _add_update(commands: Commands) -> None:
    subparser = add_command(
        commands,
        "update",
        "roll a service to what this version of Tessera would build",
        "Upgrades of Tessera leave running models alone. Where the condition UpdateAvailable is "
        "True, this command requests the new pod template now; otherwise it does nothing.",
    )
    subparser.add_argument("service", metavar="SERVICE", help="name of the InferenceService")
    add_cluster_options(subparser)
    add_namespace_option(subparser, "namespace of the service")
    add_output_options(subparser)


def _add_budget(commands: Commands) -> None:
    subcommands = commands.add_parser(
        "budget",
        help="open a tenant's budget for some time",
        description="Commands of the platform team for TenantBudgets.",
    ).add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    subparser = add_command(
        subcommands,
        "override",
        "let a tenant add replicas although the spend is unknown or not recorded",
        "A budget whose spend is unknown, or whose record the API server refuses, adds nothing. "
        "The override opens it until a time: the limits apply to the spend that is known. It "
        "stands in the status, in the message of WithinBudget, in explain and in the metrics.",
        module="tessera.cli.budget.command",
    )
    subparser.add_argument("budget", metavar="NAME", help="name of the TenantBudget")
    subparser.add_argument(
        "--until",
        required=True,
        metavar="TIME",
        help="end, such as 2026-11-30T18:00:00Z; within the next 31 days",
    )
    subparser.add_argument("--reason", required=True, metavar="TEXT", help="why, for the record")
    add_cluster_options(subparser)
    add_output_options(subparser)


def _add_cost(commands: Commands) -> None:
    subparser = add_command(
        commands,
        "cost",
        "what the fleet cost",
        "Shows what the nodes of all pools cost, by what they were used for. The figures are "
        "differences of counters between two scrapes, so they are exact.",
    )
    subparser.add_argument(
        "--by", choices=COST_GROUPINGS, default="service", help="rows (default: %(default)s)"
    )
    subparser.add_argument(
        "--since",
        default="24h",
        metavar="WHEN",
        help="30m, 24h, 7d, or a day or moment such as 2026-11-01 in UTC (default: %(default)s)",
    )
    add_prometheus_option(subparser)
    add_output_options(subparser, COST_FORMATS)


def _add_snapshot(commands: Commands) -> None:
    subcommands = commands.add_parser(
        "snapshot",
        help="save the input of the plan, and compute the plan elsewhere",
        description="A snapshot file holds everything that the plan reads, without secrets. "
        "Computing its plan needs no cluster: attach the file to a bug report.",
    ).add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    save_parser = add_command(
        subcommands,
        "save",
        "write a snapshot file",
        "Writes everything that the plan reads into one JSON file. Values of environment "
        "variables, arguments of containers and passwords in URLs are left out.",
        module="tessera.cli.snapshot.save",
    )
    save_parser.add_argument(
        "file", metavar="FILE", help="compressed when it ends in .gz; - is stdout"
    )
    add_cluster_options(save_parser)
    add_prometheus_option(save_parser)
    plan_parser = add_command(
        subcommands,
        "plan",
        "compute the plan of a snapshot file",
        "Prints what this version decides from a snapshot file, without any cluster.",
        module="tessera.cli.snapshot.plan",
    )
    plan_parser.add_argument("file", metavar="FILE", help="written by tessera snapshot save")
    plan_parser.add_argument("--service", metavar="NAMESPACE/NAME", help="explain this service")
    add_output_options(plan_parser)


def _add_completion(commands: Commands) -> None:
    subparser = add_command(
        commands,
        "completion",
        "the completion script of a shell",
        "Prints a completion script, for example: source <(tessera completion bash). kubectl "
        "tessera is completed by kubectl itself, through kubectl_complete-tessera.",
        module="tessera.cli.completion",
    )
    subparser.add_argument("shell", choices=SHELLS, help="which shell")
